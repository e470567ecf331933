"""What the methods that others published give each edge of an exact model.

RelP is left out: where neurons are ReLU and norms divide by a constant it is EAP.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.baselines import eap, eap_ig_inputs, exhaustive_edges
from benchmarks.edges import EdgeGraph, EdgeModel, Pairs
from benchmarks.truth.components import Component, Edge
from benchmarks.truth.exhaustive import ComponentModel
from benchmarks.truth.program import Pair

METHODS: Mapping[str, Callable[[EdgeModel, Pairs], Float[Tensor, " edge"]]] = {
    "EAP": eap,
    "EAP-IG-5": partial(eap_ig_inputs, steps=5),
    "EAP-IG-50": partial(eap_ig_inputs, steps=50),
    "exhaustive patching": exhaustive_edges,
}


def published_flows(
    components: ComponentModel, pairs: Sequence[Pair]
) -> dict[str, Float[Tensor, "pair edge"]]:
    """Return what every method gives each edge for each pair, in the order of our edges."""
    model = EdgeModel(components.model)
    order = edge_order(model.graph, components)
    asked = [batch_of([pair], components.model.weights.d_vocab) for pair in pairs]
    return {
        name: torch.stack([method(model, one)[order] for one in asked])
        for name, method in METHODS.items()
    }


def edge_order(graph: EdgeGraph, components: ComponentModel) -> list[int]:
    """Return which edge of the graph each of `components.edges` is."""
    nodes = [*components.writers, Component("output")]
    rows = zip(graph.writer.tolist(), graph.reader.tolist(), graph.via, strict=True)
    place = {
        Edge(nodes[writer], nodes[reader], "out" if via == "residual" else via): number
        for number, (writer, reader, via) in enumerate(rows)
    }
    return [place[edge] for edge in components.edges]


def batch_of(pairs: Sequence[Pair], d_vocab: int) -> Pairs:
    """Return pairs as one batch."""
    weights = torch.zeros(len(pairs), d_vocab, dtype=torch.float64)
    for row, pair in enumerate(pairs):
        weights[row, list(pair.target)] = weights.new_tensor(list(pair.target.values()))
    longest = max(len(pair.clean) for pair in pairs)
    clean, other = (
        torch.tensor([ids + [0] * (longest - len(ids)) for ids in side])
        for side in zip(*((pair.clean, pair.other) for pair in pairs), strict=True)
    )
    end = torch.tensor([len(pair.clean) - 1 for pair in pairs])
    return Pairs(clean, other, end, weights)
