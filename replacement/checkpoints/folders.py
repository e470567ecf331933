"""One folder of layers of one class, as replacement/checkpoints/ours.py describes it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from replacement.checkpoints.files import (
    check_tensors,
    read_json,
    read_tensors,
    replaced_whole,
    stored,
)
from replacement.checkpoints.layouts import (
    LAYOUTS,
    Kind,
    Layer,
    Layout,
    layer_from,
    settings_of,
    tensors_of,
)
from replacement.checkpoints.query_keys import EXACT
from replacement.precision import kept_in

FORMAT = "linear-circuits "
VERSION = 2
READABLE = (1, 2)
CONFIG = "config.json"
FLAGS = ("after_post_norm", "reads_stream")
"""Listed where one is true of a layer: what it reproduces comes out of a norm after the sublayer;
what it reads is the residual stream before the norm."""


def save_folder(
    layout: Layout[Layer], layers: Sequence[Layer | None], folder: Path, dtype: torch.dtype
) -> None:
    """Write the layers that are there to `folder`: all of them, or nothing is changed."""
    present = [layer for layer in layers if layer is not None]
    if not present:
        raise ValueError(
            f"{layout.function('save')}: no layers given; at least one {layout.layer.__name__} "
            "is needed, None where a layer has none."
        )
    for layer in present:
        if not isinstance(layer, layout.layer):
            raise TypeError(
                f"{layout.function('save')} takes {layout.layer.__name__} layers; got a "
                f"{type(layer).__name__}."
            )
    check_free(layout.kind, folder)
    d_model = present[0].read.shape[1]
    config: dict[str, Any] = {
        "format": FORMAT + layout.kind,
        "version": VERSION,
        "n_layers": len(layers),
        "d_model": d_model,
        **{name: [None] * len(layers) for name in layout.settings},
    }
    for flag in FLAGS:
        listed = [layer is not None and getattr(layer, flag) for layer in layers]
        if any(listed):
            config[flag] = listed
    config |= layout.described(present)
    with replaced_whole(folder, last=CONFIG) as unfinished:
        for number, layer in enumerate(layers):
            if layer is None:
                continue
            where = f"{layout.function('save')}, layer {number}"
            tensors = {
                name: stored(where, name, tensor, tensor.dtype if name in EXACT else dtype)
                for name, tensor in tensors_of(layer).items()
            }
            settings = settings_of(layer)
            check_tensors(where, tensors, layout.required, layout.optional, {"d_model": d_model})
            _rebuilt(layout, where, tensors, settings)  # what cannot be read is not written
            for name, entry in settings.items():
                config[name][number] = entry
            save_file(tensors, unfinished / f"layer_{number}.safetensors")
        (unfinished / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def check_free(kind: str, folder: Path) -> None:
    """Raise ValueError if `folder` holds something that a set of this kind would overwrite."""
    if not (folder / CONFIG).is_file():
        return
    try:
        there = _kind(read_json(folder / CONFIG)) or "something else, perhaps a model"
    except ValueError:
        there = "a config.json that cannot be read"
    if there != kind:
        raise ValueError(
            f"{folder}: holds {there}, which {kind} would overwrite. Give a new folder, or that of "
            f"an older set of {kind}."
        )


def load_folder(
    layout: Layout[Layer], folder: Path, device: torch.device | str, dtype: torch.dtype
) -> list[Layer | None]:
    """Return the layers of `folder`, None for those it does not have."""
    config = _config_of(layout, folder)
    sizes = {"d_model": config["d_model"]}
    layers: list[Layer | None] = []
    for number in range(config["n_layers"]):
        settings = {name: config[name][number] for name in layout.settings}
        path = folder / f"layer_{number}.safetensors"
        if all(entry is None for entry in settings.values()):
            layers.append(None)
            continue
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing. {CONFIG} lists {config['n_layers']} layers, one file for each "
                "that is not null. Copy the folder again."
            )
        tensors = read_tensors(path, device)
        check_tensors(path, tensors, layout.required, layout.optional, sizes)
        converted = {
            name: tensor if name in EXACT else kept_in(tensor, dtype)
            for name, tensor in tensors.items()
        }
        where = f"{path.parent / CONFIG} with {path.name}"
        layer: Any = _rebuilt(layout, where, converted, settings)
        set_ones = {flag: True for flag in FLAGS if config[flag][number]}
        layers.append(dataclasses.replace(layer, **set_ones))
    return layers


def _rebuilt(
    layout: Layout[Layer], where: str, tensors: dict[str, Any], settings: dict[str, Any]
) -> Layer:
    try:
        return layer_from(layout, tensors, settings)
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None


def kind_of(folder: str | Path) -> Kind:
    """Return which layers a folder of ours holds: one of the words of `Kind`.

    Reads config.json only. Raises FileNotFoundError for a missing folder, ValueError for one that
    is not ours.
    """
    config = _read_config(Path(folder), "layers", "")
    kind = _kind(config)
    if kind is None:
        raise _foreign(Path(folder) / CONFIG, config, _formats())
    return kind


def _config_of(layout: Layout, folder: Path) -> dict[str, Any]:
    """The checked config.json of a folder of one class."""
    own_way = f', or {layout.argument}="{layout.instead}" to use the model\'s own {layout.instead}'
    config = _read_config(folder, layout.kind.replace("-", " "), own_way)
    path, kind = folder / CONFIG, _kind(config)
    if kind is None:
        raise _foreign(path, config, f'"{FORMAT}{layout.kind}"')
    if kind != layout.kind:
        found = LAYOUTS[kind]
        raise ValueError(
            f"{path}: a folder of {kind}, not of {layout.kind}. Read it with "
            f"{found.function('load')}, or give it as load({found.argument}=…)."
        )
    if config.get("version") not in READABLE:
        raise ValueError(
            f"{path}: version {config.get('version')!r}, this library reads versions "
            f"{' and '.join(map(str, READABLE))}. Upgrade linear-circuits."
        )
    for name in ("n_layers", "d_model"):
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise ValueError(f'{path}: "{name}" is {config.get(name)!r}; it is a number above 0.')
    for name in layout.settings:
        if not isinstance(config.get(name), list) or len(config[name]) != config["n_layers"]:
            raise ValueError(
                f'{path}: "{name}" must list the settings of every one of the '
                f'{config["n_layers"]} layers that "n_layers" promises, null for absent ones.'
            )
    for flag in FLAGS:
        listed, every = config.setdefault(flag, [False] * config["n_layers"]), [bool]
        known = isinstance(listed, list) and [type(one) for one in listed]
        if known != every * config["n_layers"]:
            raise ValueError(f'{path}: "{flag}" must list true or false for every layer.')
        if any(listed) and flag not in {field.name for field in dataclasses.fields(layout.layer)}:
            raise ValueError(f'{path}: "{flag}" is not for {layout.kind}; take it out.')
    return config


def _read_config(folder: Path, what: str, own_way: str) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder of {what}. Give the folder that holds {CONFIG} and "
            f"layer_0.safetensors, …{own_way}."
        )
    if not path.is_file():
        held = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{folder}: not a format I know. Found: {held}. Looked for: {CONFIG} with "
            f'"format": {_formats()} beside layer_0.safetensors, layer_1.safetensors, …'
        )
    return read_json(path)


def _kind(config: dict[str, Any]) -> Kind | None:
    for kind in LAYOUTS:
        if config.get("format") == FORMAT + kind:
            return kind
    return None


def _formats() -> str:
    return " or ".join(f'"{FORMAT}{kind}"' for kind in LAYOUTS)


def _foreign(path: Path, config: dict[str, Any], known: str) -> ValueError:
    if config.get("sae_type") == "lorsa":
        return ValueError(
            f"{path}: one Lorsa layer as OpenMOSS publishes it. Read it with "
            "replacement.checkpoints.load_openmoss_lorsa, and keep the layers with save_lorsa."
        )
    return ValueError(
        f'{path}: "format" is {config.get("format")!r}; this reader knows {known}. Convert the '
        "layers with replacement.checkpoints, "
        + " or ".join(layout.function("save") for layout in LAYOUTS.values())
        + "."
    )
