"""The control that any method must beat: scores drawn at random."""

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.edges import EdgeGraph


def random_scores(graph: EdgeGraph, seed: int) -> Float[Tensor, " edge"]:
    """Return a standard normal number per edge; the same seed gives the same ones."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(graph.n_edges, generator=source)
