"""Difference quotients and the softmax between two runs, against 200 digits."""

from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from replacement.layers import BatchTopK, JumpReLU, ReLU, TopK
from replacement.layers.activation import SMOOTH_GATES, Smooth
from replacement.secant.slopes import (
    NEAR,
    SMOOTH_SLOPES,
    cap_slope,
    secant_softmax,
    slope,
)
from tests.attribution.laws import TOLERANCE

Exact = Callable[[Any], Any]
each_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
mpmath.mp.dps = 200  # patterns of scores 400 apart differ in their 175th digit


def _tanh_gelu(z: Any) -> Any:
    root = mpmath.sqrt(2 / mpmath.pi)
    return z / 2 * (1 + mpmath.tanh(root * (z + mpmath.mpf("0.044715") * z**3)))


EXACT: dict[str, Exact] = {
    "gelu": lambda z: z * mpmath.ncdf(z),
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "swish": lambda z: z / (1 + mpmath.exp(-z)),
    "quick_gelu": lambda z: z / (1 + mpmath.exp(-mpmath.mpf("1.702") * z)),
}
FROM = (-6.0, -1.7, -0.75, -1e-4, 0.0, 0.3, 1.0, 2.5, 6.0)
WAYS = (0.0, 1e-12, 5e-7, 9.9e-7, 1.01e-6, 1e-5, 9.9e-4, 1.01e-3, 0.02, 1.0, 7.0, 60.0)
"""How far apart two inputs are, on both sides of where the quotient gives way to the derivative."""


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    start = torch.tensor(FROM, dtype=torch.float64).repeat_interleave(2 * len(WAYS))
    way = torch.tensor([sign * way for way in WAYS for sign in (1, -1)], dtype=torch.float64)
    return start.to(dtype)[None], (start + way.repeat(len(FROM))).to(dtype)[None]


def assert_slopes(found: Tensor, exact: Exact, clean: Tensor, other: Tensor) -> None:
    """Assert (f(z) - f(z′)) / (z - z′), and, times the way, the difference itself.

    A quotient over a short way has lost what rounding takes from two near values.
    """
    bar = TOLERANCE[found.dtype]
    columns = (one.flatten().tolist() for one in (found, clean, other))
    for one, z, z_other in zip(*columns, strict=True):
        a, b = mpmath.mpf(z), mpmath.mpf(z_other)
        expected = mpmath.diff(exact, a) if a == b else (exact(a) - exact(b)) / (a - b)
        assert abs(one - expected) <= 4 * bar * (1 + abs(z)), (z, z_other)
        off = abs(one * (a - b) - (exact(a) - exact(b)))
        assert off <= bar / 100 * (abs(a) + abs(b))


def test_every_smooth_activation_is_looked_at() -> None:
    assert set(EXACT) == set(SMOOTH_GATES) == set(SMOOTH_SLOPES)


@each_type
@pytest.mark.parametrize("name", EXACT)
def test_slopes_of_smooth_activations(name: str, dtype: torch.dtype) -> None:
    clean, other = grid(dtype)
    assert_slopes(slope(Smooth(name), clean, other), EXACT[name], clean, other)


@each_type
@pytest.mark.parametrize("cap", [2.0, 50.0])
def test_slopes_of_soft_caps(cap: float, dtype: torch.dtype) -> None:
    clean, other = grid(dtype)
    found = cap_slope(cap, clean, other)
    assert_slopes(found, lambda z: cap * mpmath.tanh(z / cap), clean, other)


@each_type
def test_slopes_of_relu_are_the_share_of_the_way_above_zero(dtype: torch.dtype) -> None:
    clean, other = grid(dtype)
    columns = (one.flatten().tolist() for one in (slope(ReLU(), clean, other), clean, other))
    for one, z, z_other in zip(*columns, strict=True):
        if z == z_other:
            assert one == (z > 0)
        else:
            exact = (max(mpmath.mpf(z), 0) - max(mpmath.mpf(z_other), 0)) / (
                mpmath.mpf(z) - mpmath.mpf(z_other)
            )
            assert abs(one - exact) <= TOLERANCE[dtype] / 100


def test_where_the_quotient_gives_way() -> None:
    """Just inside it is the derivative at the midpoint, to the last bit; just outside it is not."""
    assert {torch.float32: 1e-3, torch.float64: 1e-6} == NEAR
    z = torch.tensor([[0.5]], dtype=torch.float64)
    for way, near in ((0.99e-6, True), (1.01e-6, False)):
        at_midpoint = SMOOTH_SLOPES["gelu"](z + way / 2)
        assert bool(slope(Smooth("gelu"), z, z + way) == at_midpoint) is near


@pytest.mark.parametrize("switching", [TopK(2), BatchTopK(0.1), JumpReLU(torch.zeros(1))], ids=str)
def test_what_switches_has_no_slope(switching: Any) -> None:
    with pytest.raises(TypeError, match="has no slope: it switches"):
        slope(switching, torch.ones(1), torch.zeros(1))


# ---------------------------------------------------------------- softmax


def exact_patterns(scores: Tensor, visible: Tensor) -> list[list[Any]]:
    """Return the softmax over visible keys: exp, sum and quotient with 200 digits."""
    patterns = []
    for row, seen in zip(scores.tolist(), visible.tolist(), strict=True):
        powers = [mpmath.exp(mpmath.mpf(s)) if v else 0 for s, v in zip(row, seen, strict=True)]
        total = mpmath.fsum(powers)
        patterns.append([power / total for power in powers])
    return patterns


def assert_softmax(clean: Tensor, other: Tensor, visible: Tensor, gradient: Tensor) -> None:
    """Assert gradient · Δpattern = back(gradient) · Δscores, query by query, and the means L."""
    secant = secant_softmax(clean, other, visible)
    bar, back = TOLERANCE[clean.dtype], secant.back(gradient)
    assert bool((secant.weight[~visible] == 0).all()) and bool((back[~visible] == 0).all())
    pairs = zip(exact_patterns(clean, visible), exact_patterns(other, visible), strict=True)
    for query, (here, there) in enumerate(pairs):
        keys = visible[query].nonzero().flatten().tolist()
        expected, found, size = mpmath.mpf(0), mpmath.mpf(0), mpmath.mpf(0)
        for key in keys:
            p, p_other = here[key], there[key]
            way = mpmath.log(p) - mpmath.log(p_other)
            mean = p if way == 0 else (p - p_other) / way
            # below what the type holds a pattern is 0 and so is its mean
            tiny = torch.finfo(clean.dtype).tiny
            assert abs(float(secant.weight[query, key]) - mean) <= bar / 10 * mean + tiny
            way = mpmath.mpf(float(clean[query, key])) - mpmath.mpf(float(other[query, key]))
            expected += float(gradient[query, key]) * (p - p_other)
            found += float(back[query, key]) * way
            size += abs(float(back[query, key]) * way) + abs(float(gradient[query, key]) * p)
        assert abs(found - expected) <= bar * size


def causal(n_pos: int) -> Tensor:
    return torch.ones(n_pos, n_pos, dtype=torch.bool).tril()


def scores_of(seed: int, spread: float, n_pos: int = 5) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n_pos, n_pos, generator=source, dtype=torch.float64)


@each_type
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("spread", [1e-8, 1e-3, 1.0, 28.0, 100.0])
@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-2, 1.0, 100.0])
def test_the_softmax(apart: float, spread: float, offset: float, dtype: torch.dtype) -> None:
    for seed in range(0, 30, 3):
        clean = (scores_of(seed, spread) + offset).to(dtype)
        other = (scores_of(seed, spread) + offset + scores_of(seed + 1, apart)).to(dtype)
        assert_softmax(clean, other, causal(5), scores_of(seed + 2, 1.0).to(dtype))


@each_type
def test_a_different_offset_for_each_run(dtype: torch.dtype) -> None:
    """A common offset of all scores of a row changes no pattern."""
    clean, gradient = scores_of(1, 1.0).to(dtype), scores_of(2, 1.0).to(dtype)
    secant = secant_softmax(clean, clean + 64, causal(5))
    patterns = clean.masked_fill(~causal(5), -torch.inf).softmax(-1)
    torch.testing.assert_close(secant.weight, patterns, rtol=1e-5, atol=0)
    assert_softmax(clean, clean + 64, causal(5), gradient)
    total = secant.back(gradient).sum(-1)
    assert total.abs().max() <= TOLERANCE[dtype] / 100


@each_type
def test_windows_hide_keys_from_the_left_too(dtype: torch.dtype) -> None:
    visible = causal(5) & ~causal(5).tril(-2)
    assert_softmax(
        scores_of(1, 3.0).to(dtype), scores_of(2, 3.0).to(dtype), visible, scores_of(3, 1).to(dtype)
    )


@each_type
def test_a_pattern_that_moves_from_one_key_to_another(dtype: torch.dtype) -> None:
    """Where gradients of a saturated softmax are zero the secant is not."""
    clean = torch.tensor([[100.0, 0.0], [100.0, 0.0]], dtype=dtype)
    other = clean.flip(-1)
    gradient = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=dtype)
    assert_softmax(clean, other, causal(2), gradient)
    back = secant_softmax(clean, other, causal(2)).back(gradient)
    assert float(back[1] @ (clean - other)[1]) == pytest.approx(1.0, rel=1e-6)


@given(
    rows=some.lists(
        some.tuples(some.floats(-100, 100), some.floats(-100, 100), some.floats(-2, 2)),
        min_size=1,
        max_size=6,
    )
)
@each_type
def test_any_scores(dtype: torch.dtype, rows: list[tuple[float, float, float]]) -> None:
    clean, other, gradient = (
        torch.tensor([column], dtype=torch.float64).to(dtype) for column in zip(*rows, strict=True)
    )
    assert_softmax(clean, other, torch.ones_like(clean, dtype=torch.bool), gradient)
