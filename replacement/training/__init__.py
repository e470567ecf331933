"""Training replacement layers for a model, and measuring what they lose."""

from replacement.training.activations import (
    Activations,
    TokenBatch,
    TokenBatches,
    collect,
    tokens_of,
)
from replacement.training.corpus import each_once, prompt_batches
from replacement.training.metrics import (
    LayerMetrics,
    ModelMetrics,
    measure_layers,
    measure_model,
    replaced,
)
from replacement.training.settings import LorsaSettings, TopKSettings
from replacement.training.trainer import train_attention_saes, train_lorsa, train_transcoders

__all__ = [
    "Activations",
    "LayerMetrics",
    "LorsaSettings",
    "ModelMetrics",
    "TokenBatch",
    "TokenBatches",
    "TopKSettings",
    "collect",
    "each_once",
    "measure_layers",
    "measure_model",
    "prompt_batches",
    "replaced",
    "tokens_of",
    "train_attention_saes",
    "train_lorsa",
    "train_transcoders",
]
