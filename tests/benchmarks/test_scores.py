"""Scores on the published worked values, and on cases small enough to count."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scores import (
    MIB_GRID,
    area_intervals,
    average_precision,
    bootstrap_interval,
    bootstrap_jaccard,
    cmd,
    completeness,
    cpr,
    edge_grid,
    faithfulness,
    kl_divergence,
    minimality,
    pareto,
    pessimistic_area,
    roc_points,
    trapezoid_area,
)


def truth_of(*true: int, count: int) -> torch.Tensor:
    return torch.tensor([number in true for number in range(count)])


def test_the_published_checks_of_the_pessimistic_area() -> None:
    assert pessimistic_area([(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]) == 0.25
    assert pessimistic_area([(0.0, 0.0), (1.0, 1.0)]) == 0.0
    assert pessimistic_area([(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]) == 1.0
    assert trapezoid_area([(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]) == 0.5


def test_points_that_are_beaten_in_both_rates_are_dropped() -> None:
    points = [(0.0, 0.0), (0.4, 0.3), (0.2, 0.8), (1.0, 1.0)]
    assert pareto(points) == [(0.0, 0.0), (0.2, 0.8), (1.0, 1.0)]
    assert pareto([(0.2, 0.5), (0.2, 0.8)]) == [(0.2, 0.5), (0.2, 0.8)], "equal in one: both stay"
    assert pessimistic_area(points) == pytest.approx(0.8 * 0.8)
    by_hand = 0.2 * 0.8 / 2 + 0.8 * (0.8 + 1) / 2
    assert trapezoid_area(points) == pytest.approx(by_hand)


@given(st.lists(st.integers(-3, 3), min_size=4, max_size=12), st.data())
def test_the_trapezoid_is_the_probability_of_ranking_right(values: list[int], data) -> None:
    """Of a true and a false edge, with ties counted half: the area's other definition."""
    marks = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    if len(set(marks)) == 1:
        marks[0] = not marks[0]
    scores, truth = torch.tensor(values, dtype=torch.float64), torch.tensor(marks)
    points = roc_points(scores, truth)
    area = sum((x - a) * (y + b) / 2 for (a, b), (x, y) in pairwise(points))
    ranked = torch.sign(scores[truth][:, None] - scores[~truth]).mean()
    assert area == pytest.approx(float(ranked + 1) / 2)
    assert pessimistic_area(points) <= trapezoid_area(points) + 1e-12


def test_rounding_does_not_rank_what_is_equal() -> None:
    """What a vanished gradient leaves (EAP on symbolic IOI: .64, or 1.0 without the rule)."""
    truth = truth_of(0, 1, count=6)
    dust = torch.tensor([1.0, 1e-12, 9e-13, 8e-13, 7e-13, 6e-13], dtype=torch.float64)
    assert trapezoid_area(roc_points(dust, truth)) == pytest.approx(0.75)
    assert pessimistic_area(roc_points(dust, truth)) == 0.5
    assert trapezoid_area(roc_points(dust, truth, tolerance=0.0)) == 1.0


def test_average_precision_counted_by_hand() -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert average_precision(scores, truth_of(0, 2, count=4)) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(torch.ones(4), truth_of(0, 2, count=4)) == 0.5
    assert average_precision(scores, truth_of(2, 3, count=4)) < 0.5


def test_divergence_is_summed_over_the_vocabulary_and_directed() -> None:
    whole = torch.tensor([[math.log(0.5), math.log(0.5)]])
    circuit = torch.tensor([[math.log(0.25), math.log(0.75)]]) + 3.0
    assert kl_divergence(whole, circuit) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(circuit, whole) != pytest.approx(kl_divergence(whole, circuit))
    assert kl_divergence(whole, whole + 1) == pytest.approx(0, abs=1e-6)


def test_faithfulness_is_0_ablated_and_1_whole() -> None:
    assert faithfulness(-2, empty=-2, whole=6) == 0
    assert faithfulness(6, empty=-2, whole=6) == 1
    assert faithfulness(10, empty=-2, whole=6) == 1.5


def test_areas_of_known_curves() -> None:
    """MIB's random circuits (.75, .25) are those that do nothing until they are whole."""
    nothing = [0.0] * 9 + [1.0]
    assert cpr(MIB_GRID, nothing) == pytest.approx(0.25)
    assert cmd(MIB_GRID, nothing) == pytest.approx(0.749)
    assert cmd(MIB_GRID, [1.0] * 10) == 0
    assert cpr(MIB_GRID, [1.0] * 10) == pytest.approx(0.999)
    over = [1.5] * 10
    assert cpr(MIB_GRID, over) == pytest.approx(1.5 * 0.999)
    assert cmd(MIB_GRID, over) == pytest.approx(0.5 * 0.999)


def test_sizes_begin_at_one_edge() -> None:
    assert edge_grid(479) == [1, 2, 5, 10, 20, 50, 100, 200, 479]
    assert edge_grid(1) == [1]


def test_completeness_and_minimality_of_a_backup() -> None:
    """Edge 0 or its backup 1 suffices; 2 does nothing."""

    def performance(mask: torch.Tensor) -> float:
        return float(mask[0] | mask[1])

    circuit, backup = truth_of(0, 2, count=3), truth_of(1, count=3)
    assert completeness(performance, circuit, truth_of(0, count=3)) == 1
    assert completeness(performance, circuit | backup, truth_of(0, count=3)) == 0
    nothing = truth_of(count=3)
    assert minimality(performance, circuit, truth_of(0, count=3), nothing) == 1
    assert minimality(performance, circuit | backup, truth_of(0, count=3), nothing) == 0
    assert minimality(performance, circuit | backup, truth_of(0, count=3), backup) == 1
    assert minimality(performance, circuit, truth_of(2, count=3), nothing) == 0


def test_intervals_cover_the_mean_and_shrink() -> None:
    few, many = list(range(10)), list(range(10)) * 40
    intervals = [bootstrap_interval([float(one) for one in values]) for values in (few, many)]
    for low, high in intervals:
        assert low < 4.5 < high
    assert intervals[1][1] - intervals[1][0] < (intervals[0][1] - intervals[0][0]) / 3


def test_resampled_circuits_are_alike_where_pairs_agree() -> None:
    agreeing = torch.arange(20.0).repeat(30, 1)
    assert bootstrap_jaccard(agreeing, 5) == 1
    noise = torch.randn(30, 200, generator=torch.Generator().manual_seed(1))
    assert bootstrap_jaccard(noise, 5) < 0.5
    assert bootstrap_jaccard(noise, 200) == 1


def test_the_front_is_what_no_point_beats_in_both_rates() -> None:
    """Against the definition, point by point, with ties in either rate."""
    source = np.random.default_rng(0)
    for _ in range(30):
        points = [(float(x), float(y)) for x, y in source.integers(0, 6, size=(12, 2)) / 5]
        kept = {(x, y) for x, y in points if not any(a < x and b > y for a, b in points)}
        assert pareto(points) == sorted(kept)


def test_intervals_are_of_areas_over_drawn_edges() -> None:
    source = torch.Generator().manual_seed(0)
    truth = torch.arange(200) < 20
    scores = torch.randn(200, generator=source) + 1.5 * truth
    found = area_intervals(scores, truth)
    draws = np.random.default_rng(1)
    slow: dict[str, list[float]] = {"pessimistic area": [], "average precision": []}
    for _ in range(300):
        rows = torch.tensor(np.r_[draws.integers(0, 20, 20), draws.integers(20, 200, 180)])
        slow["pessimistic area"].append(pessimistic_area(roc_points(scores[rows], truth[rows])))
        slow["average precision"].append(average_precision(scores[rows], truth[rows]))
    for name, (low, high) in found.items():
        assert low == pytest.approx(np.percentile(slow[name], 2.5), abs=0.04), name
        assert high == pytest.approx(np.percentile(slow[name], 97.5), abs=0.04), name
    assert found == area_intervals(scores, truth)
    perfect = area_intervals(truth.float(), truth)
    assert set(perfect.values()) == {(1.0, 1.0)}
