"""Everything the model card says, measured on the weights as stored."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import tokenizers
import torch
import transformers
from transformers import GPT2LMHeadModel

from benchmarks.four_tasks.evaluate import FIVE_TRIALS, Figures, evaluate, judged
from benchmarks.four_tasks.folder import load_model, weight_files
from benchmarks.four_tasks.layer_data import held_out_batches
from benchmarks.four_tasks.layer_kinds import KINDS, load_kind
from benchmarks.four_tasks.model import ModelSettings
from replacement.layers import FeatureLayer, Lorsa
from replacement.training import measure_layers, measure_model, replaced

IN_PLACE: Final = {
    "transcoders": ("transcoders",),
    "lorsa": ("lorsa",),
    "attention-saes": ("attention-saes",),
    "lorsa, transcoders": ("lorsa", "transcoders"),
    "attention-saes, transcoders": ("attention-saes", "transcoders"),
}
"""What is put in place: all layers of these kinds at every position, with no error added back."""

Sets = Mapping[str, Sequence[FeatureLayer]]
"""Trained layers, one for each layer of the model, by their kind."""


def measure_folder(folder: Path, count: int = 1000) -> dict[str, Any]:
    """Return all figures of a folder: the model alone and with layers of each kind in place."""
    model = load_model(folder)
    sets = {kind: load_kind(kind, folder) for kind in KINDS}
    return {
        "prompts_per_test": count,
        "seed": 0,
        "versions": versions(),
        "weights_sha256": weight_files(folder),
        "bytes": {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("figures.json", "frontier.json", "README.md")
        },
        "model": {
            "settings": asdict(ModelSettings()),
            "parameters": model.num_parameters(),
            "tests": tests_of(evaluate(model, count)),
        },
        "layers": {
            kind: {
                "settings": asdict(KINDS[kind].settings),
                "parameters": sum(_size(layer) for layer in layers),
                "metrics": measure_kind(model, layers, count),
            }
            for kind, layers in sets.items()
        },
        "in_place": {
            name: measure_in_place(model, {kind: sets[kind] for kind in kinds}, count)
            for name, kinds in IN_PLACE.items()
        },
    }


def measure_kind(
    model: GPT2LMHeadModel, layers: Sequence[FeatureLayer], count: int
) -> list[dict[str, float]]:
    """Return each layer's metrics on `count` held-out examples a task, BOS left out."""
    return [asdict(metrics) for metrics in measure_layers(model, layers, held_out_batches(count))]


def measure_in_place(model: GPT2LMHeadModel, sets: Sets, count: int) -> dict[str, Any]:
    """Return what the model reaches, and its cross-entropy and KL, with these layers in place."""
    mlps = sets.get("transcoders")
    attentions = next((layers for kind, layers in sets.items() if kind != "transcoders"), None)
    losses = measure_model(model, held_out_batches(count), mlps=mlps, attentions=attentions)
    with replaced(model, mlps=mlps, attentions=attentions):
        return {"tests": tests_of(evaluate(model, count)), **asdict(losses)}


def versions() -> dict[str, str]:
    """Return what the figures were measured with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def tests_of(figures: dict[str, Figures]) -> dict[str, Any]:
    """Return each test's figures beside what they are judged by."""
    return {
        name: {
            "measure": FIVE_TRIALS[name].measure,
            "bar": FIVE_TRIALS[name].bar,
            "reached": judged(name, found),
            **asdict(found),
        }
        for name, found in figures.items()
    }


def _size(layer: FeatureLayer) -> int:
    parts = [layer.read, layer.write, layer.read_bias, layer.write_bias]
    if isinstance(layer, Lorsa):
        one = layer.query_key
        biases = [bias for bias in (one.query_bias, one.key_bias) if bias is not None]
        parts += [one.query, one.key, *biases]
    return sum(part.numel() for part in parts)
