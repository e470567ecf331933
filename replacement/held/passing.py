"""What a sublayer carries back without stopping at a node: the model's heads, and skips.

Between one node and the next a cotangent passes only these. A `Passage` takes batches of them:
`gradient[batch, pos]` holds the positions up to the one that a batch started from, since nothing
goes to a later one. Gains, centring and weights are multiplied once, positions stay factors.
"""

import abc
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Cone(NamedTuple):
    """Cotangents of `n_targets` that start at one position, `n_pos - 1`, and see those before."""

    n_targets: int
    n_pos: int


class LowRank(NamedTuple):
    """Cotangents over positions as `sum over part of factor[part, pos] · vector[target, part]`."""

    vector: Float[Tensor, "target part d_model"]
    factors: list[Float[Tensor, "part pos"]]
    """One a cone."""


class Scratch:
    """Buffers by name, kept between batches: fresh memory costs more than a product's tenth."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self.width = like.shape[-1]
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of a shape, holding what it held last."""
        needed = 1
        for size in shape:
            needed *= size
        if name not in self._kept or len(self._kept[name]) < needed:
            self._kept[name] = self._like.new_empty(needed)
        return self._kept[name][:needed].view(shape)


class Passage(abc.ABC):
    """The pass-through part of a sublayer, as a linear map of cotangents.

    `gradient` has the rows of several cones below each other, each `[n_targets, n_pos]`.
    """

    spreads: bool
    """True if it carries to other positions than a cotangent's own."""
    constant: Float[Tensor, "pos d_model"]
    """What it adds to the stream that no node wrote: norm and value biases."""

    @abc.abstractmethod
    def back(
        self,
        gradient: Float[Tensor, "row d_model"],
        cones: Sequence[Cone],
        onto: Float[Tensor, "row d_model"],
        scratch: Scratch,
    ) -> None:
        """Add what is carried of `gradient` to `onto`, which may be `gradient` itself."""

    @abc.abstractmethod
    def first(
        self,
        gradient: Float[Tensor, "target d_model"],
        cones: Sequence[Cone],
        onto: Float[Tensor, "row d_model"],
    ) -> "LowRank | None":
        """Add what is carried of cotangents that lie at the last position of their cone only.

        `onto` has one row a target where nothing spreads, else the rows of `back`. Returned is the
        sum of both as few vectors a target, where it spreads.
        """
