"""A model's own MLP neurons as features: exact, no training, no error (2601.22594)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from replacement.layers.activation import Activation
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
