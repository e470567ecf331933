"""What features did over a stream of prompts: counts, histograms, best examples; fixed size."""

import torch
from jaxtyping import Int
from torch import Tensor

from replacement.layers import Active

LOWEST, HIGHEST = -10, 10
EDGES = [0.0, *(2.0**power for power in range(LOWEST, HIGHEST + 1))]
"""|activation| from which the bins of a histogram go; the last one has no upper end."""


class PlaceStatistics:
    """Running statistics of the features of one sublayer."""

    def __init__(self, n_features: int, top: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(n_features, *shape, dtype=dtype, device=device)

        self.fired, self.total = zeros(dtype=torch.int64), zeros()
        self.histogram = zeros(len(EDGES), dtype=torch.int64)
        self.activation = zeros(top)
        """Of the strongest examples, one a prompt, strongest |activation| first; 0 for none."""
        self.prompt, self.pos = (zeros(top, dtype=torch.int64) - 1 for _ in range(2))

    def add(self, active: Active, prompt: int) -> None:
        """Add one prompt's nodes; `prompt` is its number."""
        there = active.activation != 0
        index, pos = active.index[there], active.pos[there]
        activation = active.activation[there].double()
        size = activation.abs()
        self.fired.index_add_(0, index, (activation > 0).long())
        self.total.index_add_(0, index, activation.clamp(min=0))
        bins = (torch.log2(size).floor() - LOWEST + 1).clamp(0, len(EDGES) - 1).long()
        flat = self.histogram.view(-1)
        flat.index_add_(0, index * len(EDGES) + bins, torch.ones_like(index))
        best = torch.zeros_like(self.total).scatter_reduce_(0, index, size, "amax")
        rises = (size == best[index]) & (size > self.activation[:, -1].abs()[index])
        self._insert(index[rises], pos[rises], activation[rises], prompt)

    def _insert(
        self,
        index: Int[Tensor, " node"],
        pos: Int[Tensor, " node"],
        activation: Tensor,
        prompt: int,
    ) -> None:
        """Put peaks among the strongest examples; of equal peaks of one feature the first."""
        feature, group = index.unique(return_inverse=True)
        number = torch.arange(len(index), device=index.device)
        first = torch.full_like(feature, len(index)).scatter_reduce_(0, group, number, "amin")
        held = (self.activation, self.prompt, self.pos)
        added = (activation[first], torch.full_like(feature, prompt), pos[first])
        both = [
            torch.cat([old[feature], new[:, None]], dim=1)
            for old, new in zip(held, added, strict=True)
        ]
        order = both[0].abs().sort(dim=1, descending=True, stable=True).indices[:, :-1]
        for old, joined in zip(held, both, strict=True):
            old[feature] = joined.gather(1, order)
