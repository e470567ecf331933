"""Activation patching: every node, or every edge, in turn carries its stand-in; all else is clean.

MIB's EActP, and the truth that gradient methods approximate. One forward pass an edge, from the
sublayer that reads it on.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.edges import Ablation, EdgeModel, Pairs, Patching

BATCH = 200


@torch.no_grad()
def exhaustive_edges(
    model: EdgeModel,
    pairs: Pairs,
    ablation: Ablation = "corrupt",
    *,
    edges: Sequence[int] | None = None,
) -> Float[Tensor, " edge"]:
    """Return by how much the mean metric falls when each edge (or some) carries its stand-in."""
    chosen = range(model.graph.n_edges) if edges is None else edges
    totals = torch.zeros(len(chosen), dtype=model.source.dtype)
    for part in pairs.by_length().parts(BATCH):
        runs = Patching(model, part, ablation)
        clean = part.metric(model.logits(runs.clean.final, part.end))
        fallen = [(clean - part.metric(runs.without(edge))).sum() for edge in chosen]
        totals += torch.stack(fallen)
    return totals / len(pairs)


@torch.no_grad()
def exhaustive_nodes(
    model: EdgeModel, pairs: Pairs, ablation: Ablation = "corrupt"
) -> Float[Tensor, " writer"]:
    """Return by how much the mean metric falls when each writer writes its stand-in."""
    graph = model.graph
    totals = torch.zeros(graph.n_writers, dtype=model.source.dtype)
    for part in pairs.by_length().parts(BATCH):
        runs = Patching(model, part, ablation)
        clean = part.metric(model.logits(runs.clean.final, part.end))
        masks = [(graph.writer != writer).to(totals.dtype) for writer in range(graph.n_writers)]
        totals += torch.stack([(clean - runs.metric(mask)).sum() for mask in masks])
    return totals / len(pairs)
