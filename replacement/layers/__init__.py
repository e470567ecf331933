"""Replacement layers: what an MLP is read as."""

from .activation import (
    Activation,
    BatchTopK,
    JumpReLU,
    ReLU,
    Smooth,
    TopK,
    activation_from_settings,
    neuron_activation,
)
from .active import Active
from .base import FeatureLayer
from .neurons import Neurons
from .transcoder import Transcoder

__all__ = [
    "Activation",
    "Active",
    "BatchTopK",
    "FeatureLayer",
    "JumpReLU",
    "Neurons",
    "ReLU",
    "Smooth",
    "TopK",
    "Transcoder",
    "activation_from_settings",
    "neuron_activation",
]
