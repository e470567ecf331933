"""The replacement layers that come with the model: settings, and how each kind is made and kept.

Lorsa and the SAEs keep equally many, so that their figures compare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.four_tasks.layer_data import training_batches
from replacement.checkpoints import (
    load_attention_saes,
    load_lorsa,
    load_transcoders,
    save_attention_saes,
    save_lorsa,
    save_transcoders,
)
from replacement.layers import FeatureLayer
from replacement.training import (
    LorsaSettings,
    TopKSettings,
    train_attention_saes,
    train_lorsa,
    train_transcoders,
)

STORED_IN = torch.float16


@dataclass(frozen=True)
class Kind:
    """One kind of layers: the settings as bundled, training, writing and reading."""

    settings: TopKSettings
    train: Callable[..., Sequence[Any]]
    write: Callable[..., None]
    read: Callable[..., Sequence[Any]]


KINDS: Final = {
    "transcoders": Kind(
        TopKSettings(
            n_features=1024,
            k=8,
            k_start=32,
            steps=2000,
            learning_rate=2e-3,
            gentle_restarts=False,
            centred=False,
        ),
        train_transcoders,
        save_transcoders,
        load_transcoders,
    ),
    "lorsa": Kind(
        LorsaSettings(n_features=256, k=16, steps=1000, learning_rate=2e-3, restart_share=0.8),
        train_lorsa,
        save_lorsa,
        load_lorsa,
    ),
    "attention-saes": Kind(
        TopKSettings(n_features=256, k=16, steps=1000, learning_rate=2e-3, restart_share=0.8),
        train_attention_saes,
        save_attention_saes,
        load_attention_saes,
    ),
}
"""By the name of the kind, which is also its folder's."""


def train_kind(kind: str, model: torch.nn.Module, settings: TopKSettings, work: Path) -> Sequence:
    """Return one trained layer per layer of the model, going on from the checkpoint in `work`."""
    return KINDS[kind].train(model, training_batches(settings.seed), settings, work)


def save_kind(kind: str, layers: Sequence[FeatureLayer], folder: Path) -> None:
    """Write layers as stored beside the model in `folder`."""
    KINDS[kind].write(layers, folder / kind, dtype=STORED_IN)


def load_kind(kind: str, folder: Path) -> list[Any]:
    """Return the stored layers in float32."""
    return list(KINDS[kind].read(folder / kind))
