"""A model's own MLP neurons as features: exact, no training, no error (2601.22594)."""

import dataclasses
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from replacement.layers.activation import Activation
from replacement.layers.active import Active, active_from_gates
from replacement.layers.base import FeatureLayer


@dataclass(frozen=True)
class Neurons(FeatureLayer):
    """The neurons of one ungated MLP; the weights are views of the model's own."""

    read: Float[Tensor, "feature d_model"]
    write: Float[Tensor, "feature d_model"]
    read_bias: Float[Tensor, " feature"]
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    skip = None
    gate_scale = None
    kind = "neuron"
    exact = True


@dataclass(frozen=True)
class GatedNeurons(FeatureLayer):
    """The neurons of one gated MLP: `act(g) · (read · y + read_bias)` with `g = gate_read · y`.

    Held, `act(g)` is the gate and the other branch is what a neuron reads (docs/design.md, 2.1).
    """

    read: Float[Tensor, "feature d_model"]
    gate_read: Float[Tensor, "feature d_model"]
    write: Float[Tensor, "feature d_model"]
    read_bias: Float[Tensor, " feature"]
    gate_bias: Float[Tensor, " feature"]
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    skip = None
    gate_scale = None
    kind = "neuron"
    exact = True

    def encode(self, y: Float[Tensor, "pos d_model"]) -> Active:
        """Return all neurons on the inputs `y`, the gate being the other branch."""
        pre = y @ self.read.T + self.read_bias
        branch = y @ self.gate_read.T + self.gate_bias
        return active_from_gates(pre, self.activation.gate(branch) * branch, dense=True)


@dataclass(frozen=True, eq=False)
class HalvedActive(Active):
    """Neurons that read through both branches: `activation = gate · read + other_gate · other`."""

    other_gate: Float[Tensor, " node"]
    """Held: what half of the product gives through `gate_read`."""


@dataclass(frozen=True)
class HalvedNeurons(GatedNeurons):
    """The same neurons, half of each product read through either branch (RelP, 2508.21258).

    `act(g) · u = ½ act(g) · u + ½ (act(g)/g · u) · g`, the factors in front of `u` and `g` held.
    """

    def encode(self, y: Float[Tensor, "pos d_model"]) -> HalvedActive:
        """Return all neurons on the inputs `y`, with the gates of both halves."""
        pre = y @ self.read.T + self.read_bias
        branch = y @ self.gate_read.T + self.gate_bias
        ratio = self.activation.gate(branch)
        whole = active_from_gates(pre, ratio * branch, dense=True)
        given = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
        return HalvedActive(
            **{**given, "gate": whole.gate / 2}, other_gate=(ratio * pre).flatten() / 2
        )
