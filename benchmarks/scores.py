"""How circuits and scores are judged: areas under ROC, faithfulness curves, stability.

Definitions as published, sources at each; where several are in use, both are here under names of
their own. Nothing in this file knows a model.
"""

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import bootstrap
from torch import Tensor

Points = list[tuple[float, float]]
"""(false positive rate, true positive rate)."""
MIB_GRID: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which MIB measures a circuit."""
TIES: Final = 1e-6
"""Scores nearer to each other than this share of the largest |score| count as equal."""


def roc_points(
    scores: Float[Tensor, " edge"], truth: Bool[Tensor, " edge"], *, tolerance: int | float = TIES
) -> Points:
    """Return the ROC curve of scores against true edges, (0, 0) and (1, 1) included.

    Without a tolerance, rounding errors rank what a method scores 0: a gradient that vanishes up to
    1e-12 can look perfect. Raises ValueError where all edges are true, or none.

    >>> roc_points(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, True]))
    [(0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0)]
    """
    groups = _ties(scores, truth, tolerance)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    points, right, wrong = [(0.0, 0.0)], 0, 0
    for hits, misses in groups:
        right, wrong = right + hits, wrong + misses
        points.append((wrong / negatives, right / positives))
    return points


def _ties(
    scores: Float[Tensor, " edge"], truth: Bool[Tensor, " edge"], tolerance: int | float
) -> list[tuple[int, int]]:
    """True and false edges of each group of equal scores, highest first."""
    if not 0 < int(truth.sum()) < len(truth):
        raise ValueError(
            f"{int(truth.sum())} of {len(truth)} edges are true: a ROC curve needs true ones and "
            "false ones."
        )
    order = scores.argsort(descending=True, stable=True)
    near = tolerance * float(scores.abs().max())
    groups: list[list[int]] = []
    first = torch.inf
    for score, hit in zip(scores[order].tolist(), truth[order].tolist(), strict=True):
        if first - score > near or not groups:
            groups.append([0, 0])
            first = score
        groups[-1][0 if hit else 1] += 1
    return [(hits, misses) for hits, misses in groups]


def pareto(points: Points) -> Points:
    """Return the points that none beats in both rates, by false then true positive rate.

    Sweeps over thresholds are not nested, so a curve may fall back (Conmy et al. 2023).
    """
    kept, best = [], -1.0
    for _, column in groupby(sorted(set(points)), key=lambda point: point[0]):
        heights = list(column)
        kept += [point for point in heights if point[1] >= best]
        best = max(best, heights[-1][1])
    return kept


def pessimistic_area(points: Points) -> float:
    """Return Σ (1 − xᵢ)(yᵢ − yᵢ₋₁) over the Pareto front: ACDC's "AUC", a lower stair.

    >>> pessimistic_area([(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
    0.25
    >>> pessimistic_area([(0.0, 0.0), (1.0, 1.0)])
    0.0
    """
    return sum((1 - x) * (y - before) for (_, before), (x, y) in pairwise(pareto(points)))


def trapezoid_area(points: Points) -> float:
    """Return the area under the straight lines between the points of the Pareto front.

    >>> trapezoid_area([(0.0, 0.0), (1.0, 1.0)])
    0.5
    """
    ends = pairwise(pareto(points))
    return sum((x - a) * (y + b) / 2 for (a, b), (x, y) in ends)


def average_precision(
    scores: Float[Tensor, " edge"], truth: Bool[Tensor, " edge"], *, tolerance: int | float = TIES
) -> float:
    """Return Σ (recallᵢ − recallᵢ₋₁) · precisionᵢ, equal scores taken together.

    Raises ValueError where all edges are true, or none.
    """
    area, right, taken = 0.0, 0, 0
    for hits, misses in _ties(scores, truth, tolerance):
        right, taken = right + hits, taken + hits + misses
        area += hits / int(truth.sum()) * right / taken
    return area


def area_intervals(
    scores: Float[Tensor, " edge"],
    truth: Bool[Tensor, " edge"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile intervals of pessimistic area and average precision.

    True and false edges are drawn with replacement, apart, so that every draw has both; ties are
    those of the whole. Raises ValueError where all edges are true, or none.
    """
    groups = np.array(_ties(scores, truth, TIES))
    source = np.random.default_rng(seed)
    hits, misses = (
        source.multinomial(int(side.sum()), side / side.sum(), size=resamples) for side in groups.T
    )
    right, wrong = hits.cumsum(1), misses.cumsum(1)
    rise = hits / hits.sum(1, keepdims=True)
    areas = {
        "pessimistic area": (1 - wrong / misses.sum(1, keepdims=True)) * rise,
        "average precision": rise * right / np.maximum(right + wrong, 1),
    }
    return {
        name: (float(low), float(high))
        for name, area in areas.items()
        for low, high in [np.percentile(area.sum(1), [2.5, 97.5])]
    }


def kl_divergence(
    whole: Float[Tensor, "batch d_vocab"], circuit: Float[Tensor, "batch d_vocab"]
) -> float:
    """Return the mean over prompts of D(whole ‖ circuit) in nats, summed over the vocabulary."""
    logs = whole.log_softmax(-1), circuit.log_softmax(-1)
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


def faithfulness(circuit: int | float, empty: int | float, whole: int | float) -> float:
    """Return (m(C) − m(∅)) / (m(G) − m(∅)): 0 for everything ablated, 1 for the whole model.

    Raises ValueError where ablating everything changes nothing.
    """
    if whole == empty:
        raise ValueError(
            f"faithfulness: the metric is {whole} for the whole model and with everything ablated. "
            "Give a counterfactual that changes it."
        )
    return (circuit - empty) / (whole - empty)


def cpr(shares: Sequence[float], faithful: Sequence[float]) -> float:
    """Return the circuit performance ratio, ∫ f dk by trapezoids on a linear axis (MIB)."""
    return float(np.trapezoid(faithful, shares))


def cmd(shares: Sequence[float], faithful: Sequence[float]) -> float:
    """Return the circuit-model distance, ∫ |1 − f| dk by trapezoids on a linear axis (MIB).

    A circuit that does nothing until it is whole has .749 on MIB's grid (and a CPR of .25).

    >>> round(cmd(MIB_GRID, [0.0] * 9 + [1.0]), 4)
    0.749
    """
    return float(np.trapezoid(np.abs(1 - np.asarray(faithful)), shares))


def edge_grid(n_edges: int) -> list[int]:
    """Return sizes from 1 edge up to all, three a factor of 10.

    >>> edge_grid(30)
    [1, 2, 5, 10, 20, 30]
    """
    sizes = [step * 10**power for power in range(9) for step in (1, 2, 5)]
    return [*(size for size in sizes if size < n_edges), n_edges]


Performance = Callable[[Bool[Tensor, " edge"]], float]
"""The metric with only the marked edges (or nodes) left."""


def completeness(
    performance: Performance, circuit: Bool[Tensor, " edge"], removed: Bool[Tensor, " edge"]
) -> float:
    """Return |F(C ∖ K) − F(M ∖ K)| (Wang et al. 2022): 0 where nothing outside C does K's work."""
    return abs(performance(circuit & ~removed) - performance(~removed))


def minimality(
    performance: Performance,
    circuit: Bool[Tensor, " edge"],
    one: Bool[Tensor, " edge"],
    removed: Bool[Tensor, " edge"],
) -> float:
    """Return |F(C ∖ (K ∪ v)) − F(C ∖ K)| (Wang et al. 2022): 0 where v is of no use."""
    left = circuit & ~removed
    return abs(performance(left & ~one) - performance(left))


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of the mean under resampling of the values."""
    found = bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def bootstrap_jaccard(
    scores: Float[Tensor, "pair edge"], size: int, *, resamples: int = 20, seed: int = 0
) -> float:
    """Return how alike circuits of one size are between resamples of the pairs.

    The mean over all pairs of resamples of |A ∩ B| / |A ∪ B|, for the `size` edges of largest
    |mean score| of each. Raises ValueError for fewer than two resamples.
    """
    if resamples < 2:
        raise ValueError(f"bootstrap_jaccard(resamples={resamples}): two or more are compared.")
    source = torch.Generator().manual_seed(seed)
    circuits = []
    for _ in range(resamples):
        rows = torch.randint(len(scores), (len(scores),), generator=source)
        strength = scores[rows].mean(0).abs()
        circuits.append(set(strength.argsort(descending=True, stable=True)[:size].tolist()))
    alike = [
        len(one & other) / len(one | other)
        for number, one in enumerate(circuits)
        for other in circuits[:number]
    ]
    return sum(alike) / len(alike)
