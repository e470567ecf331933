"""Prompts and their counterfactuals as one batch, with the number that circuits are to explain."""

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts of equal length, padded on the right.

    What stands behind `end` is never seen by it (attention is causal), so it may be anything.
    """

    clean: Int[Tensor, "batch pos"]
    corrupt: Int[Tensor, "batch pos"]
    end: Int[Tensor, " batch"]
    """Where the answer is predicted."""
    weights: Float[Tensor, "batch d_vocab"]
    """The metric: this row · logits, or · probabilities."""
    probability: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for prompts of different lengths or an end outside them."""
        if self.clean.shape != self.corrupt.shape:
            raise ValueError(
                f"Pairs: clean prompts {tuple(self.clean.shape)} and corrupted ones "
                f"{tuple(self.corrupt.shape)}; an edge is patched position by position, so give "
                "counterfactuals of the same lengths."
            )
        if int(self.end.min()) < 0 or int(self.end.max()) >= self.clean.shape[1]:
            raise ValueError(
                f"Pairs: answers at {int(self.end.min())} to {int(self.end.max())} in prompts of "
                f"{self.clean.shape[1]} tokens. Positions count from 0."
            )

    def __len__(self) -> int:
        return len(self.end)

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """True up to where the answer is predicted."""
        return torch.arange(self.clean.shape[1]) <= self.end[:, None]

    def metric(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """Return the metric of every pair from the logits at its end."""
        read = logits.softmax(-1) if self.probability else logits
        return (self.weights.to(read.dtype) * read).sum(-1)

    def part(self, rows: slice) -> "Pairs":
        """Return some of the pairs, cut to the longest of them."""
        end = self.end[rows]
        longest = int(end.max()) + 1
        return dataclasses.replace(
            self,
            clean=self.clean[rows, :longest],
            corrupt=self.corrupt[rows, :longest],
            end=end,
            weights=self.weights[rows],
        )

    def parts(self, size: int) -> list["Pairs"]:
        """Return the pairs in batches of at most `size`."""
        return [self.part(slice(start, start + size)) for start in range(0, len(self), size)]

    def by_length(self) -> "Pairs":
        """Return the pairs sorted by length, so that batches of them hold little padding."""
        order = self.end.argsort(stable=True)
        return dataclasses.replace(
            self,
            clean=self.clean[order],
            corrupt=self.corrupt[order],
            end=self.end[order],
            weights=self.weights[order],
        )
