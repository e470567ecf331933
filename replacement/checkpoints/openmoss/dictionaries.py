"""Transcoders and SAEs as OpenMOSS publishes them (version 2), one folder a layer.

    h = x @ W_E + b_E       a = act(h · n) / n      output = a @ W_D + b_D

n is the norm of a row of W_D with `sparsity_include_decoder_norm`, else 1. Where `norm_activation`
is "dataset-wise" the weights are for inputs and targets brought to mean norm √d_model; the layer is
brought to the model's units with its gate as it was (their own fold forgets JumpReLU's threshold).
"""

from pathlib import Path
from typing import Any

from torch import Tensor

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
from replacement.checkpoints.openmoss.settings import CONFIG, MEAN_NORM, THRESHOLD, WEIGHTS
from replacement.checkpoints.places import number_of
from replacement.precision import kept_in

HOOKS = ("hook_point_in", "hook_point_out")
DEFAULTS: dict[str, Any] = {
    "act_fn": "relu",
    "top_k": 50,
    "sparsity_include_decoder_norm": True,
    "use_decoder_bias": True,
    "use_glu_encoder": False,
    "norm_activation": "dataset-wise",
}
"""What their code takes where a config does not say."""
REQUIRED = {"W_E": "d_model feature", "b_E": "feature", "W_D": "feature d_model"}


def read_openmoss(folder: Path, wanted: Wanted) -> tuple[int, Dictionary]:
    """Return which layer the dictionary of a folder is for, and the dictionary."""
    path = folder / CONFIG
    config = settings(path)
    reads, writes = (config.get(name) for name in HOOKS)
    places = placed(path, HOOKS, (reads, writes), wanted)
    tensors = read_tensors(folder / WEIGHTS, wanted.device)
    norms = {name: tensors.pop(name) for name in list(tensors) if name.startswith(MEAN_NORM)}
    required = dict(REQUIRED)
    if config["use_decoder_bias"]:
        required["b_D"] = "d_model"
    if config["act_fn"] == "jumprelu":
        required[THRESHOLD] = "feature"
    if THRESHOLD in tensors:  # log 0, a feature that is only rectified, is -inf
        tensors[THRESHOLD] = kept_in(tensors[THRESHOLD], wanted.dtype).exp()
    check_tensors(folder / WEIGHTS, tensors, required, {}, {"d_model": config["d_model"]})
    held = converted(tensors, wanted.dtype, transposed=("W_E",))
    bias = held.get("b_D")
    parts = {
        "read": held["W_E"],
        "write": held["W_D"],
        "read_bias": held["b_E"],
        "write_bias": held["W_D"].new_zeros(config["d_model"]) if bias is None else bias,
        "activation": activation_of(
            path, config["act_fn"], wanted, k=config["top_k"], thresholds=held.get(THRESHOLD)
        ),
    }
    layer = dictionary(path, places, parts)
    if config["sparsity_include_decoder_norm"]:
        layer = layer.decoder_norm_gated()
    if config["norm_activation"] == "dataset-wise":
        layer = layer.folded(*(training_scale(path, config, norms, config[name]) for name in HOOKS))
    return number_of(places), in_model_units(path, layer, places[0], wanted)


def settings(path: Path) -> dict[str, Any]:
    """Return what a config.json says, defaults filled in; ValueError for what no layer can hold."""
    config = {**DEFAULTS, **read_json(path)}
    for name, value in DEFAULTS.items():
        if isinstance(value, bool) and not isinstance(config[name], bool):
            raise ValueError(f"{path}: {name} is {config[name]!r}; it is true or false.")
    width = config.get("d_model")
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ValueError(f"{path}: d_model is {width!r}; it is a whole number above 0.")
    if config["use_glu_encoder"]:
        raise ValueError(
            f"{path}: use_glu_encoder, an encoder that multiplies two products of its input. Its "
            "features are not linear in what they read, so no layer here does the same."
        )
    if config["norm_activation"] not in ("inference", "dataset-wise"):
        raise ValueError(
            f"{path}: norm_activation is {config['norm_activation']!r}, a scale that changes with "
            "the input, which no layer here can hold. Known: 'inference', 'dataset-wise'."
        )
    return config


def training_scale(
    path: Path, config: dict[str, Any], norms: dict[str, Tensor], hook: str
) -> float:
    """Return what training multiplied the vectors at a hook with."""
    name = MEAN_NORM + str(hook)
    held = norms.get(name)
    mean = float(held) if held is not None and held.numel() == 1 else None
    return mean_scale(path, f"norm_activation is dataset-wise, and {name}", mean, config["d_model"])
