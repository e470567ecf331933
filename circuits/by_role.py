"""What is known of nodes by the role of their position, laid into a prompt; which of them to keep.

A *slot* is the number of a role. Scores and means by slot are of a part of the model (its nodes,
skips or errors), so that every prompt whose positions have slots can be filled from them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import bootstrap
from torch import Tensor

from replacement.edits.keeping import Part, Values

Scores = Mapping[Part, Float[Tensor, "pos _"]]
Masks = Mapping[Part, Bool[Tensor, "pos _"]]
BySlot = Mapping[Part, Float[Tensor, "slot _ ..."]]


def active_nodes(values: Values) -> dict[Part, Bool[Tensor, "pos _"]]:
    """Return which nodes are not 0 in a run: active features, all heads and errors."""
    return {
        part: (one if one.dim() == 2 else one.norm(dim=-1)) != 0 for part, one in values.items()
    }


def placed(values: BySlot, slots: Int[Tensor, " pos"]) -> Values:
    """Return what is known by role, at the positions of a prompt."""
    return {part: one[slots] for part, one in values.items()}


def strongest_nodes(scores: Scores, active: Masks, count: int) -> Masks:
    """Return the `count` active nodes of largest score, and what is not active but scores more.

    Of equal scores the first are taken; nodes of score 0 are never chosen. What is not active is
    kept at nothing rather than set to its mean, and does not count.
    """
    candidates = torch.cat([scores[part][mask] for part, mask in active.items()])
    order = candidates.argsort(descending=True, stable=True)[:count]
    chosen = torch.zeros_like(candidates, dtype=torch.bool)
    chosen[order] = candidates[order] > 0
    weakest = max(float(candidates[order[-1]]), 0.0) if len(order) else torch.inf
    sizes = [int(mask.sum()) for mask in active.values()]
    found = {}
    for part, some in zip(active, chosen.split(sizes), strict=True):
        found[part] = ~active[part] & (scores[part] > weakest)
        found[part][active[part]] = some
    return found


def size_of(kept: Masks, active: Masks) -> int:
    """Return how many active nodes are among those kept."""
    return sum(int((kept[part] & active[part]).sum()) for part in active)


def ratio_interval(
    values: np.ndarray, empty: np.ndarray, whole: np.ndarray
) -> tuple[float, float, float]:
    """Return (m(C) - m(∅)) / (m(M) - m(∅)) of means over prompts, and its 95 % interval.

    The interval is a bootstrap's over prompts, NaN for a single one.

    >>> ratio_interval(np.array([1.0, 2.0]), np.zeros(2), np.array([2.0, 4.0]))
    (0.5, 0.5, 0.5)
    """

    def ratio(c: np.ndarray, e: np.ndarray, m: np.ndarray, axis: int = -1) -> Any:
        low = e.mean(axis)
        return (c.mean(axis) - low) / (m.mean(axis) - low)

    share = float(ratio(values, empty, whole))
    if len(values) < 2:
        return share, float("nan"), float("nan")
    found = bootstrap(
        (values, empty, whole),
        ratio,
        paired=True,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return share, float(found.low), float(found.high)
