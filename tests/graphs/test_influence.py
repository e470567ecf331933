"""Influence and the two scores: by hand, against the sum of powers, and at their limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.sparse import csr_array

from graphs.influence import completeness_score, influence, normalized, replacement_score

#           logit  f1    f0   error token
BY_HAND = np.array(
    [
        [0.0, 3.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, 2.0, 2.0, -4.0],
        [0.0, 0.0, 0.0, 1.0, 3.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ]
)
LOGIT = np.array([1.0, 0, 0, 0, 0])
ERROR = np.array([False, False, False, True, False])
TOKEN = np.array([False, False, False, False, True])


def test_by_hand() -> None:
    """Shares of rows: [3/4, 1/4], [1/4, 1/4, 1/2], [1/4, 3/4].

    f0 = 1/4 + 3/4 · 1/4 = 7/16; error = 3/4 · 1/4 + 7/16 · 1/4 = 19/64; token = 3/4 · 1/2 +
    7/16 · 3/4 = 45/64. Completeness: weights 1, 3/4, 7/16, 19/64, 45/64 sum to 51/16; what is
    missed is 3/4 · 1/4 + 7/16 · 1/4 = 19/64.
    """
    found = influence(BY_HAND, LOGIT)
    assert found.tolist() == [0.0, 0.75, 7 / 16, 19 / 64, 45 / 64]
    assert replacement_score(BY_HAND, LOGIT, TOKEN, ERROR) == 45 / 64
    assert completeness_score(BY_HAND, LOGIT, ERROR) == pytest.approx(1 - (19 / 64) / (51 / 16))


def test_a_sign_is_no_matter_and_a_size_is() -> None:
    other = np.abs(BY_HAND)
    assert influence(other, LOGIT).tolist() == influence(BY_HAND, LOGIT).tolist()
    other[0, 2] = 3.0
    assert influence(other, LOGIT)[2] > influence(BY_HAND, LOGIT)[2]


def test_sparse_and_dense_are_the_same() -> None:
    for matrix in (csr_array(BY_HAND), csr_array(BY_HAND).tocoo()):
        assert influence(matrix, LOGIT).tolist() == influence(BY_HAND, LOGIT).tolist()


@some.composite
def graphs(draw: some.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """An acyclic matrix [target, source] and weights of its first nodes, which nothing reads."""
    count = draw(some.integers(2, 9))
    rng = np.random.default_rng(draw(some.integers(0, 2**16)))
    effects = np.triu(rng.normal(size=(count, count)), k=1)
    effects[rng.random((count, count)) < draw(some.floats(0, 1))] = 0
    n_logits = draw(some.integers(1, count - 1))
    effects[:n_logits, :n_logits] = 0
    weights = np.zeros(count)
    weights[:n_logits] = rng.random(n_logits)
    return effects, weights


@given(graphs())
def test_is_the_sum_of_powers(graph: tuple[np.ndarray, np.ndarray]) -> None:
    effects, weights = graph
    shares = normalized(effects).toarray()
    powers = sum(np.linalg.matrix_power(shares, k) for k in range(1, len(shares)))
    np.testing.assert_allclose(influence(effects, weights), weights @ powers, atol=1e-12)


@given(graphs())
def test_all_influence_arrives_at_what_nothing_acts_on(
    graph: tuple[np.ndarray, np.ndarray],
) -> None:
    """Row shares sum to 1, so the weights that have a source arrive whole at the leaves."""
    effects, weights = graph
    leaf = ~(effects != 0).any(axis=1)
    arrived = (influence(effects, weights) + weights)[leaf].sum()
    assert arrived == pytest.approx(weights.sum())


@given(graphs(), some.floats(0.1, 10))
def test_scores_are_shares(graph: tuple[np.ndarray, np.ndarray], factor: float) -> None:
    """In [0, 1]; 1 without errors; unchanged by the scale of a row."""
    effects, weights = graph
    leaf = ~(effects != 0).any(axis=1) & (weights == 0)
    token, error = leaf.copy(), leaf.copy()
    token[::2], error[1::2] = False, False
    none = np.zeros_like(leaf)
    scale = np.geomspace(1, factor, len(effects))[:, None]
    complete = completeness_score(effects, weights, error)
    assert 0 <= complete <= 1
    assert complete == pytest.approx(completeness_score(scale * effects, weights, error))
    assert completeness_score(effects, weights, none) == pytest.approx(1)
    if influence(effects, weights)[token | error].any():
        assert 0 <= replacement_score(effects, weights, token, error) <= 1
        assert replacement_score(effects, weights, token | error, none) == 1


def test_nothing_has_no_score() -> None:
    empty = np.zeros((3, 3))
    mask = np.array([False, True, False])
    assert np.isnan(replacement_score(empty, np.zeros(3), mask, ~mask))
    assert np.isnan(completeness_score(empty, np.zeros(3), mask))


CIRCLE = np.array([[0.0, 1.0], [1.0, 0.0]])
BAD = {
    "a circle": (lambda: influence(CIRCLE, np.array([1.0, 0])), "run in a circle"),
    "not square": (lambda: influence(np.ones((2, 3)), np.ones(2)), r"\[node, node\]"),
    "other weights": (lambda: influence(BY_HAND, np.ones(4)), r"shape \(5, 5\) .*\(4,\)"),
    "not finite": (lambda: influence(BY_HAND * np.nan, LOGIT), "must be finite"),
    "negative weights": (lambda: influence(BY_HAND, -LOGIT), "not negative"),
    "numbers as a mask": (
        lambda: completeness_score(BY_HAND, LOGIT, ERROR.astype(int)),
        "error: shape .*int64.* mask of 5",
    ),
    "a short mask": (
        lambda: replacement_score(BY_HAND, LOGIT, TOKEN[:-1], ERROR),
        r"token: shape \(4,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_said(name: str) -> None:
    call, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        call()
