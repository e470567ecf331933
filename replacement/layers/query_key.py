"""Where attention heads look: queries, keys, scores, patterns; and both sides held and linear.

`score = scale · R_q(norm(W_Q y_q + b_Q)) · R_k(norm(W_K y_k + b_K))` with optional rotary embedding
R and q/k norm. With the norms' denominators held it is bilinear in the normed inputs of query and
key position (docs/design.md, 2.6). The model's own heads and Lorsa's use the same class.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from replacement.layers.rotary import Rotary


class HeldSide(NamedTuple):
    """One side of a score as a linear function of its normed input: `read @ y + constant`."""

    read: Float[Tensor, "d_head d_model"]
    constant: Float[Tensor, " d_head"]


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm over a head's coordinates, before rotation: `gain · x / sqrt(mean x² + eps)`."""

    gain: Float[Tensor, "head d_head"]
    eps: float

    def scale(self, x: Float[Tensor, "*batch d_head"]) -> Float[Tensor, "*batch"]:
        """Return the denominator."""
        return torch.sqrt(x.square().mean(-1) + self.eps)

    def apply(
        self, x: Float[Tensor, "*batch head pos d_head"]
    ) -> Float[Tensor, "*batch head pos d_head"]:
        """Return the normed vectors."""
        return self.gain[:, None] * x / self.scale(x)[..., None]


@dataclass(frozen=True)
class QueryKey:
    """The query and key weights of one attention layer and how scores are made of them.

    With fewer key heads than heads, consecutive heads share one (grouped keys): head `h` reads key
    head `h // (heads / key heads)`.
    """

    query: Float[Tensor, "head d_model d_head"]
    key: Float[Tensor, "key_head d_model d_head"]
    query_bias: Float[Tensor, "head d_head"] | None
    key_bias: Float[Tensor, "key_head d_head"] | None
    scale: float
    """What dot products are multiplied by: 1 / √d_head, unless the model says otherwise."""
    rotary: Rotary | None = None
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    window: int | None = None
    """How many keys a query sees, itself included; None: all before it."""
    soft_cap: float | None = None
    """Scores are squeezed to `cap · tanh(score / cap)` before the softmax (Gemma-2)."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the number of key heads divides that of heads."""
        if self.query.shape[0] % self.key.shape[0]:
            raise ValueError(
                f"QueryKey: {self.query.shape[0]} heads cannot share {self.key.shape[0]} key heads "
                "equally; give as many, or a divisor."
            )

    @property
    def n_heads(self) -> int:
        return self.query.shape[0]

    def key_head(self, head: int) -> int:
        """Return which key head a head reads."""
        return head * self.key.shape[0] // self.n_heads

    def queries(
        self, y: Float[Tensor, "*batch pos d_model"], start: int = 0
    ) -> Float[Tensor, "*batch head pos d_head"]:
        """Return the query of every head at positions from `start` on, normed and turned."""
        return self._side(y, self.query, self.query_bias, self.query_norm, start)

    def keys(
        self, y: Float[Tensor, "*batch pos d_model"], start: int = 0
    ) -> Float[Tensor, "*batch key_head pos d_head"]:
        """Return the key of every key head at positions from `start` on, normed and turned."""
        return self._side(y, self.key, self.key_bias, self.key_norm, start)

    def _side(
        self, y: Tensor, weight: Tensor, bias: Tensor | None, norm: HeadNorm | None, start: int
    ) -> Tensor:
        side = y.unsqueeze(-3) @ weight
        if bias is not None:
            side = side + bias[:, None]
        if norm is not None:
            side = norm.apply(side)
        return side if self.rotary is None else self.rotary.turned(side, start)

    def _all_keys(self, y: Tensor) -> Tensor:
        """The keys that every head reads: one row a head."""
        keys = self.keys(y)
        repeats = self.n_heads // self.key.shape[0]
        return keys if repeats == 1 else keys.repeat_interleave(repeats, dim=-3)

    def scores(
        self, y: Float[Tensor, "*batch pos d_model"]
    ) -> Float[Tensor, "*batch head query key"]:
        """Return every score, also of keys that no query sees."""
        return self.scale * self.queries(y) @ self._all_keys(y).transpose(-1, -2)

    def visible(self, n_pos: int, device: torch.device | str = "cpu") -> Bool[Tensor, "query key"]:
        """Return which keys a query sees: those before it, within the window."""
        seen = torch.ones(n_pos, n_pos, dtype=torch.bool, device=device).tril()
        return seen if self.window is None else seen & ~seen.tril(-self.window)

    def sees(self, query: int, key: int) -> bool:
        """Return whether the query at one position sees the key at another."""
        return key <= query and (self.window is None or query - key < self.window)

    def pattern(
        self, y: Float[Tensor, "*batch pos d_model"]
    ) -> Float[Tensor, "*batch head query key"]:
        """Return the softmax of the scores over the keys that each query sees."""
        hidden = ~self.visible(y.shape[-2], y.device)
        scores = self.scores(y)
        if self.soft_cap is not None:
            scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1)

    def mixed(
        self,
        y: Float[Tensor, "batch pos d_model"],
        values: Float[Tensor, "batch head pos d_value"],
    ) -> Float[Tensor, "batch head pos d_value"]:
        """Return `pattern @ values` by the fused kernel, which never stores a pattern.

        The kernel knows no soft-cap: with one it is done with an explicit pattern.
        """
        if self.soft_cap is not None:
            return self.pattern(y) @ values
        plain = self.window is None
        return scaled_dot_product_attention(
            self.queries(y),
            self._all_keys(y),
            values,
            attn_mask=None if plain else self.visible(y.shape[-2], y.device),
            is_causal=plain,
            scale=self.scale,
        )

    def held_query(self, head: int, pos: int, y: Float[Tensor, " d_model"]) -> HeldSide:
        """Return a head's query at `pos` as a linear function of `y`, its norm held."""
        bias = None if self.query_bias is None else self.query_bias[head]
        return self._held(self.query[head], bias, self.query_norm, head, pos, y)

    def held_key(self, head: int, pos: int, y: Float[Tensor, " d_model"]) -> HeldSide:
        """Return the key that a head sees at `pos` as a linear function of `y`, its norm held."""
        head = self.key_head(head)
        bias = None if self.key_bias is None else self.key_bias[head]
        return self._held(self.key[head], bias, self.key_norm, head, pos, y)

    def _held(
        self,
        weight: Tensor,
        bias: Tensor | None,
        norm: HeadNorm | None,
        head: int,
        pos: int,
        y: Tensor,
    ) -> HeldSide:
        constant = torch.zeros_like(weight[0]) if bias is None else bias
        both = torch.cat([weight, constant[None]])  # rows are what the side gets from each input
        if norm is not None:
            both = both * (norm.gain[head] / norm.scale(y @ weight + constant))
        if self.rotary is not None:
            both = self.rotary.turned(both[:, None], start=pos)[:, 0]
        return HeldSide(both[:-1].T, both[-1])
