"""Replacement layers: what an MLP is read as."""

from replacement.layers.activation import (
    Activation,
    BatchTopK,
    JumpReLU,
    ReLU,
    Smooth,
    TopK,
    activation_from_settings,
    neuron_activation,
)
from replacement.layers.active import Active
from replacement.layers.base import FeatureLayer
from replacement.layers.neurons import Neurons
from replacement.layers.transcoder import Transcoder

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
