"""Activation functions as gates: a(x) = gate(x) · x, the gate of a run being held (DESIGN 2.1).

A gate is 1 or 0 for functions that select (ReLU, JumpReLU, TopK, BatchTopK) and the closed form
of a(x)/x for smooth ones (Φ(x) or its tanh form for GELU, sigmoid(x) for SiLU), never a division.
"""

import abc
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


class Activation(abc.ABC):
    """How pre-activations become activations."""

    dense: bool
    """True if (almost) every input is active, so that storing all of them costs least."""

    @abc.abstractmethod
    def gate(self, pre: Float[Tensor, "pos feature"]) -> Float[Tensor, "pos feature"]:
        """Return the gate of every pre-activation; inputs of one position may compete."""

    @abc.abstractmethod
    def settings(self) -> dict[str, float | int | str]:
        """Return what rebuilds this activation through `activation_from_settings`."""


@dataclass(frozen=True)
class ReLU(Activation):
    """max(x, 0)."""

    dense = False

    def gate(self, pre: Float[Tensor, "pos feature"]) -> Float[Tensor, "pos feature"]:
        return (pre > 0).to(pre.dtype)

    def settings(self) -> dict[str, float | int | str]:
        return {"name": "relu"}


@dataclass(frozen=True)
class JumpReLU(Activation):
    """x where x > threshold, else 0 (2407.14435); one threshold a feature."""

    threshold: Float[Tensor, " feature"]
    dense = False

    def gate(self, pre: Float[Tensor, "pos feature"]) -> Float[Tensor, "pos feature"]:
        return (pre > self.threshold).to(pre.dtype)

    def settings(self) -> dict[str, float | int | str]:
        return {"name": "jumprelu"}


@dataclass(frozen=True)
class TopK(Activation):
    """The k largest positive inputs of each position (2406.04093); fewer if fewer are positive."""

    k: int
    dense = False

    def gate(self, pre: Float[Tensor, "pos feature"]) -> Float[Tensor, "pos feature"]:
        top = pre.topk(min(self.k, pre.shape[-1]), dim=-1)
        return torch.zeros_like(pre).scatter_(-1, top.indices, (top.values > 0).to(pre.dtype))

    def settings(self) -> dict[str, float | int | str]:
        return {"name": "topk", "k": self.k}


@dataclass(frozen=True)
class BatchTopK(Activation):
    """Inputs above the stored threshold that BatchTopK training left behind (2412.06410).

    Pooling over a prompt at inference would let later tokens change earlier gates, so the
    threshold (running mean of the smallest kept value) is part of the layer.
    """

    threshold: float
    dense = False

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, int | float) or not self.threshold >= 0:
            raise ValueError(
                f"BatchTopK needs the threshold that training stored, a number >= 0; got "
                f"{self.threshold}. Pass threshold=, the running mean of the smallest kept value."
            )

    def gate(self, pre: Float[Tensor, "pos feature"]) -> Float[Tensor, "pos feature"]:
        return (pre > self.threshold).to(pre.dtype)

    def settings(self) -> dict[str, float | int | str]:
        return {"name": "batchtopk", "threshold": self.threshold}


@dataclass(frozen=True)
class Smooth(Activation):
    """A smooth activation of model neurons, by its Hugging Face name."""

    name: str
    dense = True

    def __post_init__(self) -> None:
        if self.name not in SMOOTH_GATES:
            raise ValueError(
                f"unknown activation function {self.name!r}; known: relu, "
                f"{', '.join(SMOOTH_GATES)}. Add its gate a(x)/x in replacement/layers."
            )

    def gate(self, pre: Float[Tensor, "pos feature"]) -> Float[Tensor, "pos feature"]:
        return SMOOTH_GATES[self.name](pre)

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name}


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


SMOOTH_GATES = {
    "gelu": lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "silu": torch.sigmoid,
    "swish": torch.sigmoid,
    "quick_gelu": lambda x: torch.sigmoid(1.702 * x),
}


def neuron_activation(name: str) -> Activation:
    """Return the activation of model neurons for a Hugging Face `activation_function` name.

    >>> neuron_activation("relu")
    ReLU()
    """
    return ReLU() if name == "relu" else Smooth(name)


def activation_from_settings(
    settings: dict, threshold: Float[Tensor, " feature"] | None = None
) -> Activation:
    """Return the activation that `Activation.settings` described.

    Raises ValueError for an unknown name, a BatchTopK without threshold or a JumpReLU without one.

    >>> activation_from_settings({"name": "topk", "k": 8})
    TopK(k=8)
    """
    match settings:
        case {"name": "relu"}:
            return ReLU()
        case {"name": "topk", "k": int(k)} if k > 0:
            return TopK(k)
        case {"name": "batchtopk", "threshold": float(stored) | int(stored)}:
            return BatchTopK(float(stored))
        case {"name": "batchtopk"}:
            raise ValueError(
                "these BatchTopK layers store no inference threshold, and pooling over a prompt "
                'would let later tokens change earlier gates. Add "threshold" (the running mean '
                "of the smallest kept value in training) to their activation settings."
            )
        case {"name": "jumprelu"} if threshold is not None:
            return JumpReLU(threshold)
    raise ValueError(
        f"activation settings {settings!r} are not understood. Known: relu; topk with an integer "
        "k > 0; batchtopk with a threshold; jumprelu with a tensor of one threshold a feature."
    )
