"""Norms between two runs: summands of a difference make the difference of what the norm returns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from replacement.layers import HeadNorm
from replacement.norms import NO_NORM, Norm
from replacement.secant.norms import SecantNorm, secant_head_norm, secant_norm
from tests.attribution.laws import TOLERANCE

WIDTH, N_POS = 6, 3
WEIGHTS = (0.0, 0.3, 0.5, 1.0)
APART = (1.0, 1e-3, 1e-6, 100.0, 0.0)
"""How far apart the two inputs are; 0 for equal ones."""
each_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
each_way = pytest.mark.parametrize("apart", APART)
each_kind = pytest.mark.parametrize("centred", [True, False], ids=["LayerNorm", "RMSNorm"])


def drawn(*shape: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64)


def norm_of(centred: bool, dtype: torch.dtype, seed: int, eps: float = 1e-5) -> Norm:
    gain, bias = (1 + drawn(WIDTH, seed=seed)).to(dtype), drawn(WIDTH, seed=seed + 1).to(dtype)
    return Norm(gain, bias if centred else None, eps, centred)


def inputs(
    seed: int, apart: float, dtype: torch.dtype, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    clean = offset + drawn(N_POS, WIDTH, seed=seed)
    return clean.to(dtype), (clean + apart * drawn(N_POS, WIDTH, seed=seed + 1)).to(dtype)


def by_definition(norm: Norm, x: Tensor) -> Tensor:
    """Return what a norm makes of `x`, row by row in float64."""
    rows = []
    for row in x.double():
        centred = row - sum(row.tolist()) / len(row) if norm.centred else row
        deviation = (sum(number**2 for number in centred.tolist()) / len(row) + norm.eps) ** 0.5
        rows.append(centred / deviation * (1 if norm.gain is None else norm.gain.double()))
    return torch.stack(rows)


def summands(whole: Tensor, seed: int) -> Tensor:
    """Return five random parts of a difference."""
    parts = drawn(4, *whole.shape, seed=seed).to(whole.dtype) * whole.abs().max()
    return torch.cat([parts, (whole - parts.sum(0))[None]])


def assert_makes(made: Tensor, expected: Tensor) -> None:
    """Assert that parts sum to what is expected, to the bar of all |parts|."""
    scale = made.double().abs().sum(0).amax(-1, keepdim=True) + 1e-300
    off = (made.double().sum(0) - expected).abs()
    assert bool((off <= TOLERANCE[made.dtype] * scale).all())


@each_type
@each_way
@each_kind
@pytest.mark.parametrize("weight", WEIGHTS)
def test_parts_of_a_difference_make_the_difference(
    weight: float, centred: bool, apart: float, dtype: torch.dtype
) -> None:
    for seed in range(0, 40, 4):
        norm = norm_of(centred, dtype, seed)
        clean, other = inputs(seed, apart, dtype)
        secant, places = secant_norm(norm, clean, other, weight), torch.arange(N_POS)
        parts = summands(clean - other, seed + 3)
        made = torch.stack([secant.forward(part, places) for part in parts])
        assert_makes(made, by_definition(norm, clean) - by_definition(norm, other))


@each_type
def test_a_large_common_offset_is_centred_away(dtype: torch.dtype) -> None:
    offset = 1e4 if dtype == torch.float64 else 1e2
    norm = norm_of(True, dtype, 7)
    clean, other = inputs(11, 1.0, dtype, offset)
    made = secant_norm(norm, clean, other, 0.5).forward(clean - other, torch.arange(N_POS))
    assert_makes(made[None], by_definition(norm, clean) - by_definition(norm, other))


@given(
    seed=some.integers(0, 10_000),
    weight=some.floats(0, 1),
    eps=some.sampled_from([0.0, 1e-12, 1e-5, 0.1]),
    magnitude=some.floats(-4, 4),
)
def test_each_part_by_the_product_rule(
    seed: int, weight: float, eps: float, magnitude: float
) -> None:
    """Δ(c·s), the change of s by the quotient of its own values: no closed form is used here."""
    norm = norm_of(bool(seed % 2), torch.float64, seed, eps)
    clean, other = (10**magnitude * x for x in inputs(seed, 1.0, torch.float64))
    secant = secant_norm(norm, clean, other, weight)
    part, assert_gain = drawn(N_POS, WIDTH, seed=seed + 9), norm.gain
    assert assert_gain is not None
    made = secant.forward(part, torch.arange(N_POS))
    for pos in range(N_POS):
        c, c_other, d = (norm.centre(x[pos]) for x in (clean, other, part))
        squares = [float((one @ one) / WIDTH) + eps for one in (c, c_other)]
        s, s_other = (square**-0.5 for square in squares)
        change = float((c + c_other) @ d) / WIDTH  # of the mean square, linear in d
        way = (s - s_other) / (squares[0] - squares[1]) * change
        scaled = (weight * s + (1 - weight) * s_other) * d
        leant = ((1 - weight) * c + weight * c_other) * way
        size = (scaled.abs() + leant.abs()).max() * assert_gain.abs().max()
        # the quotient loses what its two values share; the closed form does not
        lost = 1 + sum(squares) / abs(squares[0] - squares[1])
        off = (made[pos] - (scaled + leant) * assert_gain).abs().max()
        assert off <= 1e-12 * lost * size


def matrix_of(secant: SecantNorm, pos: int) -> Tensor:
    """Return the map of one position, [output, input]."""
    return secant.forward(torch.eye(WIDTH, dtype=torch.float64), torch.full((WIDTH,), pos)).T


@each_kind
def test_back_is_the_transposed_map(centred: bool) -> None:
    secant = secant_norm(
        norm_of(centred, torch.float64, 3), *inputs(5, 1.0, torch.float64), weight=0.3
    )
    gradient = drawn(N_POS, WIDTH, seed=1)
    for pos in range(N_POS):
        expected = matrix_of(secant, pos).T @ gradient[pos]
        torch.testing.assert_close(secant.back(gradient)[pos], expected)
        at = secant.back_at(gradient[pos][None], torch.tensor([pos]))
        torch.testing.assert_close(at[0], expected)


def test_between_equal_inputs_it_is_the_derivative() -> None:
    norm = norm_of(True, torch.float64, 3)
    clean, _ = inputs(5, 1.0, torch.float64)
    secant = secant_norm(norm, clean, clean.clone(), 0.5)
    for pos in range(N_POS):
        exact = torch.autograd.functional.jacobian(
            lambda x: norm.apply(x, norm.scale(x)), clean[pos]
        )
        torch.testing.assert_close(matrix_of(secant, pos), exact)


def test_where_there_is_no_norm_nothing_changes() -> None:
    clean, other = inputs(5, 1.0, torch.float64)
    secant = secant_norm(NO_NORM, clean, other, 0.3)
    assert torch.equal(secant.forward(clean - other, torch.arange(N_POS)), clean - other)
    assert torch.equal(secant.back(clean), clean)


@each_type
@each_way
@pytest.mark.parametrize("weight", WEIGHTS)
def test_norms_of_queries_and_keys(weight: float, apart: float, dtype: torch.dtype) -> None:
    """Per head and position, over the coordinates of the head."""
    n_heads = 2
    for seed in range(0, 40, 4):
        norm = HeadNorm((1 + drawn(n_heads, WIDTH, seed=seed)).to(dtype), 1e-3)
        clean = drawn(n_heads, N_POS, WIDTH, seed=seed + 1)
        other = (clean + apart * drawn(n_heads, N_POS, WIDTH, seed=seed + 2)).to(dtype)
        clean = clean.to(dtype)
        scales = norm.scale(clean), norm.scale(other)
        secant = secant_head_norm(norm.gain, scales, (clean, other), weight)
        parts, places = summands(clean - other, seed + 3), torch.arange(N_POS)
        made = torch.stack([secant.forward(part, places) for part in parts])
        flat = Norm(None, None, norm.eps, centred=False)
        for head in range(n_heads):
            expected = by_definition(flat, clean[head]) - by_definition(flat, other[head])
            assert_makes(made[:, head], expected * norm.gain[head].double())
        gradient = drawn(n_heads, N_POS, WIDTH, seed=seed + 5).to(dtype)
        forth = (gradient * made[0]).double()
        back = (secant.back(gradient) * parts[0]).double()
        scale = forth.abs().sum() + back.abs().sum()
        assert abs(forth.sum() - back.sum()) <= TOLERANCE[dtype] * scale
