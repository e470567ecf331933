"""Influence, replacement and completeness scores of an adjacency matrix, as attribution graphs
define them (Ameisen et al. 2025, "Circuit Tracing"; circuit-tracer's `graph.py`).

`effects[target, source]` holds direct effects between nodes; the rows of what nothing acts on
(tokens, errors) are empty. Every row of |effects| is divided by its sum, giving Â: the share of
each source in what a node gets. A node's influence is what reaches it from the logits, weighted by
their probabilities, along all paths: w (Â + Â² + …).
"""

import numpy as np
from scipy.sparse import csr_array, diags_array, sparray

Adjacency = np.ndarray | sparray


def normalized(effects: Adjacency) -> csr_array:
    """Every row of |effects| divided by its sum; empty rows stay empty.

    >>> normalized(np.array([[0.0, 3.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).toarray()[0]
    array([0.  , 0.75, 0.25])
    """
    size: csr_array = abs(csr_array(effects))
    total = np.asarray(size.sum(axis=1), dtype=float)
    return csr_array(diags_array(1 / np.where(total > 0, total, 1.0)) @ size)


def influence(effects: Adjacency, weights: np.ndarray) -> np.ndarray:
    """How much every node influences the weighted nodes along all paths: w (Â + Â² + …).

    ``weights``: one number a node, the probabilities of the logits at their nodes and 0 elsewhere.
    A weighted node gets only what it does to others. Raises ValueError where shapes do not fit, a
    number is not finite, or the effects run in a circle, on which the sum has no end.

    >>> chain = np.array([[0.0, 2.0, 0.0], [0.0, 0.0, -5.0], [0.0, 0.0, 0.0]])
    >>> influence(chain, np.array([1.0, 0.0, 0.0]))
    array([0., 1., 1.])
    """
    shares, reached = _checked(effects, weights)
    total = np.zeros_like(reached)
    for _ in range(len(reached)):
        reached = reached @ shares
        if not reached.any():
            return total
        total += reached
    raise ValueError(
        "influence: the effects run in a circle, so paths have no end. A source must come before "
        "its target: check that rows are targets and columns sources."
    )


def replacement_score(
    effects: Adjacency, weights: np.ndarray, token: np.ndarray, error: np.ndarray
) -> float:
    """The share of tokens in the influence of tokens and errors: I(token) / (I(token) + I(error)).

    ``token``, ``error``: masks of nodes. NaN where neither has influence. Raises ValueError as
    ``influence``, and for masks of another length.

    >>> effects = np.array([[0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> token, error = np.array([False, True, False]), np.array([False, False, True])
    >>> replacement_score(effects, np.array([1.0, 0.0, 0.0]), token, error)
    0.75
    """
    reached = influence(effects, weights)
    _check_masks(len(reached), token=token, error=error)
    tokens, errors = reached[token].sum(), reached[error].sum()
    return float(tokens / (tokens + errors)) if tokens + errors > 0 else float("nan")


def completeness_score(effects: Adjacency, weights: np.ndarray, error: np.ndarray) -> float:
    """The share of what nodes get that is not error, nodes weighted by influence and weight.

    `Σ_n (I_n + w_n) (1 − Σ_error Â[n, error]) / Σ_n (I_n + w_n)` over all nodes; tokens and errors,
    which get nothing, count as complete. NaN where nothing has weight. Raises ValueError as
    ``influence``, and for a mask of another length.

    >>> effects = np.array([[0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> completeness_score(effects, np.array([1.0, 0, 0]), np.array([False, False, True]))
    0.875
    """
    used = influence(effects, weights) + np.asarray(weights, dtype=float)
    _check_masks(len(used), error=error)
    missed = normalized(effects) @ np.asarray(error, dtype=float)
    total = used.sum()
    return float((used * (1 - missed)).sum() / total) if total > 0 else float("nan")


def _checked(effects: Adjacency, weights: np.ndarray) -> tuple[csr_array, np.ndarray]:
    shares, given = normalized(effects), np.asarray(weights, dtype=float)
    shape = shares.shape
    if given.ndim != 1 or shape != 2 * given.shape:
        raise ValueError(
            f"influence: effects of shape {shape} and weights of shape {given.shape}; needed are "
            "[node, node] and [node], the same nodes as rows and as columns."
        )
    if not (np.isfinite(shares.data).all() and np.isfinite(given).all() and (given >= 0).all()):
        raise ValueError(
            "influence: effects must be finite, and weights finite and not negative. Weights are "
            "the probabilities of the logits at their nodes, 0 elsewhere."
        )
    return shares, given


def _check_masks(count: int, **masks: np.ndarray) -> None:
    for name, mask in masks.items():
        given = np.asarray(mask)
        if given.shape != (count,) or given.dtype != bool:
            raise ValueError(
                f"{name}: shape {given.shape} of type {given.dtype}; a mask of {count} True or "
                "False is needed, one a node."
            )
