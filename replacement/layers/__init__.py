"""Replacement layers: what an MLP or an attention layer is read as."""

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
from replacement.layers.cross_layer import CrossLayerTranscoder
from replacement.layers.lorsa import Lorsa
from replacement.layers.neurons import GatedNeurons, HalvedActive, HalvedNeurons, Neurons
from replacement.layers.query_key import HeadNorm, HeldSide, QueryKey
from replacement.layers.rotary import Llama3Scaling, Rotary, rotary
from replacement.layers.sae import AttentionSAE, ResidualSAE
from replacement.layers.transcoder import Transcoder

__all__ = [
    "Activation",
    "Active",
    "AttentionSAE",
    "BatchTopK",
    "CrossLayerTranscoder",
    "FeatureLayer",
    "GatedNeurons",
    "HalvedActive",
    "HalvedNeurons",
    "HeadNorm",
    "HeldSide",
    "JumpReLU",
    "Llama3Scaling",
    "Lorsa",
    "Neurons",
    "QueryKey",
    "ReLU",
    "ResidualSAE",
    "Rotary",
    "Smooth",
    "TopK",
    "Transcoder",
    "activation_from_settings",
    "neuron_activation",
    "rotary",
]
