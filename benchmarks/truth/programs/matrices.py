"""The small matrices that heads and neurons are wired by."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.truth.program import SHARP
from benchmarks.truth.wiring import ONE, Matrices


def picked(size: int, places: Sequence[int], weight: int | float = 1.0) -> Float[Tensor, "_ _"]:
    """Return a matrix of `size` rows whose column `j` is `weight` at row `places[j]`.

    >>> picked(3, [2, 0]).tolist()
    [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    """
    made = torch.zeros(size, len(places), dtype=torch.float64)
    made[list(places), range(len(places))] = weight
    return made


def flag(size: int, places: Sequence[int], weight: int | float = 1.0) -> Float[Tensor, "_ _"]:
    """Return one column: `weight` at the rows in `places`."""
    return picked(size, places, weight).sum(1, keepdim=True)


def row(values: Sequence[int | float]) -> Float[Tensor, "_ _"]:
    """Return one row: a bias, or what a single channel writes."""
    return torch.tensor([list(values)], dtype=torch.float64)


def beside(*columns: Float[Tensor, "_ _"]) -> Float[Tensor, "_ _"]:
    """Return matrices side by side: the channels of a head one after another."""
    return torch.cat(columns, dim=1)


def none(size: int, channels: int) -> Float[Tensor, "_ _"]:
    """Return zeros: a variable that these channels do not read."""
    return torch.zeros(size, channels, dtype=torch.float64)


def resting(size: int, channels: int, weight: int | float = SHARP / 2) -> tuple[Matrices, Matrices]:
    """Return the query's bias and what a key reads of tokens to look at `<bos>` for want of better.

    `<bos>` is word 0 of a vocabulary of `size`; the score is `weight`, in a channel of its own
    behind `channels` others.
    """
    query = {ONE: beside(none(1, channels), row([weight]))}
    return query, {"token": beside(none(size, channels), flag(size, [0]))}


def steps(thresholds: Sequence[float], slope: float) -> tuple[Float[Tensor, "_ _"], Matrices]:
    """Return what pairs of neurons read of a number, and their bias, to be steps between 0 and 1.

    `relu(slope · (x − t) + ½) − relu(slope · (x − t) − ½)` is 0 below a threshold t by 1/(2·slope)
    and 1 above it by as much. The neurons that count positively come first: what they write is
    `stepped(matrix)`.
    """
    read = row([slope] * 2 * len(thresholds))
    bias = [-slope * one + half for half in (0.5, -0.5) for one in thresholds]
    return read, {ONE: row(bias)}


def stepped(writes: Float[Tensor, "step width"]) -> Float[Tensor, "_ width"]:
    """Return what the neurons of `steps` write so that step `i` writes row `i`."""
    return torch.cat([writes, -writes])


def between(labels: Sequence[int], size: int) -> Float[Tensor, "step width"]:
    """Return what successive steps write so that the last step taken is the only label said.

    >>> between([1, 0], 2).tolist()
    [[0.0, 1.0], [1.0, -1.0]]
    """
    said = picked(size, labels).T
    return said - torch.cat([none(1, size), said[:-1]])
