"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, one folder a hook point.

    a = topk(x @ encoder.weight.T + encoder.bias)      output = a @ W_dec + b_dec (+ x @ W_skip.T)

With `transcode` x is the input of the module that the folder is named after and the output is the
module's; without, x is the module's output less b_dec, and the output should be x. Folder names
are the hook points of this format: a module of the Hugging Face model, such as `layers.3.mlp`.
"""

import re
from pathlib import Path
from typing import Any

from replacement.checkpoints.dictionaries import (
    Dictionary,
    Wanted,
    activation_of,
    converted,
    dictionary,
    placed,
    subtracting,
)
from replacement.checkpoints.files import check_tensors, read_json, read_tensors
from replacement.checkpoints.places import number_of

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
MODULE = re.compile(r"(?:\w+\.)*(?:layers|h)\.(\d+)(?:\.(\w+))?")
SUBLAYERS = {
    None: ("model.layers.{}.output",) * 2,
    "mlp": ("mlp.hook_in", "mlp.hook_out"),
    "self_attn": ("model.layers.{}.self_attn.output",) * 2,
    "attention": ("model.layers.{}.self_attn.output",) * 2,
    "attn": ("model.layers.{}.self_attn.output",) * 2,
}
"""What modules are called, and what is read and reproduced."""
REQUIRED = {
    "encoder.weight": "feature d_model",
    "encoder.bias": "feature",
    "W_dec": "feature d_model",
    "b_dec": "d_model",
}


def read_sparsify(folder: Path, wanted: Wanted) -> tuple[int, Dictionary]:
    """Return which layer the dictionary of a folder is for, and the dictionary."""
    path = folder / CONFIG
    config = _settings(path)
    hooks = _hooks(folder, transcode=config["transcode"])
    places = placed(folder, ("its name, the input's", "its name, the output's"), hooks, wanted)
    required = dict(REQUIRED)
    if config["skip_connection"]:
        required["W_skip"] = "d_model d_model"
    sizes = {"d_model": config["d_in"], "feature": _n_features(config)}
    tensors = read_tensors(folder / WEIGHTS, wanted.device)
    check_tensors(folder / WEIGHTS, tensors, required, {}, sizes)
    held = converted(tensors, wanted.dtype)
    parts = {
        "read": held["encoder.weight"],
        "write": held["W_dec"],
        "read_bias": held["encoder.bias"],
        "write_bias": held["b_dec"],
        "skip": held.get("W_skip"),
        "activation": activation_of(path, config["activation"], wanted, k=config["k"]),
    }
    layer = dictionary(folder, places, parts)
    if not config["transcode"]:
        layer = subtracting(layer, layer.write_bias)
    return number_of(places), layer


def _settings(path: Path) -> dict[str, Any]:
    defaults = {"activation": "topk", "transcode": False, "skip_connection": False, "k": 32}
    config = {**defaults, "num_latents": 0, "expansion_factor": 32, **read_json(path)}
    for name in ("transcode", "skip_connection"):
        if not isinstance(config[name], bool):
            raise ValueError(f"{path}: {name} is {config[name]!r}; it is true or false.")
    for name in ("d_in", "num_latents", "expansion_factor"):
        value = config.get(name)
        if not isinstance(value, int) or value < (name == "d_in"):
            raise ValueError(f"{path}: {name} is {value!r}; it is a whole number. Correct it.")
    if config["activation"] != "topk" or config.get("signed"):
        raise ValueError(
            f"{path}: activation is {config['activation']!r}, signed {config.get('signed')!r}; "
            "only topk of positive values is read. Nothing here computes another one."
        )
    return config


def _n_features(config: dict[str, Any]) -> int:
    return config["num_latents"] or config["d_in"] * config["expansion_factor"]


def _hooks(folder: Path, *, transcode: bool) -> tuple[str, str]:
    """The hook points that a folder's name says, in the names that `placed` knows."""
    name = folder.absolute().name
    found = MODULE.fullmatch(name)
    if found is None or found[2] not in SUBLAYERS:
        raise ValueError(
            f"{folder}: {name!r} is not the name of a part of a model. sparsify names a folder "
            "after its module: layers.L for the residual stream behind a layer, or layers.L with "
            f"one of {', '.join(part for part in SUBLAYERS if part)}. Give the folders their own "
            "names."
        )
    run = folder.parent / RUN
    listed = read_json(run).get("hookpoints") if run.is_file() else None
    if isinstance(listed, list) and listed and name not in listed:
        raise ValueError(
            f"{folder}: {run} lists the hook points {', '.join(map(str, listed))[:200]}; {name} is "
            "not among them. Give the folder its own name."
        )
    if transcode != (found[2] == "mlp"):
        odd = {"mlp": "an SAE of an MLP's output", None: "a transcoder of a whole layer"}
        what = odd.get(found[2], "a transcoder of attention")
        raise ValueError(
            f"{folder}: {CONFIG} says transcode {transcode} (false where it says nothing): {what}, "
            "which no layer here is. What can be read: transcoders of MLPs, and SAEs of "
            "attention's output and of layers. Files from before sparsify 1.0 lack the setting; "
            "add it if you know that b_dec was not subtracted from what they read."
        )
    reads, writes = SUBLAYERS[found[2]]
    if found[2] == "mlp":
        return f"blocks.{found[1]}.{reads}", f"blocks.{found[1]}.{writes}"
    return reads.format(found[1]), writes.format(found[1])
