"""Where heads look, between two runs: from differences of normed inputs to those of patterns."""

import dataclasses

import pytest
import torch
from torch import Tensor

from replacement.layers import QueryKey
from replacement.secant.looking import SecantLook, secant_look
from tests.attribution.by_hand import pattern_by_hand, sides_by_hand, turned_by_hand
from tests.attribution.laws import TOLERANCE
from tests.random_layers import D_QK, LORSAS, random_lorsa, random_rotary
from tests.secant.pairs import RULES

WIDTH, N_POS = 8, 5
TURNED = ("half", "adjacent", "partial", "llama3")
each_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
each_kind = pytest.mark.parametrize("kind", LORSAS)


def heads_of(kind: str, dtype: torch.dtype, cap: float | None, sharper: float = 1.0) -> QueryKey:
    heads = random_lorsa(LORSAS[kind], WIDTH, seed=3, dtype=dtype).query_key
    return dataclasses.replace(heads, soft_cap=cap, scale=sharper * heads.scale)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def pattern_of(heads: QueryKey, y: Tensor) -> Tensor:
    """Return the pattern in float64, loops over heads, queries and keys."""
    wide = as_double(heads)
    sides = sides_by_hand(wide, y.double())
    if heads.soft_cap is None:
        return pattern_by_hand(sides, wide.scale, wide.window)
    scores = wide.scale * sides.query @ sides.key.transpose(1, 2)
    capped = heads.soft_cap * torch.tanh(scores / heads.soft_cap)
    return capped.masked_fill(~wide.visible(len(y)), -torch.inf).softmax(-1)


def as_double(heads: QueryKey) -> QueryKey:
    """Return the same heads, their stored numbers in float64."""
    found = {}
    for field in dataclasses.fields(heads):
        value = getattr(heads, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value.double()
        elif dataclasses.is_dataclass(value):
            parts = vars(value).items()
            wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in parts}
            found[field.name] = type(value)(**wide)
    return dataclasses.replace(heads, **found)


@each_type
@each_kind
@pytest.mark.parametrize("cap", [None, 1.5], ids=["", "soft-cap"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sharper", [1.0, 30.0], ids=["", "sharp"])
def test_differences_of_patterns_come_from_those_of_inputs(
    sharper: float, rule: str, cap: float | None, kind: str, dtype: torch.dtype
) -> None:
    """gradient · Δpattern = back(gradient) · Δinput, for scores up to hundreds apart."""
    heads = heads_of(kind, dtype, cap, sharper)
    clean, other = (drawn(N_POS, WIDTH, seed=seed, dtype=dtype) for seed in (1, 2))
    look = secant_look(heads, clean, other, RULES[rule])
    gradient = drawn(heads.n_heads, N_POS, N_POS, seed=4, dtype=dtype)
    change = pattern_of(heads, clean) - pattern_of(heads, other)
    at_input = look.back(look.at_scores(gradient))
    terms = at_input.double() * (clean - other).double()
    scale = terms.abs().sum() + (gradient.double() * change).abs().sum()
    off = abs(terms.sum() - (gradient.double() * change).sum())
    # a score's own rounding is as large as the score: sharp ones cost digits in float32
    assert off <= TOLERANCE[dtype] * scale
    assert change.abs().max() > 0.05


def scores_from(look: SecantLook, side: str, way: Tensor) -> Tensor:
    """Return what a difference of inputs does to the scores by way of queries or keys."""
    places = torch.arange(N_POS)
    n_heads = look.query.mean.shape[0]
    rows = []
    for head in range(n_heads):
        key_head = head // look.group
        query, key = look.query.mean[head], look.key.mean[key_head]
        if side == "query":
            query = look.query.forward(way, places)[head]
        else:
            key = look.key.forward(way, places)[key_head]
        rows.append(query @ key.T)
    return torch.stack(rows)


@each_kind
@pytest.mark.parametrize("rule", RULES)
def test_differences_of_scores_come_by_queries_and_by_keys(rule: str, kind: str) -> None:
    """Part by part: the edges with via q and k are made of these."""
    heads = heads_of(kind, torch.float64, None)
    clean, other = (drawn(N_POS, WIDTH, seed=seed) for seed in (1, 2))
    look = secant_look(heads, clean, other, RULES[rule])
    sides = [sides_by_hand(heads, y) for y in (clean, other)]
    exact = [one.query @ one.key.transpose(1, 2) for one in sides]
    made = sum(scores_from(look, side, clean - other) for side in ("query", "key"))
    torch.testing.assert_close(made, exact[0] - exact[1], rtol=0, atol=1e-12)
    apart = (clean - other) * torch.tensor([[0.2], [0.0], [0.7], [0.0], [1.0]])
    by_query = scores_from(look, "query", apart)
    gradient = drawn(*by_query.shape, seed=5)
    torch.testing.assert_close(
        (gradient * (by_query + scores_from(look, "key", apart))).sum(),
        (look.back(gradient) * apart).sum(),
    )
    w = RULES[rule].query_key  # Δq meets w·k′ + (1 − w)·k
    keys = (1 - w) * sides[0].key + w * sides[1].key
    query = (sides[0].query - sides[1].query) @ keys.transpose(1, 2)
    torch.testing.assert_close(scores_from(look, "query", clean - other), query)


@pytest.mark.parametrize("turned", TURNED)
def test_turning_back_is_the_transposed_turn(turned: str) -> None:
    rotary = random_rotary(turned)
    assert rotary is not None
    basis = torch.eye(D_QK, dtype=torch.float64)
    for pos in range(4):
        places = torch.full((D_QK,), pos)
        there = rotary.turned_at(basis, places).T
        back = rotary.turned_at(basis, places, back=True).T
        torch.testing.assert_close(back, there.T, rtol=0, atol=1e-15)
        by_hand = torch.stack(
            [turned_by_hand(row.expand(pos + 1, -1), rotary)[pos] for row in basis]
        )
        torch.testing.assert_close(there.T, by_hand, rtol=0, atol=1e-15)
