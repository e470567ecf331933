"""Where heads look, between two runs: from a difference of inputs to that of patterns and back.

`Δs = scale · (q̃·Δk + k̃·Δq)`, rotary embeddings as they are, q/k norms by their secant, a soft-cap
and the softmax by theirs. The model's heads and Lorsa's query-key heads are the same here.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.layers import HeadNorm, QueryKey
from replacement.layers.rotary import Rotary
from replacement.secant.norms import SecantHeadNorm, secant_head_norm
from replacement.secant.rule import SecantRule, mixed
from replacement.secant.slopes import SecantSoftmax, cap_slope, secant_softmax


@dataclass(frozen=True, eq=False)
class SecantSide:
    """Queries, or keys, between two runs: a linear map of a difference of normed inputs."""

    weight: Float[Tensor, "head d_model d_head"]
    norm: SecantHeadNorm | None
    rotary: Rotary | None
    mean: Float[Tensor, "head pos d_head"]
    """q̃ or k̃: what multiplies the other side's difference."""

    def back(self, gradient: Float[Tensor, "head pos d_head"]) -> Float[Tensor, "pos d_model"]:
        """Return the derivative at the normed inputs from that at queries or keys."""
        if self.rotary is not None:
            places = torch.arange(gradient.shape[1], device=gradient.device)
            gradient = self.rotary.turned_at(gradient, places, back=True)
        if self.norm is not None:
            gradient = self.norm.back(gradient)
        return (gradient @ self.weight.transpose(1, 2)).sum(0)

    def forward(
        self, differences: Float[Tensor, "node d_model"], pos: Int[Tensor, " node"]
    ) -> Float[Tensor, "head node d_head"]:
        """Return what summands of a normed input's difference make of queries or keys."""
        made = differences @ self.weight
        if self.norm is not None:
            made = self.norm.forward(made, pos)
        return made if self.rotary is None else self.rotary.turned_at(made, pos)


@dataclass(frozen=True, eq=False)
class SecantLook:
    """Queries, keys and patterns of one attention layer between two runs."""

    query: SecantSide
    key: SecantSide
    softmax: SecantSoftmax
    rate: Float[Tensor, "head query key"] | float
    """Scale of the scores, times the slope of a soft-cap."""
    pattern: tuple[Float[Tensor, "head query key"], Float[Tensor, "head query key"]]

    @property
    def group(self) -> int:
        """How many heads share one key head."""
        return self.query.mean.shape[0] // self.key.mean.shape[0]

    def at_scores(
        self, gradient: Float[Tensor, "head query key"]
    ) -> Float[Tensor, "head query key"]:
        """Return the derivative at products of queries and keys from that at patterns."""
        return self.softmax.back(gradient) * self.rate

    def at_scores_of(
        self,
        head: int | Int[Tensor, " node"],
        query: Int[Tensor, " node"],
        gradient: Float[Tensor, "node key"],
    ) -> Float[Tensor, "node key"]:
        """Return the same for nodes at single queries, of one head or of a head each."""
        rate = self.rate[head, query] if isinstance(self.rate, Tensor) else self.rate
        return SecantSoftmax(self.softmax.weight[head, query]).back(gradient) * rate

    def back(self, at_scores: Float[Tensor, "head query key"]) -> Float[Tensor, "pos d_model"]:
        """Return the derivative at the normed inputs, through queries and keys."""
        keys = self.key.mean.repeat_interleave(self.group, dim=0)
        offered = at_scores.transpose(1, 2) @ self.query.mean
        if self.group > 1:
            offered = offered.unflatten(0, (-1, self.group)).sum(1)
        return self.query.back(at_scores @ keys) + self.key.back(offered)


class _Side(NamedTuple):
    """Queries or keys of one run, before their norm and as they meet."""

    raw: Float[Tensor, "head pos d_head"]
    made: Float[Tensor, "head pos d_head"]


def secant_look(
    heads: QueryKey,
    clean: Float[Tensor, "pos d_model"],
    other: Float[Tensor, "pos d_model"],
    rule: SecantRule,
) -> SecantLook:
    """Return the secant of where heads look between the normed inputs of two runs."""
    sides = [
        (
            _side(y, heads.query, heads.query_bias, heads.query_norm, heads.rotary),
            _side(y, heads.key, heads.key_bias, heads.key_norm, heads.rotary),
        )
        for y in (clean, other)
    ]
    group = heads.n_heads // heads.key.shape[0]
    scores = [
        heads.scale * q.made @ k.made.repeat_interleave(group, dim=0).transpose(1, 2)
        for q, k in sides
    ]
    rate: Tensor | float = heads.scale
    if heads.soft_cap is not None:
        rate = rate * cap_slope(heads.soft_cap, scores[0], scores[1])
        scores = [heads.soft_cap * torch.tanh(one / heads.soft_cap) for one in scores]
    visible = heads.visible(len(clean), clean.device)
    patterns = [one.masked_fill(~visible, -torch.inf).softmax(-1) for one in scores]
    (query, key), (query_other, key_other) = sides
    return SecantLook(
        query=_secant_side(
            heads.query, heads.query_norm, heads.rotary, query, query_other, rule, rule.query_key
        ),
        key=_secant_side(
            heads.key, heads.key_norm, heads.rotary, key, key_other, rule, 1 - rule.query_key
        ),
        softmax=secant_softmax(scores[0], scores[1], visible),
        rate=rate,
        pattern=(patterns[0], patterns[1]),
    )


def _side(
    y: Tensor, weight: Tensor, bias: Tensor | None, norm: HeadNorm | None, rotary: Rotary | None
) -> _Side:
    raw = y @ weight if bias is None else y @ weight + bias[:, None]
    made = raw if norm is None else norm.apply(raw)
    return _Side(raw, made if rotary is None else rotary.turned(made))


def _secant_side(
    weight: Tensor,
    norm: HeadNorm | None,
    rotary: Rotary | None,
    clean: _Side,
    other: _Side,
    rule: SecantRule,
    weight_of_clean: float,
) -> SecantSide:
    secant = None
    if norm is not None:
        scales = norm.scale(clean.raw), norm.scale(other.raw)
        secant = secant_head_norm(norm.gain, scales, (clean.raw, other.raw), rule.norm)
    return SecantSide(weight, secant, rotary, mixed(clean.made, other.made, weight_of_clean))
