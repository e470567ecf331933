"""Elementwise functions and softmax between two runs: difference quotients, computed safely."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from replacement.layers.activation import Activation, ReLU, Smooth

NEAR = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Inputs nearer than this: the slope at their midpoint stands for the quotient."""


def slope(
    activation: Activation, clean: Float[Tensor, "*axes"], other: Float[Tensor, "*axes"]
) -> Float[Tensor, "*axes"]:
    """Return (f(z) − f(z′)) / (z − z′) of an elementwise activation.

    Raises TypeError for one that switches (TopK, BatchTopK, JumpReLU), which is no function of its
    own input alone, or jumps.
    """
    if isinstance(activation, ReLU):
        # with both positive exactly 1, with one the share of the way that is above 0
        above = clean.relu() - other.relu()
        way = clean - other
        both = ((clean + other) > 0).to(clean.dtype)
        return torch.where(way == 0, both, above / torch.where(way == 0, 1.0, way))
    if not isinstance(activation, Smooth):
        raise TypeError(f"{activation} has no slope: it switches.")
    values = activation.gate(clean) * clean, activation.gate(other) * other
    return _quotient(clean, other, values, SMOOTH_SLOPES[activation.name])


def cap_slope(
    cap: int | float, clean: Float[Tensor, "*axes"], other: Float[Tensor, "*axes"]
) -> Float[Tensor, "*axes"]:
    """Return the difference quotient of the soft-cap `cap · tanh(score / cap)`."""
    values = cap * torch.tanh(clean / cap), cap * torch.tanh(other / cap)
    return _quotient(clean, other, values, lambda z: 1 - torch.tanh(z / cap).square())


def _quotient(
    clean: Tensor, other: Tensor, values: tuple[Tensor, Tensor], derivative: Callable
) -> Tensor:
    way = clean - other
    near = way.abs() < NEAR[clean.dtype]
    quotient = (values[0] - values[1]) / torch.where(near, 1.0, way)
    return torch.where(near, derivative((clean + other) / 2), quotient)


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    root = math.sqrt(2 / math.pi)
    bent = torch.tanh(root * (x + 0.044715 * x**3))
    inner = root * (1 + 3 * 0.044715 * x.square())
    return 0.5 * (1 + bent) + 0.5 * x * (1 - bent.square()) * inner


def _sigmoid_slope(factor: float) -> Callable[[Tensor], Tensor]:
    def derivative(x: Tensor) -> Tensor:
        half = torch.sigmoid(factor * x)
        return half + factor * x * half * (1 - half)

    return derivative


SMOOTH_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu_slope,
    "gelu_new": _gelu_tanh_slope,
    "gelu_pytorch_tanh": _gelu_tanh_slope,
    "gelu_fast": _gelu_tanh_slope,
    "silu": _sigmoid_slope(1.0),
    "swish": _sigmoid_slope(1.0),
    "quick_gelu": _sigmoid_slope(1.702),
}
"""Derivatives of the functions in `replacement.layers.activation.SMOOTH_GATES`."""


class SecantSoftmax(NamedTuple):
    """`Δp_k = L_k · (Δs_k − Σ_j L_j Δs_j / Σ_j L_j)` with the logarithmic means L of two patterns.

    Exact, and unmoved by a common offset of the scores.
    """

    weight: Float[Tensor, "*batch query key"]
    """L; 0 where a key is not seen."""

    def back(
        self, gradient: Float[Tensor, "*batch query key"]
    ) -> Float[Tensor, "*batch query key"]:
        """Return the derivative at score differences from that at pattern differences."""
        total = self.weight.sum(-1, keepdim=True)
        mean = (gradient * self.weight).sum(-1, keepdim=True) / total
        return self.weight * (gradient - mean)


def secant_softmax(
    clean: Float[Tensor, "*batch query key"],
    other: Float[Tensor, "*batch query key"],
    visible: Bool[Tensor, "query key"],
) -> SecantSoftmax:
    """Return the secant of a softmax between the scores of two runs over the visible keys."""
    logs = [
        torch.log_softmax(scores.masked_fill(~visible, -torch.inf), dim=-1).masked_fill(
            ~visible, 0.0
        )
        for scores in (clean, other)
    ]
    larger, way = torch.maximum(*logs), (logs[0] - logs[1]).abs()
    # −expm1(−h)/h, which is 1 − h/2 + h²/6 where h is tiny
    share = torch.where(way == 0, 1.0, -torch.expm1(-way) / torch.where(way == 0, 1.0, way))
    return SecantSoftmax((larger.exp() * share).masked_fill(~visible, 0.0))
