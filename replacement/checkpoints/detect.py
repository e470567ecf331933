"""Folders of replacement layers of any known format: which it is, and the layers in it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from replacement.checkpoints.circuit_tracer import read_circuit_tracer
from replacement.checkpoints.dictionaries import Wanted, norm_of, placed
from replacement.checkpoints.dunefsky import read_dunefsky
from replacement.checkpoints.files import read_json
from replacement.checkpoints.folders import CONFIG, FORMAT, kind_of, load_folder
from replacement.checkpoints.gemma_scope import read_gemma_scope, read_gemma_scope_2
from replacement.checkpoints.layouts import LAYOUTS, Kind
from replacement.checkpoints.llama_scope import read_llama_scope
from replacement.checkpoints.openmoss import load_openmoss_lorsa
from replacement.checkpoints.openmoss.across import read_openmoss_across
from replacement.checkpoints.openmoss.dictionaries import HOOKS, read_openmoss
from replacement.checkpoints.openmoss.settings import layer_number
from replacement.checkpoints.saelens import read_saelens
from replacement.checkpoints.sparsify import read_sparsify
from replacement.layers import (
    AttentionSAE,
    CrossLayerTranscoder,
    Lorsa,
    ResidualSAE,
    Transcoder,
)
from replacement.norms import Norm

AnyLayer = Transcoder | CrossLayerTranscoder | AttentionSAE | ResidualSAE | Lorsa
KINDS: dict[type, Kind] = {layout.layer: kind for kind, layout in LAYOUTS.items()}
DEPTH = 5
"""How many folders deep layers are looked for."""
SPARSITY = "_log_feature_sparsity.pt"


@dataclass(frozen=True)
class Format:
    """One layout of another project in which every layer has its own folder or file."""

    name: str
    found: str
    """What it is recognised by, for people."""
    read: Callable[[Path, Wanted], tuple[int, AnyLayer]]


def _openmoss(folder: Path, wanted: Wanted) -> tuple[int, AnyLayer]:
    """The layer of a folder of OpenMOSS, whichever class it is."""
    path = folder / CONFIG
    config = read_json(path)
    kind = config["sae_type"]
    if not (folder / "sae_weights.safetensors").is_file():
        held = ", ".join(sorted(child.name for child in folder.iterdir()))
        raise FileNotFoundError(
            f"{folder / 'sae_weights.safetensors'}: missing (found: {held:.200}). Weights in "
            "another form (.pt, .dcp) are not read; save them with safetensors."
        )
    if kind == "sae":
        return read_openmoss(folder, wanted)
    if kind != "lorsa":
        raise ValueError(
            f"{path}: sae_type is {kind!r} of OpenMOSS, which no layer here does the same as. "
            "Known: sae (SAEs of attention's output, and transcoders), lorsa, and clt in a folder "
            "of its own."
        )
    number = layer_number(path, config)
    placed(path, HOOKS, (config["hook_point_in"], config["hook_point_out"]), wanted)
    if wanted.norms is None:
        raise ValueError(
            f"{path}: reads blocks.{number}.ln1.hook_normalized, which an RMS norm takes before "
            "its gain and a LayerNorm after gain and bias; the files do not say which the model "
            "has. Pass norms=, the model's own: [layer.attention_norm for layer in "
            "model.weights.layers]."
        )
    norm = norm_of(path, number, wanted.norms)
    _, layer = load_openmoss_lorsa(
        folder,
        gain=None if norm.centred else norm.gain,
        threshold=wanted.threshold,
        device=wanted.device,
        dtype=wanted.dtype,
    )
    return number, dataclasses.replace(layer, after_post_norm=True)  # hook_attn_out comes after it


SAELENS = Format("SAELens", "cfg.json with sae_weights.safetensors", read_saelens)
SPARSIFY = Format("sparsify", "cfg.json with sae.safetensors", read_sparsify)
LLAMA_SCOPE = Format("Llama Scope 1", "hyperparams.json", read_llama_scope)
OPENMOSS = Format("OpenMOSS", 'config.json with "sae_type"', _openmoss)
GEMMA_SCOPE_2 = Format("Gemma Scope 2", 'config.json with "hf_hook_point_in"', read_gemma_scope_2)
GEMMA_SCOPE = Format("Gemma Scope", "params.npz", read_gemma_scope)
DUNEFSKY = Format("Dunefsky's transcoders", "….pt files", read_dunefsky)
SINGLE = (SAELENS, SPARSIFY, LLAMA_SCOPE, OPENMOSS, GEMMA_SCOPE_2, GEMMA_SCOPE, DUNEFSKY)


def read_layers(
    folder: str | Path,
    *,
    norms: Sequence[Norm] | None = None,
    threshold: int | float | None = None,
    hooks: tuple[str, str] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    n_layers: int | None = None,
) -> tuple[Kind, list[Any]]:
    """Return the kind of layers in a folder, as our own config.json names it, and them.

    One per layer of the model, in its units, None where there is none; of "residual-saes" one per
    stage of the residual stream: number `2 · layer` enters a layer, `2 · layer + 1` its MLP, and
    what leaves a layer enters the next one, or the final norm. The format is recognised from what
    is in the folder, or in folders inside it with one layer each; no code in it is run.

    Parameters
    ----------
    folder
        Of ours, of circuit-tracer, SAELens, Gemma Scope (1 and 2), sparsify, OpenMOSS, Llama Scope,
        or with Dunefsky's transcoders. A single `.npz` or `.pt` file will do too.
    norms
        The model's norm before each MLP (for layers of attention: before attention), such as
        `[layer.mlp_norm for layer in model.weights.layers]`. Formats that read TransformerLens'
        `hook_normalized` need them.
    threshold
        BatchTopK without a stored threshold only: the running mean of the smallest kept value.
    hooks
        What is read and reproduced, in TransformerLens' names after `blocks.L.`. Gemma Scope's
        `.npz` need it, `("ln2.hook_normalized", "hook_mlp_out")` for transcoders; elsewhere it is
        compared with what the files say.
    n_layers
        How many layers the model has; default as many as there are norms, else up to the last
        layer found.

    Raises
    ------
    FileNotFoundError, ValueError
        For a folder of no known format, and for anything that cannot be read exactly.
    """
    folder = Path(folder).expanduser()
    wanted = Wanted(norms=norms, threshold=threshold, hooks=hooks, device=device, dtype=dtype)
    if n_layers is None and norms is not None:
        n_layers = len(norms)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder of layers. Give one that is there.")
    found: dict[int, AnyLayer]
    if (folder / "config.yaml").is_file():
        found = dict(enumerate(read_circuit_tracer(folder, wanted)))
    elif _entry(folder, "sae_type") == "clt":
        found = dict(enumerate(read_openmoss_across(folder, wanted)))
    elif str(_entry(folder, "format")).startswith(FORMAT):
        if threshold is not None or hooks is not None:
            raise ValueError(
                f"{folder}: threshold= and hooks= are for formats whose files lack them; these "
                "layers are ours. Leave them out."
            )
        layers = load_folder(LAYOUTS[kind_of(folder)], folder, device, dtype)
        found = {number: layer for number, layer in enumerate(layers) if layer is not None}
        if n_layers is None:
            n_layers = len(layers) // 2 if _staged(layers) else len(layers)
    else:
        found = _one_by_one(folder, wanted)
    return _spread(folder, found, n_layers)


def _one_by_one(folder: Path, wanted: Wanted) -> dict[int, AnyLayer]:
    """The layers that lie in folders or files of their own, by number."""
    units = list(_units(folder, 0))
    if not units:
        raise _unknown(folder)
    formats = {form.name: path for form, path in units}
    if len(formats) > 1:
        listed = ", ".join(f"{name} ({path})" for name, path in formats.items())
        raise ValueError(f"{folder}: layers of several formats: {listed}. Give a folder of one.")
    layers: dict[int, AnyLayer] = {}
    paths: dict[int, Path] = {}
    for form, path in units:
        number, layer = form.read(path, wanted)
        if number in layers:
            what = "stage" if isinstance(layer, ResidualSAE) else "layer"
            raise ValueError(
                f"{folder}: {what} {number} is there twice, as {paths[number]} and {path}. Give a "
                f"folder with one dictionary a {what}."
            )
        layers[number], paths[number] = layer, path
    return layers


def _units(path: Path, depth: int) -> Iterator[tuple[Format, Path]]:
    """Every folder or file below `path` that is one layer of a known format, in order."""
    if path.is_file():
        if path.suffix == ".npz":
            yield GEMMA_SCOPE, path
        elif path.suffix == ".pt" and not path.name.endswith(SPARSITY):
            yield DUNEFSKY, path
        return
    form = _of_folder(path)
    if form is not None:
        yield form, path
    elif depth < DEPTH:
        for child in sorted(path.iterdir()):
            if not child.name.startswith("."):
                yield from _units(child, depth + 1)


def _of_folder(folder: Path) -> Format | None:
    if (folder / "cfg.json").is_file():
        for form, weights in ((SAELENS, "sae_weights.safetensors"), (SPARSIFY, "sae.safetensors")):
            if (folder / weights).is_file():
                return form
    if (folder / "hyperparams.json").is_file():
        return LLAMA_SCOPE
    if _entry(folder, "sae_type") is not None:
        return OPENMOSS
    if _entry(folder, "hf_hook_point_in") is not None:
        return GEMMA_SCOPE_2
    return None


def _entry(folder: Path, name: str) -> object:
    """One entry of a folder's config.json, None where there is none."""
    path = folder / CONFIG
    return read_json(path).get(name) if path.is_file() else None


def _spread(
    folder: Path, layers: dict[int, AnyLayer], n_layers: int | None
) -> tuple[Kind, list[Any]]:
    kinds: set[Kind] = {KINDS[type(layer)] for layer in layers.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"{folder}: layers of {' and '.join(sorted(kinds)) or 'no kind'}. Give a folder of one "
            "kind."
        )
    last, what = max(layers), "layer"
    n_all = last + 1 if n_layers is None else n_layers
    if kinds == {"residual-saes"}:  # always a whole number of layers and the final stream
        what = "stage"
        n_all = 2 * ((last + 1) // 2 if n_layers is None else n_layers) + 1
    if last >= n_all:
        raise ValueError(
            f"{folder}: has {what} {last}, but the model has {n_all} {what}s, 0 to {n_all - 1}. "
            "Give the layers of this model."
        )
    return kinds.pop(), [layers.get(number) for number in range(n_all)]


def _staged(layers: Sequence[Any]) -> bool:
    return any(isinstance(layer, ResidualSAE) for layer in layers)


def _unknown(folder: Path) -> ValueError:
    held = folder.name
    if folder.is_dir():
        held = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
        if any(folder.glob("W_enc_*.safetensors")):
            return ValueError(
                f"{folder}: a cross-layer transcoder of circuit-tracer without its config.yaml "
                f"(found: {held}), which says what it reads. Copy it too."
            )
        if any(folder.glob("layer_*.safetensors")):
            return ValueError(
                f"{folder}: layer files without settings (found: {held}). circuit-tracer's "
                f"config.yaml or our {CONFIG} says what they read; copy it too."
            )
    known = "; ".join(f"{form.found} ({form.name})" for form in SINGLE)
    return ValueError(
        f'{folder}: not a format I know. Found: {held}. Looked for: {CONFIG} with "format": '
        f'"{FORMAT}…" (ours); config.yaml (circuit-tracer); here or in folders inside: {known}.'
    )
