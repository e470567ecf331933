"""Norms between two runs: the exact linear map from a difference of inputs to that of outputs.

With c the centred input and s = 1/σ: Δ(c·s) = s̃·Δc + c̃·Δs, and since s = v^(-1/2) for the mean
square v, Δs = −κ·Δv with κ = s²s′²/(s + s′) and Δv = mean(2·c̄·Δc). A closed form, no quotient.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.norms import NoNorm, Norm
from replacement.secant.rule import mixed


@dataclass(frozen=True)
class SecantNorm:
    """`Δy = gain · (scale · Δc − lean · (mean · Δc))`, position by position."""

    norm: Norm
    scale: Float[Tensor, " pos"]
    lean: Float[Tensor, "pos d_model"]
    """c̃·κ·2/d_model: how an output leans towards the input as its denominator changes."""
    mean: Float[Tensor, "pos d_model"]
    """c̄, the mean of both centred inputs."""

    def back(self, gradient: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """Return the derivative at the input difference from that at the output difference."""
        return self.back_at(gradient, torch.arange(len(gradient), device=gradient.device))

    def back_at(
        self, gradient: Float[Tensor, "node d_model"], pos: Int[Tensor, " node"]
    ) -> Float[Tensor, "node d_model"]:
        """Return the same for vectors that each read at a position of their own."""
        at_unit = gradient if self.norm.gain is None else gradient * self.norm.gain
        leaning = (at_unit * self.lean[pos]).sum(-1, keepdim=True)
        return self.norm.centre(self.scale[pos, None] * at_unit - leaning * self.mean[pos])

    def forward(
        self, differences: Float[Tensor, "node d_model"], pos: Int[Tensor, " node"]
    ) -> Float[Tensor, "node d_model"]:
        """Return what summands of an input difference make of the output difference."""
        centred = self.norm.centre(differences)
        leaning = (centred * self.mean[pos]).sum(-1, keepdim=True)
        made = self.scale[pos, None] * centred - leaning * self.lean[pos]
        return made if self.norm.gain is None else made * self.norm.gain


def secant_norm(
    norm: Norm,
    clean: Float[Tensor, "pos d_model"],
    other: Float[Tensor, "pos d_model"],
    weight: int | float,
) -> SecantNorm:
    """Return the secant of a norm between the inputs of two runs."""
    scales = 1 / norm.scale(clean), 1 / norm.scale(other)
    if isinstance(norm, NoNorm):
        nothing = torch.zeros_like(clean)
        return SecantNorm(norm, scales[0], nothing, nothing)
    centred = norm.centre(clean), norm.centre(other)
    scale, lean, mean = _parts(scales, centred, weight)
    return SecantNorm(norm, scale, lean, mean)


def _parts(
    scales: tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]],
    inputs: tuple[Float[Tensor, "*batch width"], Float[Tensor, "*batch width"]],
    weight: int | float,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch width"], Float[Tensor, "*batch width"]]:
    """Scale, lean and mean of two runs' inverse denominators and (centred) inputs."""
    (s, s_other), (c, c_other) = scales, inputs
    kappa = (s * s_other).square() / (s + s_other)
    lean = mixed(c, c_other, 1 - weight) * (kappa * (2 / c.shape[-1]))[..., None]
    return mixed(s, s_other, weight), lean, mixed(c, c_other, 0.5)


@dataclass(frozen=True)
class SecantHeadNorm:
    """The same for the norm of queries or keys: over the coordinates of every head."""

    gain: Float[Tensor, "head one d_head"]
    scale: Float[Tensor, "head pos"]
    lean: Float[Tensor, "head pos d_head"]
    mean: Float[Tensor, "head pos d_head"]

    def back(self, gradient: Float[Tensor, "head pos d_head"]) -> Float[Tensor, "head pos d_head"]:
        """Return the derivative before the norm from that behind it."""
        at_unit = gradient * self.gain
        leaning = (at_unit * self.lean).sum(-1, keepdim=True)
        return self.scale[..., None] * at_unit - leaning * self.mean

    def forward(
        self, differences: Float[Tensor, "head node d_head"], pos: Int[Tensor, " node"]
    ) -> Float[Tensor, "head node d_head"]:
        """Return what summands of a difference before the norm make behind it."""
        leaning = (differences * self.mean[:, pos]).sum(-1, keepdim=True)
        made = self.scale[:, pos, None] * differences - leaning * self.lean[:, pos]
        return made * self.gain


def secant_head_norm(
    gain: Float[Tensor, "head d_head"],
    scales: tuple[Float[Tensor, "head pos"], Float[Tensor, "head pos"]],
    inputs: tuple[Float[Tensor, "head pos d_head"], Float[Tensor, "head pos d_head"]],
    weight: int | float,
) -> SecantHeadNorm:
    """Return the secant of a q/k norm from the denominators and inputs of two runs."""
    inverse = (1 / scales[0], 1 / scales[1])
    return SecantHeadNorm(gain[:, None], *_parts(inverse, inputs, weight))
