"""Everything the model card says, measured on the weights as stored."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import GPT2LMHeadModel

from benchmarks.four_tasks.evaluate import TRIALS, Figures, evaluate, judged
from benchmarks.four_tasks.folder import load_layers, load_model, weight_files
from benchmarks.four_tasks.model import ModelSettings
from benchmarks.four_tasks.transcoders import SETTINGS, held_out_batches
from replacement.layers import Transcoder
from replacement.training import measure_layers, measure_model, replaced


def measure_folder(folder: Path, count: int = 1000) -> dict[str, Any]:
    """Return all figures of a folder: the model alone and with its transcoders in place."""
    model, layers = load_model(folder), load_layers(folder)
    alone = evaluate(model, count)
    with replaced(model, layers):
        in_place = evaluate(model, count)
    return {
        "prompts_per_test": count,
        "seed": 0,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "weights_sha256": weight_files(folder),
        "bytes": {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("figures.json", "README.md")
        },
        "model": {
            "settings": asdict(ModelSettings()),
            "parameters": model.num_parameters(),
            "tests": _tests(alone),
        },
        "transcoders": {
            "settings": asdict(SETTINGS),
            "parameters": sum(_size(layer) for layer in layers),
            "tests": _tests(in_place),
            **measure_transcoders(model, layers, count),
        },
    }


def measure_transcoders(
    model: GPT2LMHeadModel, layers: Sequence[Transcoder], count: int
) -> dict[str, Any]:
    """Return each layer's metrics and the model's, on `count` held-out examples a task, no BOS."""
    batches = held_out_batches(count)
    return {
        "layers": [asdict(metrics) for metrics in measure_layers(model, layers, batches)],
        "in_place": asdict(measure_model(model, layers, batches)),
    }


def _tests(figures: dict[str, Figures]) -> dict[str, Any]:
    return {
        name: {
            "measure": TRIALS[name].measure,
            "bar": TRIALS[name].bar,
            "reached": judged(name, found),
            **asdict(found),
        }
        for name, found in figures.items()
    }


def _size(layer: Transcoder) -> int:
    parts = (layer.read, layer.write, layer.read_bias, layer.write_bias)
    return sum(part.numel() for part in parts)
