"""Llama Scope, version 1: `hyperparams.json` and `checkpoints/final.safetensors`, a folder a layer.

Weights lie as torch.nn.Linear keeps them, and are for inputs and targets of mean norm √d_model:

    h = s_in · x @ encoder.weight.T + encoder.bias       s = √d_model / dataset_average_…_norm
    a = h where h · ‖decoder column‖ / s_out > jump_relu_threshold, else 0
    output = (a @ decoder.weight.T + decoder.bias) / s_out

The threshold is in units of what a feature writes into the model, for it was set after both norms
had been folded in: readers that fold in another order and leave it as it is get other features.
"""

from pathlib import Path
from typing import Any

import torch

from replacement.checkpoints.dictionaries import (
    Dictionary,
    Wanted,
    activation_of,
    converted,
    dictionary,
    in_model_units,
    mean_scale,
    placed,
)
from replacement.checkpoints.files import check_tensors, read_json, read_tensors
from replacement.checkpoints.places import number_of

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
HOOKS = ("hook_point_in", "hook_point_out")
MEANS = "dataset_average_activation_norm"
REQUIRED = {
    "encoder.weight": "feature d_model",
    "encoder.bias": "feature",
    "decoder.weight": "d_model feature",
}
EXPECTED: dict[str, tuple[Any, ...]] = {
    "sparsity_include_decoder_norm": (True,),
    "apply_decoder_bias_to_pre_encoder": (False,),
    "use_glu_encoder": (False,),
    "norm_activation": ("dataset-wise", "inference"),
    "use_decoder_bias": (True, False),
}
"""What the arithmetic above holds for; the first is what a config that does not say it means."""


def read_llama_scope(folder: Path, wanted: Wanted) -> tuple[int, Dictionary]:
    """Return which layer the dictionary of a folder is for, and the dictionary."""
    path, weights = folder / CONFIG, folder / WEIGHTS
    config = _settings(path)
    reads, writes = (config.get(name) for name in HOOKS)
    places = placed(path, HOOKS, (reads, writes), wanted)
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: missing. Copy the folder again.")
    tensors = read_tensors(weights, wanted.device)
    required = dict(REQUIRED)
    if config["use_decoder_bias"]:
        required["decoder.bias"] = "d_model"
    sizes = {"d_model": config["d_model"]}
    if isinstance(config.get("d_sae"), int):
        sizes["feature"] = config["d_sae"]
    check_tensors(weights, tensors, required, {}, sizes)
    held = converted(tensors, wanted.dtype, transposed=("decoder.weight",))
    bias, jump = held.get("decoder.bias"), config.get("act_fn") == "jumprelu"
    thresholds = torch.full_like(held["encoder.bias"], _threshold(path, config)) if jump else None
    parts = {
        "read": held["encoder.weight"],
        "write": held["decoder.weight"],
        "read_bias": held["encoder.bias"],
        "write_bias": held["encoder.weight"].new_zeros(config["d_model"]) if bias is None else bias,
        "activation": activation_of(
            path, config.get("act_fn"), wanted, k=config.get("top_k"), thresholds=thresholds
        ),
    }
    layer = dictionary(path, places, parts)
    if config["norm_activation"] == "dataset-wise":
        layer = layer.folded(*_scales(path, config))
    layer = layer.decoder_norm_gated()  # after the fold: the threshold is in the output's units
    return number_of(places), in_model_units(path, layer, places[0], wanted)


def _settings(path: Path) -> dict[str, Any]:
    config = {**{name: known[0] for name, known in EXPECTED.items()}, **read_json(path)}
    for name, known in EXPECTED.items():
        if not any(type(config[name]) is type(one) and config[name] == one for one in known):
            raise ValueError(
                f"{path}: {name} is {config[name]!r}; known: {', '.join(map(repr, known))}. How "
                "another one is to be computed is not certain, so it is not read."
            )
    if not isinstance(config.get("d_model"), int) or config["d_model"] < 1:
        raise ValueError(f"{path}: d_model is {config.get('d_model')!r}; it is a number above 0.")
    return config


def _threshold(path: Path, config: dict[str, Any]) -> float:
    threshold = config.get("jump_relu_threshold")
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or threshold < 0:
        raise ValueError(
            f"{path}: jump_relu_threshold is {threshold!r}; one number, 0 or above, for all "
            "features. Correct it."
        )
    return float(threshold)


def _scales(path: Path, config: dict[str, Any]) -> tuple[float, float]:
    means = config.get(MEANS)
    found = [means.get(side) if isinstance(means, dict) else None for side in ("in", "out")]
    d_model = config["d_model"]
    read, written = (
        mean_scale(path, f'norm_activation is dataset-wise, and {MEANS}["{side}"]', mean, d_model)
        for side, mean in zip(("in", "out"), found, strict=True)
    )
    return read, written
