"""Rotary position embeddings: queries and keys turned by their position (2104.09864)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequencies for longer contexts ("NTK by parts"): slow ones divided by `factor`.

    Wavelengths above `old_context / low` are stretched, those below `old_context / high` are left,
    and those between are mixed.
    """

    factor: int | float
    low: int | float
    high: int | float
    old_context: int

    def scaled(self, inverse: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """Return the frequencies with slow ones stretched."""
        turns = self.old_context * inverse / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return kept * inverse + (1 - kept) * inverse / self.factor


@dataclass(frozen=True)
class Rotary:
    """A rotation of the first `2 · pair` coordinates of a head by position times frequency.

    The rest of the coordinates passes. Pairs are (j, j + 1) where `adjacent` (GPT-J), else
    (j, j + pair) (Llama, NeoX, Qwen).
    """

    inverse_frequency: Float[Tensor, " pair"]
    """Angle a position turns, per pair."""
    adjacent: bool = False
    amplitude: float = 1.0
    """What rotated coordinates are multiplied by (YaRN); 1 elsewhere."""
    table: Float[Tensor, "pos sine_then_cosine"] | None = None
    """A model's own sines and cosines, where it stores them rounded (GPT-J); else they are made."""

    @property
    def width(self) -> int:
        """How many coordinates are rotated."""
        return 2 * self.inverse_frequency.shape[0]

    def turned(
        self, x: Float[Tensor, "*batch pos d_head"], start: int = 0
    ) -> Float[Tensor, "*batch pos d_head"]:
        """Return vectors of positions `start`, `start + 1`, … turned by their positions.

        >>> import torch
        >>> quarter = Rotary(torch.tensor([torch.pi / 2]))
        >>> quarter.turned(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).round(decimals=3).abs().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        return self.turned_at(x, torch.arange(start, start + x.shape[-2], device=x.device))

    def turned_at(
        self,
        x: Float[Tensor, "*batch node d_head"],
        pos: Int[Tensor, " node"],
        *,
        back: bool = False,
    ) -> Float[Tensor, "*batch node d_head"]:
        """Return each vector turned by a position of its own; with `back` the transposed map."""
        cos, sin = (self.amplitude * part.to(x.dtype) for part in self._cos_sin(x.dtype, pos))
        sin = -sin if back else sin
        first, second = self._halves(x[..., : self.width])
        turned = self._joined(first * cos - second * sin, second * cos + first * sin)
        return torch.cat([turned, x[..., self.width :]], dim=-1)

    def _cos_sin(
        self, kind: torch.dtype, pos: Int[Tensor, " node"]
    ) -> tuple[Float[Tensor, "node pair"], Float[Tensor, "node pair"]]:
        if self.table is not None:
            sin, cos = self.table[pos].chunk(2, dim=-1)
            return cos, sin
        wide = torch.promote_types(kind, torch.float32)  # rounded as Hugging Face rounds
        angle = pos.to(wide)[:, None] * self.inverse_frequency.to(wide)
        return angle.cos(), angle.sin()

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.adjacent:
            return x[..., ::2], x[..., 1::2]
        half = x.shape[-1] // 2
        return x[..., :half], x[..., half:]

    def _joined(self, first: Tensor, second: Tensor) -> Tensor:
        if self.adjacent:
            return torch.stack([first, second], dim=-1).flatten(-2)
        return torch.cat([first, second], dim=-1)


def rotary(
    width: int,
    base: int | float = 10000.0,
    *,
    adjacent: bool = False,
    scaling: Llama3Scaling | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Rotary:
    """Return the rotation of `width` coordinates with frequencies `base^(-2j / width)`.

    Raises ValueError for an odd width.
    """
    if width <= 0 or width % 2:
        raise ValueError(f"rotary(width={width}): an even number of coordinates turns in pairs.")
    inverse = base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    scaled = inverse if scaling is None else scaling.scaled(inverse)
    return Rotary(scaled.to(device, dtype), adjacent)
