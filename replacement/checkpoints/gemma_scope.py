"""Gemma Scope: `params.npz` a layer, and Gemma Scope 2: `config.json` with `params.safetensors`.

    a = jumprelu(x @ W_enc + b_enc)     output = a @ W_dec + b_dec (+ x @ affine_skip_connection)

Both keep W_enc as [d_model, feature]. The files of the first do not say what they were trained on:
residual stream, MLP, heads and transcoders are stored alike, so `hooks=` says it, and the layer is
the `layer_{i}` of the folders that they are published in. Gemma Scope 2 says both.
"""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replacement.checkpoints.dictionaries import (
    Dictionary,
    Wanted,
    activation_of,
    asked_places,
    converted,
    dictionary,
    in_model_units,
    placed,
)
from replacement.checkpoints.files import check_tensors, read_json, read_tensors, unreadable
from replacement.checkpoints.places import number_of

PARAMS, PARAMS_2, CONFIG_2 = "params.npz", "params.safetensors", "config.json"
HOOKS_2 = ("hf_hook_point_in", "hf_hook_point_out")
TRANSCODERS = ("ln2.hook_normalized", "hook_mlp_out")
STREAM = ("hook_resid_post", "hook_resid_post")
REQUIRED = {
    "W_enc": "d_model feature",
    "W_dec": "feature d_model",
    "b_enc": "feature",
    "b_dec": "d_model",
    "threshold": "feature",
}
SKIP = "affine_skip_connection"


def read_gemma_scope(path: Path, wanted: Wanted) -> tuple[int, Dictionary]:
    """Return the layer of a `params.npz`, and the dictionary in it."""
    found = [re.fullmatch(r"layer_(\d+)", part) for part in path.absolute().parts]
    numbers = [int(match[1]) for match in found if match is not None]
    if not numbers:
        raise ValueError(
            f"{path}: no folder above it is called layer_0, layer_1, … as Gemma Scope publishes "
            "them, and the file does not say its layer. Keep its folders."
        )
    if wanted.hooks is None:
        raise ValueError(
            f"{path}: Gemma Scope's files do not say what they were trained on. Pass hooks= to "
            f"replacement.checkpoints.read_layers, {TRANSCODERS} for gemma-scope-…-transcoders, "
            f"{STREAM} for gemma-scope-…-res, and give load the layers it returns."
        )
    places = asked_places(path, wanted.hooks, numbers[-1])
    layer = dictionary(path, places, scope_parts(path, read_npz(path), wanted))
    return number_of(places), in_model_units(path, layer, places[0], wanted)


def read_gemma_scope_2(folder: Path, wanted: Wanted) -> tuple[int, Dictionary]:
    """Return the layer of a folder of Gemma Scope 2, and the dictionary in it."""
    path, weights = folder / CONFIG_2, folder / PARAMS_2
    config = read_json(path)
    if config.get("architecture") != "jump_relu":
        raise ValueError(
            f"{path}: architecture is {config.get('architecture')!r}; Gemma Scope 2 has jump_relu. "
            "Correct it if it is misspelt."
        )
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: missing. Copy the folder again.")
    reads, writes = (config.get(name) for name in HOOKS_2)
    places = placed(path, HOOKS_2, (reads, reads if writes is None else writes), wanted)
    tensors = read_tensors(weights, wanted.device)
    affine = config.get("affine_connection", SKIP in tensors)
    if affine is not (SKIP in tensors):
        raise ValueError(
            f"{path}: affine_connection is {affine!r}, but {PARAMS_2} has "
            f"{'a' if SKIP in tensors else 'no'} {SKIP}. Copy the folder again."
        )
    layer = dictionary(path, places, scope_parts(weights, tensors, wanted))
    return number_of(places), in_model_units(path, layer, places[0], wanted)


def scope_parts(
    path: Path, tensors: dict[str, Tensor], wanted: Wanted, *, n_layers: int | None = None
) -> dict[str, Any]:
    """Return the fields of a layer from the tensors of either Gemma Scope, checked.

    `n_layers`: of a cross-layer transcoder, whose W_dec has a row for every layer.
    """
    # the second writes w_enc and w_dec, the first W_enc and W_dec
    capital = {re.sub(r"^w_", "W_", name): tensor for name, tensor in tensors.items()}
    required, sizes = dict(REQUIRED), {}
    if n_layers is not None:
        required["W_dec"], sizes = "feature layer d_model", {"layer": n_layers}
    check_tensors(path, capital, required, {SKIP: "d_model d_model"}, sizes)
    on_device = {name: tensor.to(wanted.device) for name, tensor in capital.items()}
    held = converted(on_device, wanted.dtype, transposed=("W_enc", SKIP))
    return {
        "read": held["W_enc"],
        "write": held["W_dec"],
        "read_bias": held["b_enc"],
        "write_bias": held["b_dec"],
        "skip": held.get(SKIP),
        "activation": activation_of(path, "jumprelu", wanted, thresholds=held["threshold"]),
    }


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return every array of an .npz file; pickled ones are refused, so no code is run."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive of arrays by name")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise unreadable(path, reason) from None
    tensors = {}
    for name, array in arrays.items():
        try:
            tensors[name] = torch.from_numpy(array)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: {name} is {array.dtype}; weights are floating-point. Copy the file again."
            ) from None
    return tensors
