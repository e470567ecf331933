"""A model's own MLP neurons as features: exact, no training, no error (2601.22594)."""

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
