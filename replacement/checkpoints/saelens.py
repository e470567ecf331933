"""SAELens: `cfg.json` and `sae_weights.safetensors`, one folder a dictionary.

    a = act(scale · x - b_dec · apply_b_dec_to_input) @ W_enc + b_enc)      W_enc [d_model, feature]
    output = (a @ W_dec + b_dec) / scale (+ x @ W_skip.T)

Read are the architectures of `ARCHITECTURES`, of versions 6 (settings of the model under
"metadata") and before (all at the top). `scale` is that of `expected_average_only_in`, which
`activation_scaler.json` beside the weights holds where it was not folded into them.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replacement.checkpoints.dictionaries import (
    Dictionary,
    Wanted,
    activation_of,
    converted,
    dictionary,
    in_model_units,
    norm_of,
    placed,
    subtracting,
)
from replacement.checkpoints.files import check_tensors, read_json, read_tensors
from replacement.checkpoints.places import number_of
from replacement.layers import Activation, AttentionSAE, ResidualSAE

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
ARCHITECTURES = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""And the activation of each."""
REQUIRED = {
    "W_enc": "d_model feature",
    "W_dec": "feature d_model",
    "b_enc": "feature",
    "b_dec": "d_model",
}
RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}
STORED_THRESHOLD = "topk_threshold"
SCALINGS = ("scaling_factor", "finetuning_scaling_factor")


def read_saelens(folder: Path, wanted: Wanted) -> tuple[int, Dictionary]:
    """Return which layer the dictionary of a folder is for, and the dictionary."""
    path = folder / CONFIG
    config = _settings(path)
    architecture = config["architecture"]
    transcodes = architecture.endswith("transcoder")
    hooks = _hooks(path, config, transcodes=transcodes)
    places = placed(path, ("hook_name", "hook_name_out"), hooks, wanted)
    if config.get("hook_layer", places[0].layer) != places[0].layer:
        raise ValueError(
            f"{path}: hook_layer is {config['hook_layer']!r}, but hook_name {places[0].hook}. "
            "Correct the one that is wrong."
        )
    tensors = _weights(folder, config, read_tensors(folder / WEIGHTS, wanted.device))
    stored = tensors.pop(STORED_THRESHOLD, None)
    held = converted(tensors, wanted.dtype, transposed=("W_enc",))
    parts: dict[str, Any] = {
        "read": held["W_enc"],
        "write": held["W_dec"],
        "read_bias": held["b_enc"],
        "write_bias": held["b_dec"],
        "skip": held.get("W_skip"),
        "activation": _activation(path, config, held.get("threshold"), stored, wanted),
    }
    layer = dictionary(path, places, parts)
    if config["apply_b_dec_to_input"] and not transcodes:
        layer = subtracting(layer, layer.write_bias)
    if config.get("rescale_acts_by_decoder_norm"):
        layer = layer.decoder_norm_gated()
    scale = _scale(folder, config)
    layer = layer.folded(scale, scale)
    processing = config.get("model_from_pretrained_kwargs") or {}
    centred = bool(processing.get("center_writing_weights"))
    if isinstance(layer, AttentionSAE | ResidualSAE) and centred:
        layer = _centred(path, layer, places[0].layer, wanted)
    folded = bool(processing.get("fold_ln"))
    return number_of(places), in_model_units(path, layer, places[0], wanted, folded=folded)


def _settings(path: Path) -> dict[str, Any]:
    """The settings of any version under the names of version 6, checked."""
    given = read_json(path)
    config = {RENAMED.get(name, name): value for name, value in given.items()}
    metadata = config.pop("metadata", {})
    config |= metadata if isinstance(metadata, dict) else {}
    config.setdefault("architecture", "standard")
    config.setdefault("apply_b_dec_to_input", True)
    activation, kwargs = config.get("activation_fn", "relu"), config.get("activation_fn_kwargs")
    if activation == "topk":
        config["architecture"] = "topk"
        config["k"] = kwargs.get("k") if isinstance(kwargs, dict) else config.get("k")
    elif activation != "relu":
        raise ValueError(
            f"{path}: activation_fn is {activation!r}; relu and topk are read. Nothing here "
            "computes another one."
        )
    if config["architecture"] not in ARCHITECTURES:
        raise ValueError(
            f"{path}: architecture is {config['architecture']!r}, which is not read. Known: "
            f"{', '.join(ARCHITECTURES)}."
        )
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(config.get(name, False), bool):
            raise ValueError(f"{path}: {name} is {config[name]!r}; it is true or false.")
    if config["architecture"].endswith("transcoder") and config["apply_b_dec_to_input"]:
        raise ValueError(
            f"{path}: a transcoder with apply_b_dec_to_input, which SAELens refuses too: its b_dec "
            "belongs to what it writes. Set it to false if that is what it was trained with."
        )
    gated = ARCHITECTURES[config["architecture"]] in ("topk", "batchtopk")
    if config.get("rescale_acts_by_decoder_norm") and not gated:
        raise ValueError(
            f"{path}: rescale_acts_by_decoder_norm with architecture {config['architecture']!r}, "
            "where SAELens passes over it. Only topk and batchtopk have it; correct it."
        )
    if config.get("reshape_activations", "none") != "none":
        raise ValueError(
            f"{path}: reshape_activations is {config['reshape_activations']!r}: it reads the "
            "heads' outputs before W_O, and its features are not functions of what attention "
            "writes. Use an SAE of hook_attn_out."
        )
    if config.get("hook_head_index") is not None:
        raise ValueError(
            f"{path}: hook_head_index is {config['hook_head_index']!r}: a dictionary of one head, "
            "for which there is no layer here. Use one of the whole sublayer."
        )
    return config


def _hooks(path: Path, config: dict[str, Any], *, transcodes: bool) -> tuple[object, object]:
    """Both hooks: in the model that was trained on, where SAELens only stands in for it."""
    prefix = "hf_" if config.get("hf_hook_name") is not None else ""
    reads, writes = config.get(f"{prefix}hook_name"), config.get(f"{prefix}hook_name_out")
    if not transcodes and writes not in (None, reads):
        raise ValueError(
            f"{path}: architecture {config['architecture']!r} reproduces what it reads, but "
            f"hook_name is {reads!r} and hook_name_out {writes!r}. Correct the one that is wrong."
        )
    return reads, writes if transcodes else reads


def _weights(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checked weights, without factors of 1 that old versions added."""
    path = folder / WEIGHTS
    for name in SCALINGS:
        factor = tensors.pop(name, None)
        if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
            raise ValueError(
                f"{path}: {name} is not 1 everywhere: activations are scaled after their gate, "
                "which no layer here does. Fold it into W_dec and leave it out."
            )
    kind = ARCHITECTURES[config["architecture"]]
    required = dict(REQUIRED)
    if kind == "jumprelu":
        required["threshold"] = "feature"
    if "skip" in config["architecture"]:
        required["W_skip"] = "d_model d_model"
    optional = {STORED_THRESHOLD: ""} if kind == "batchtopk" else {}
    widths = {"d_in": "d_model", "d_sae": "feature"}
    sizes = {axis: config[name] for name, axis in widths.items() if config.get(name) is not None}
    check_tensors(path, tensors, required, optional, sizes)
    return tensors


def _activation(
    path: Path,
    config: dict[str, Any],
    thresholds: Tensor | None,
    stored: Tensor | None,
    wanted: Wanted,
) -> Activation:
    kind = ARCHITECTURES[config["architecture"]]
    if stored is not None and wanted.threshold is None:
        wanted = dataclasses.replace(wanted, threshold=float(stored))
    if thresholds is not None:  # theirs also rectifies
        thresholds = thresholds.clamp(min=0)
    return activation_of(path, kind, wanted, k=config.get("k"), thresholds=thresholds)


def _scale(folder: Path, config: dict[str, Any]) -> float:
    """What inputs were multiplied with in training, if the weights are still for that."""
    name = config.get("normalize_activations") or "none"
    if name == "none":
        return 1.0
    path = folder / CONFIG
    if name not in ("expected_average_only_in", True):
        raise ValueError(
            f"{path}: normalize_activations is {name!r}, a scale that changes with the input, "
            "which no layer here can hold. Known: 'none', 'expected_average_only_in'."
        )
    if not (folder / SCALER).is_file():
        raise ValueError(
            f"{path}: normalize_activations is {name!r}, and the factor that inputs were "
            f"multiplied with is not there ({SCALER}). Fold it into the weights in SAELens "
            "(fold_activation_norm_scaling_factor) and save again."
        )
    factor = read_json(folder / SCALER).get("scaling_factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < 1e30:
        raise ValueError(
            f"{folder / SCALER}: scaling_factor is {factor!r}; it is a number above 0. Copy the "
            "folder again."
        )
    return float(factor)


def _centred(
    path: Path, layer: AttentionSAE | ResidualSAE, number: int, wanted: Wanted
) -> AttentionSAE | ResidualSAE:
    """A layer trained where all that is written was centred (LayerNorm models), the stream too."""
    if wanted.norms is None:
        raise ValueError(
            f"{path}: trained on a model with center_writing_weights, which changes LayerNorm "
            "models only. Pass norms=, the model's own: [layer.attention_norm for layer in "
            "model.weights.layers]."
        )
    if not norm_of(path, number, wanted.norms).centred:
        return layer
    return dataclasses.replace(layer, read=layer.read - layer.read.mean(-1, keepdim=True))
