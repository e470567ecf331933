"""What flowed by each edge of an exact model, by tracing."""

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.truth.components import Component, Edge
from benchmarks.truth.exhaustive import ComponentModel
from benchmarks.truth.program import Pair
from circuits import Circuit, trace
from circuits.contrasting import contrasted
from replacement.secant import SecantRule
from replacement.target import Target

ALONG_STREAM = {"head": "v", "mlp": "mlp", "output": "out"}
"""By what a reader gets a flow along the residual stream where patterns are held."""


def target_of(components: ComponentModel, pair: Pair) -> Target:
    """Return what is asked of the clean run of a pair."""
    run = components.run(pair.clean)
    parts = [weight * run.logit(token) for token, weight in pair.target.items()]
    return sum(parts[1:], start=parts[0])


def contrast_flows(
    components: ComponentModel, pair: Pair, rule: SecantRule | None = None
) -> Float[Tensor, " edge"]:
    """Return what flowed by every edge from the counterfactual's difference to the target's.

    Flows are summed over positions and over the neurons of an MLP.
    """
    target = contrasted(target_of(components, pair), components.run(pair.other), rule)
    return _summed(components, _traced(target))


def held_flows(components: ComponentModel, pair: Pair) -> Float[Tensor, " edge"]:
    """Return what flowed by every edge into the target of the clean run, patterns held."""
    return _summed(components, _traced(target_of(components, pair)))


def _traced(target: Target) -> Circuit:
    return trace(target, threshold=0, max_nodes=1_000_000, progress=False)


def _summed(components: ComponentModel, circuit: Circuit) -> Float[Tensor, " edge"]:
    graph = circuit.data
    columns = (graph.nodes[name].tolist() for name in ("kind", "layer", "index"))
    rows = zip(*columns, strict=True)
    component = dict(zip(graph.nodes.index, (_component(*row) for row in rows), strict=True))
    place = {edge: number for number, edge in enumerate(components.edges)}
    sums = torch.zeros(len(place), dtype=torch.float64)
    columns = (graph.edges[name].tolist() for name in ("source", "target", "via", "flow"))
    for source, target, via, flow in zip(*columns, strict=True):
        reader = component[target]
        # in a held run every flow is along the stream; in a contrast only the target's are
        way = ALONG_STREAM[reader.kind] if via == "residual" else via
        sums[place[Edge(component[source], reader, way)]] += flow
    return sums


def _component(kind: str, layer: int, index: int) -> Component:
    match kind:
        case "token" | "position":
            return Component("input")
        case "head":
            return Component("head", layer, index)
        case "neuron":
            return Component("mlp", layer)
        case _:
            return Component("output")
