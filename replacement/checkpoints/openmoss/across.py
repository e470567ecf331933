"""Cross-layer transcoders as OpenMOSS publishes them (version 2): all layers in one folder.

    h_l = x_l @ W_E[l] + b_E[l]     a_l = act(h_l · n_l) / n_l
    y_m = sum over l ≤ m of a_l @ W_D.m[l] + b_D.m

n is, with `sparsity_include_decoder_norm`, the norm of all that a feature writes, else 1. The
layers are brought to the model's units with their gates as they were; since every output has a
scale of its own, no fold of theirs is exact.
"""

from pathlib import Path
from typing import Any

import torch

from replacement.checkpoints.dictionaries import (
    Wanted,
    activation_of,
    cross_layer,
    in_model_units,
    placed,
)
from replacement.checkpoints.files import check_tensors, read_tensors
from replacement.checkpoints.openmoss.dictionaries import settings, training_scale
from replacement.checkpoints.openmoss.settings import CONFIG, MEAN_NORM, THRESHOLD, WEIGHTS
from replacement.checkpoints.places import Place
from replacement.layers import CrossLayerTranscoder
from replacement.precision import kept_in

HOOKS = ("hook_points_in", "hook_points_out")


def read_openmoss_across(folder: Path, wanted: Wanted) -> list[CrossLayerTranscoder]:
    """Return the parts of the cross-layer transcoder in a folder, first layer first."""
    path, weights = folder / CONFIG, folder / WEIGHTS
    config = settings(path)
    hooks = _hooks(path, config)
    all_places = [_places(path, number, names, wanted) for number, names in enumerate(hooks)]
    tensors = read_tensors(weights, wanted.device)
    means = {name: tensors.pop(name) for name in list(tensors) if name.startswith(MEAN_NORM)}
    if THRESHOLD in tensors:  # log 0, a feature that is only rectified, is -inf
        tensors[THRESHOLD] = kept_in(tensors[THRESHOLD], wanted.dtype).exp()
    required = {"W_E": "layer d_model feature", "b_E": "layer feature"}
    for number in range(len(hooks)):
        required[f"W_D.{number}"] = f"{number + 1} feature d_model"
        required[f"b_D.{number}"] = "d_model"
    if config["act_fn"] == "jumprelu":
        required[THRESHOLD] = "layer feature"
    sizes = {"layer": len(hooks), "d_model": config["d_model"]}
    sizes |= {str(count): count for count in range(1, len(hooks) + 1)}
    check_tensors(weights, tensors, required, {}, sizes)
    scaled = config["norm_activation"] == "dataset-wise"
    scales = [
        [training_scale(path, config, means, hook) if scaled else 1.0 for hook in names]
        for names in hooks
    ]
    output_scales = torch.tensor(
        [output for _, output in scales], dtype=torch.float64, device=wanted.device
    )
    layers = []
    for number, places in enumerate(all_places):
        later = [tensors[f"W_D.{to}"][number] for to in range(number, len(hooks))]
        thresholds = tensors[THRESHOLD][number] if THRESHOLD in tensors else None
        parts = {
            "read": kept_in(tensors["W_E"][number].T.contiguous(), wanted.dtype),
            "write": kept_in(torch.stack(later, dim=1).flatten(1), wanted.dtype),
            "read_bias": kept_in(tensors["b_E"][number], wanted.dtype),
            "write_bias": kept_in(tensors[f"b_D.{number}"], wanted.dtype),
            "activation": activation_of(
                path, config["act_fn"], wanted, k=config["top_k"], thresholds=thresholds
            ),
        }
        layer = cross_layer(path, places, parts)
        if config["sparsity_include_decoder_norm"]:
            layer = layer.decoder_norm_gated()
        layer = layer.in_units(scales[number][0], output_scales[number:])
        layers.append(in_model_units(path, layer, places[0], wanted))
    return layers


def _places(
    path: Path, number: int, names: tuple[object, object], wanted: Wanted
) -> tuple[Place, Place]:
    """Where the part of a layer reads and writes; ValueError unless it is listed in its order."""
    places = placed(path, HOOKS, names, wanted)
    if places[0].layer != number:
        raise ValueError(
            f"{path}: {HOOKS[0]} has {names[0]} as number {number}; they are listed from layer "
            "0 on. Correct them."
        )
    return places


def _hooks(path: Path, config: dict[str, Any]) -> list[tuple[Any, Any]]:
    """What every layer reads and reproduces, as the file says it."""
    listed: list[list[Any]] = []
    for name in HOOKS:
        if not isinstance(config.get(name), list) or not config[name]:
            raise ValueError(
                f"{path}: {name} is {config.get(name)!r:.80}; it lists one hook for each layer. "
                "Correct it."
            )
        listed.append(config[name])
    reads, writes = listed
    if len(reads) != len(writes):
        raise ValueError(
            f"{path}: {len(reads)} {HOOKS[0]} and {len(writes)} {HOOKS[1]}; one of each for every "
            "layer. Correct them."
        )
    return list(zip(reads, writes, strict=True))
