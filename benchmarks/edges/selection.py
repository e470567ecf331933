"""From a score per edge to a circuit of a given size."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.edges.graph import EdgeGraph


def top_circuit(
    graph: EdgeGraph, scores: Float[Tensor, " edge"], count: int
) -> Bool[Tensor, " edge"]:
    """Return the `count` edges of largest |score|, less those left dangling.

    MIB's way: the x axis counts the edges asked for, and what lies on no path from input to output
    within them is taken out afterwards. Ties go to the lower number.
    """
    chosen = scores.abs().argsort(descending=True, stable=True)[:count]
    mask = torch.zeros(graph.n_edges, dtype=torch.bool)
    mask[chosen] = True
    return graph.connected(mask)


def greedy_circuit(
    graph: EdgeGraph, scores: Float[Tensor, " edge"], count: int
) -> Bool[Tensor, " edge"]:
    """Return `count` edges taken one by one, always the strongest into a node already reached.

    From the output down (Hanna et al. 2024); then what the input does not reach is taken out.
    """
    strength = scores.abs()
    mask = torch.zeros(graph.n_edges, dtype=torch.bool)
    reached = torch.zeros(graph.n_writers + 1, dtype=torch.bool)
    reached[graph.n_writers] = True
    for _ in range(min(count, graph.n_edges)):
        open_edges = reached[graph.reader] & ~mask
        best = int(strength.masked_fill(~open_edges, -torch.inf).argmax())
        mask[best] = True
        reached[graph.writer[best]] = True
    return graph.connected(mask)
