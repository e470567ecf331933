"""One attention score of a run, both sides linear in the residual stream (docs/design.md, 2.6).

With norm denominators held (the layer's norm, and q/k norms), the query is `read @ x + constant` of
the residual stream at the query position, the key likewise, and the score is their product.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.layers import HeldSide
from replacement.norms import Norm

SIDES = ("query", "key", "both")


@dataclass(frozen=True)
class StreamSide:
    """A query or a key as a linear function of the residual stream at its position."""

    pos: int
    read: Float[Tensor, "d_head d_model"]
    constant: Float[Tensor, " d_head"]
    """What no node wrote: the norm's bias through the weights, and the query or key bias."""
    vector: Float[Tensor, " d_head"]
    """The query or key itself: `read @ x + constant`."""


@dataclass(frozen=True)
class HeldScore:
    """`score = scale · query.vector · key.vector`, before the softmax and any soft-cap."""

    layer: int
    head: int
    query: StreamSide
    key: StreamSide
    scale: float
    value: float
    """The score by the layer's own arithmetic."""


def held_score(run: Any, layer: int, head: int, query: int, key: int) -> HeldScore:
    """Return one score of a recorded run (a `Run`), its sides held."""
    heads = run.weights.query_key(layer)
    norm, scale = run.weights.layers[layer].attention_norm, run.layers[layer].attention.scale

    def normed(pos: int) -> Float[Tensor, "one d_model"]:
        return norm.apply(run.residuals[2 * layer][pos, None], scale[pos, None])

    def side(pos: int, held: Any) -> StreamSide:
        y = normed(pos)[0]
        return _on_stream(held(head, pos, y), pos, y, norm, scale[pos])

    asked = heads.queries(normed(query), query)[head, 0]
    offered = heads.keys(normed(key), key)[heads.key_head(head), 0]
    return HeldScore(
        layer,
        head,
        side(query, heads.held_query),
        side(key, heads.held_key),
        heads.scale,
        heads.scale * float(asked @ offered),
    )


def scores_of(run: Any, layer: int, head: int, query: int) -> Float[Tensor, " key"]:
    """Return the scores of one query with every key, -inf where it does not see the key."""
    heads, norm = run.weights.query_key(layer), run.weights.layers[layer].attention_norm
    y = norm.apply(run.residuals[2 * layer], run.layers[layer].attention.scale)
    asked = heads.queries(y[query, None], query)[head, 0]
    scores = heads.scale * (heads.keys(y)[heads.key_head(head)] @ asked)
    return scores.masked_fill(~heads.visible(len(y), y.device)[query], -torch.inf)


def rest_weights(
    scores: Float[Tensor, " key"], key: int, soft_cap: int | float | None = None
) -> dict[int, float]:
    """Return what contrasts one key with the others: 1, and minus their share of the attention.

    The others' shares are those of the softmax without the key, taken from the scores: patterns
    underflow where a head is sure. Keys that are not seen (-inf) are left out; if no other is seen,
    the key stands alone. The weighted sum of scores is the log odds of the key plus the entropy of
    those shares, so contrasts of different heads or queries do not rank by attention.

    >>> import torch
    >>> rest_weights(torch.tensor([3.0, 1.0, 1.0]), 0)
    {0: 1.0, 1: -0.5, 2: -0.5}
    """
    others = scores if soft_cap is None else soft_cap * torch.tanh(scores / soft_cap)
    others = others.clone()
    others[scores == -torch.inf] = -torch.inf
    others[key] = -torch.inf
    if not bool(torch.isfinite(others).any()):
        return {key: 1.0}
    shares = others.softmax(-1).tolist()
    return {key: 1.0, **{pos: -share for pos, share in enumerate(shares) if share > 0}}


def _on_stream(
    held: HeldSide,
    pos: int,
    y: Float[Tensor, " d_model"],
    norm: Norm,
    scale: Float[Tensor, ""],
) -> StreamSide:
    return StreamSide(
        pos=pos,
        read=norm.pull(held.read) / scale,
        constant=held.constant + norm.constant(held.read),
        vector=held.read @ y + held.constant,
    )


def score_values(
    run: Any,
    layer: int,
    head: int,
    query: Float[Tensor, "batch d_model"],
    key: Float[Tensor, "batch d_model"],
    places: tuple[int, int],
) -> Float[Tensor, " batch"]:
    """Return the score of two residual streams, nothing held: every norm with its own denominator.

    `places`: the positions of query and key.
    """
    heads, norm = run.weights.query_key(layer), run.weights.layers[layer].attention_norm
    values = []
    for query_row, key_row in zip(query, key, strict=True):
        sides = []
        for held, pos, x in (
            (heads.held_query, places[0], query_row),
            (heads.held_key, places[1], key_row),
        ):
            y = norm.apply(x[None], norm.scale(x[None]))[0]
            side = held(head, pos, y)
            sides.append(side.read @ y + side.constant)
        values.append(heads.scale * sides[0] @ sides[1])
    return torch.stack(values)
