"""Training replacement layers for a model, and measuring what they lose."""

from replacement.training.activations import Activations, TokenBatch, collect
from replacement.training.metrics import (
    LayerMetrics,
    ModelMetrics,
    measure_layers,
    measure_model,
    replaced,
)
from replacement.training.settings import TranscoderSettings
from replacement.training.trainer import train_transcoders

__all__ = [
    "Activations",
    "LayerMetrics",
    "ModelMetrics",
    "TokenBatch",
    "TranscoderSettings",
    "collect",
    "measure_layers",
    "measure_model",
    "replaced",
    "train_transcoders",
]
