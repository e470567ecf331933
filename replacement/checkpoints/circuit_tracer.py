"""Transcoder sets of circuit-tracer: `config.yaml` and one `layer_{i}.safetensors` a layer.

    a = act(x @ W_enc.T + b_enc)        output = a @ W_dec + b_dec (+ x @ W_skip.T)

A `cross_layer_transcoder` has `W_enc_{i}.safetensors` (W_enc_i, b_enc_i, b_dec_i, threshold_i) and
`W_dec_{i}.safetensors` (W_dec_i: a row for the output of layer i and of every later one), or lists
Gemma Scope 2's files, each with rows for all layers and a skip applied as `x @ skip`.

`feature_input_hook` and `feature_output_hook` name x and the output, after `blocks.L.`. With one
threshold a feature it is JumpReLU, with `activation: topk` and `k` TopK, else ReLU. Negative values
among the k largest, which circuit-tracer keeps, are dropped; there are none while k features are
positive. `transcoders` may list other files, of this format or of Gemma Scope's two.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from replacement.checkpoints.dictionaries import (
    Dictionary,
    Wanted,
    activation_of,
    converted,
    cross_layer,
    dictionary,
    in_model_units,
    placed,
)
from replacement.checkpoints.files import check_tensors, read_tensors
from replacement.checkpoints.gemma_scope import read_npz, scope_parts
from replacement.checkpoints.hub import SCHEME, fetch_files, source_of
from replacement.checkpoints.places import Place

CONFIG = "config.yaml"
HOOKS = ("feature_input_hook", "feature_output_hook")
ACROSS = "cross_layer_transcoder"
THRESHOLD = "activation_function.threshold"
REQUIRED = {
    "W_enc": "feature d_model",
    "W_dec": "feature d_model",
    "b_enc": "feature",
    "b_dec": "d_model",
}
OPTIONAL = {THRESHOLD: "feature", "W_skip": "d_model d_model"}
REQUIRED_ACROSS = {**REQUIRED, "W_dec": "feature target d_model"}


def read_circuit_tracer(folder: Path, wanted: Wanted) -> list[Dictionary]:
    """Return the transcoders of a folder, or the parts of a cross-layer one, first layer first."""
    path = folder / CONFIG
    config = _settings(path)
    across = config["model_kind"] == ACROSS
    layers: list[Dictionary] = []
    files = _files(folder, config)
    for number, file in enumerate(files):
        places = placed(path, HOOKS, _hooks(config, number), wanted)
        read = partial(_across, number=number, n_layers=len(files)) if across else _layer
        layers.append(read(path, config, file, places, wanted))
        if layers[-1].read.shape[1] != layers[0].read.shape[1]:
            raise ValueError(
                f"{file}: reads vectors of {layers[-1].read.shape[1]}, those before of "
                f"{layers[0].read.shape[1]}. All layers of a set are of one model; give its own."
            )
    return layers


def _settings(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        reason = str(problem).splitlines()[0]
        raise ValueError(f"{path}: not valid YAML ({reason}). Copy the folder again.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds no settings by name. Copy the folder again.")
    kind = config.get("model_kind")
    if kind not in ("transcoder_set", ACROSS):
        raise ValueError(
            f"{path}: model_kind is {kind!r}; transcoder_set and {ACROSS} are read here. Correct "
            "it if it is misspelt."
        )
    return config


def _hooks(config: dict[str, Any], number: int) -> tuple[object, object]:
    """The two hooks with their layer; what is not even a string is left for the error to show."""
    given = [config.get(name) for name in HOOKS]
    reads, writes = (f"blocks.{number}.{hook}" if isinstance(hook, str) else hook for hook in given)
    return reads, writes


def _files(folder: Path, config: dict[str, Any]) -> Sequence[Path]:
    listed = config.get("transcoders")
    if listed is not None:
        files = _listed(folder, listed)
        repeated = config["model_kind"] == ACROSS and files[-2:-1] == files[-1:]
        files = files[:-1] if repeated else files  # as published sets of Gemma Scope 2 list them
        twice = sorted({file.name for file in files if files.count(file) > 1})
        if twice:
            raise ValueError(
                f"{folder / CONFIG}: transcoders lists {', '.join(twice)} more than once; it lists "
                "one file for each layer from 0 on. Correct it."
            )
        return files
    stem = "W_enc" if config["model_kind"] == ACROSS else "layer"
    held = {file.name for file in folder.glob(f"{stem}_*.safetensors")}
    names = [f"{stem}_{number}.safetensors" for number in range(len(held))]
    if not held or held != set(names):
        missing = [name for name in names if name not in held] or [f"{stem}_0.safetensors"]
        raise ValueError(
            f"{folder}: {', '.join(missing)} missing (found: {', '.join(sorted(held)) or 'none'}). "
            "A set has one file for each layer from 0 on. Copy the folder again."
        )
    return [folder / name for name in names]


def _listed(folder: Path, listed: object) -> Sequence[Path]:
    where = folder / CONFIG
    if not isinstance(listed, list) or not listed or not all(isinstance(x, str) for x in listed):
        raise ValueError(
            f"{where}: transcoders is {listed!r:.80}; it lists one file for each layer from 0 on. "
            "Correct it."
        )
    files = []
    sources = [source_of(entry) for entry in listed if entry.startswith(SCHEME)]
    fetched = iter(fetch_files([source for source in sources if source is not None]))
    for entry in listed:
        if entry.startswith(SCHEME) and source_of(entry) is not None:
            files.append(next(fetched))
        elif "://" in entry:
            raise ValueError(
                f"{where}: lists {entry}; read here: paths (relative to the folder, or whole) and "
                "hf://user/repo/path?revision=…. Correct it."
            )
        else:
            files.append(folder / entry)
        if not files[-1].is_file():
            raise FileNotFoundError(f"{files[-1]}: missing, but {where} lists it. Copy it again.")
    return files


def _check_scope(path: Path, config: dict[str, Any], file: Path) -> None:
    """Raise ValueError where the settings contradict a file of Gemma Scope, which is JumpReLU."""
    if config.get("activation") not in (None, "jumprelu", "jump_relu"):
        raise ValueError(
            f"{path}: activation is {config['activation']!r}, but {file.name} is of Gemma Scope, "
            "whose activation is jumprelu. Correct it, or leave it out."
        )
    if config.get("k") is not None:
        raise ValueError(
            f"{path}: k is {config['k']!r}, but {file.name} is of Gemma Scope, whose activation is "
            "jumprelu and has no k. Leave it out."
        )


def _layer(
    path: Path, config: dict[str, Any], file: Path, places: tuple[Place, Place], wanted: Wanted
) -> Dictionary:
    tensors = read_npz(file) if file.suffix == ".npz" else read_tensors(file, wanted.device)
    if "w_enc" in tensors or file.suffix == ".npz":
        _check_scope(path, config, file)
        parts = scope_parts(file, tensors, wanted)
    else:
        check_tensors(file, tensors, REQUIRED, OPTIONAL, {})
        held = converted(tensors, wanted.dtype)
        name = config.get("activation") or ("jumprelu" if THRESHOLD in held else "relu")
        parts = {
            "read": held["W_enc"],
            "write": held["W_dec"],
            "read_bias": held["b_enc"],
            "write_bias": held["b_dec"],
            "skip": held.get("W_skip"),
            "activation": activation_of(
                f"{path} with {file.name}",
                name,
                wanted,
                k=config.get("k"),
                thresholds=held.get(THRESHOLD),
            ),
        }
    return in_model_units(path, dictionary(path, places, parts), places[0], wanted)


def _across(
    path: Path,
    config: dict[str, Any],
    file: Path,
    places: tuple[Place, Place],
    wanted: Wanted,
    *,
    number: int,
    n_layers: int,
) -> Dictionary:
    """One layer of a cross-layer transcoder, which writes to the `n_layers - number` from it on."""
    tensors = read_tensors(file, wanted.device)
    if "w_enc" in tensors:
        _check_scope(path, config, file)
        parts = scope_parts(file, tensors, wanted, n_layers=n_layers)
        parts["write"] = parts["write"][:, number:]
    else:
        decoder = file.with_name(f"W_dec_{number}.safetensors")
        if not decoder.is_file():
            raise FileNotFoundError(f"{decoder}: missing beside {file.name}. Copy it again.")
        tensors |= read_tensors(decoder, wanted.device)
        named = {name.removesuffix(f"_{number}"): tensor for name, tensor in tensors.items()}
        sizes = {"target": n_layers - number}
        check_tensors(file, named, REQUIRED_ACROSS, {"threshold": "feature"}, sizes)
        held = converted(named, wanted.dtype)
        name = config.get("activation") or ("jumprelu" if "threshold" in held else "relu")
        parts = {
            "read": held["W_enc"],
            "write": held["W_dec"],
            "read_bias": held["b_enc"],
            "write_bias": held["b_dec"],
            "activation": activation_of(
                f"{path} with {file.name}",
                name,
                wanted,
                k=config.get("k"),
                thresholds=held.get("threshold"),
            ),
        }
    parts["write"] = parts["write"].flatten(1)
    return in_model_units(path, cross_layer(path, places, parts), places[0], wanted)
