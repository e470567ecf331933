"""Folders of trained replacement layers: ours, and those of other projects."""

from replacement.checkpoints.detect import read_layers
from replacement.checkpoints.folders import kind_of
from replacement.checkpoints.openmoss import load_openmoss_lorsa, save_openmoss_lorsa
from replacement.checkpoints.ours import (
    load_attention_saes,
    load_cross_layer_transcoders,
    load_lorsa,
    load_residual_saes,
    load_transcoders,
    save_attention_saes,
    save_cross_layer_transcoders,
    save_lorsa,
    save_residual_saes,
    save_transcoders,
)

__all__ = [
    "kind_of",
    "load_attention_saes",
    "load_cross_layer_transcoders",
    "load_lorsa",
    "load_openmoss_lorsa",
    "load_residual_saes",
    "load_transcoders",
    "read_layers",
    "save_attention_saes",
    "save_cross_layer_transcoders",
    "save_lorsa",
    "save_openmoss_lorsa",
    "save_residual_saes",
    "save_transcoders",
]
