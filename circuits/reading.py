"""What MLPs and attention are read as: from the words and folders of `load` to layers."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from replacement.checkpoints import (
    load_attention_saes,
    load_cross_layer_transcoders,
    load_lorsa,
    load_residual_saes,
    load_transcoders,
    read_layers,
)
from replacement.layers import AttentionSAE, FeatureLayer, Lorsa, ResidualSAE
from replacement.norms import Norm

Layers = Sequence[Any] | None
"""One layer or None (the model's own part) per sublayer; None for the model's own everywhere."""
LOADERS: dict[str, Callable[..., list[Any]]] = {
    "transcoders": load_transcoders,
    "cross-layer-transcoders": load_cross_layer_transcoders,
    "lorsa": load_lorsa,
    "attention-saes": load_attention_saes,
    "residual-saes": load_residual_saes,
}


@dataclass(frozen=True)
class Part:
    """MLPs, attention or the residual stream: what they can be read as."""

    argument: str
    own: str
    """The word for the model's own parts."""
    kinds: tuple[str, ...]
    """Kinds of sets that fit; of those bundled with a model the first is the default."""
    layers: tuple[type, ...]
    each: str


MLP = Part("mlp", "neurons", ("transcoders", "cross-layer-transcoders"), (FeatureLayer,), "MLP")
ATTENTION = Part(
    "attention", "heads", ("lorsa", "attention-saes"), (Lorsa, AttentionSAE), "attention layer"
)
RESIDUAL = Part("residual", "stream", ("residual-saes",), (ResidualSAE,), "residual stage")


def chosen_layers(
    part: Part,
    asked: Any,
    folder: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    norms: Sequence[Norm],
) -> tuple[Layers, str]:
    """Return the layers that one part of the model is read through, and what to call them.

    `asked`: a word, a folder of a set in any known format, one layer (or word, or folder to take
    that layer from) per sublayer, or None for what is bundled in the model's `folder`, else its own
    parts. `norms`: the model's, in front of these sublayers. Raises ValueError, FileNotFoundError
    or TypeError for what does not fit.
    """
    bundled = {} if folder is None else _bundled(part, folder)
    if asked is None:
        asked = next(iter(bundled), part.own)
    if isinstance(asked, str) and asked == part.own:
        return None, part.own
    if isinstance(asked, str) and asked in part.kinds:
        return _of_word(part, asked, bundled, dtype, device), asked
    if isinstance(asked, str | Path):
        return _of_folder(part, Path(asked), dtype, device, norms), Path(asked).name
    if not isinstance(asked, Sequence):
        raise TypeError(_misfit(part, asked))
    words = dict.fromkeys(str(one) for one in asked if isinstance(one, str | Path))
    sets = {
        word: _of_word(part, word, bundled, dtype, device)
        if word in part.kinds
        else _of_folder(part, Path(word), dtype, device, norms)
        for word in words
        if word != part.own
    }
    layers, names = [], []
    for number, one in enumerate(asked):
        if one is None or (isinstance(one, str) and one == part.own):
            layers.append(None)
            names.append(part.own)
        elif isinstance(one, str | Path):
            of_set = sets[str(one)]
            layers.append(of_set[number] if number < len(of_set) else None)
            names.append(Path(one).name)
        elif isinstance(one, part.layers) and not one.exact and _fits(part, one):
            layers.append(one)
            names.append("given")
        else:
            raise TypeError(_misfit(part, one))
    return layers, names[0] if len(set(names)) == 1 else "+".join(names)


def _fits(part: Part, layer: Any) -> bool:
    """Transcoders are the features of MLPs alone, though all are features."""
    return part is not MLP or not isinstance(layer, Lorsa | AttentionSAE | ResidualSAE)


def _bundled(part: Part, folder: Path) -> dict[str, Path]:
    return {kind: folder / kind for kind in part.kinds if (folder / kind).is_dir()}


def _of_word(
    part: Part, word: str, bundled: dict[str, Path], dtype: torch.dtype, device: torch.device
) -> list[Any]:
    if word not in bundled:
        raise ValueError(
            f'load({part.argument}="{word}"): this model brings no {word} of its own. Give the '
            f'folder of a set, {part.argument}="./{word}", or {part.argument}="{part.own}".'
        )
    return LOADERS[word](bundled[word], device=device, dtype=dtype)


def _of_folder(
    part: Part, folder: Path, dtype: torch.dtype, device: torch.device, norms: Sequence[Norm]
) -> list[Any]:
    if not folder.exists():
        near = difflib.get_close_matches(str(folder), (part.own, *part.kinds), n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise FileNotFoundError(
            f"load({part.argument}={str(folder)!r}): no such folder.{meant} Fits: {_words(part)}, "
            "or a folder of a set, ours (config.json, layer_0.safetensors, …) or a published one."
        )
    kind, layers = read_layers(folder, norms=norms, n_layers=len(norms), device=device, dtype=dtype)
    if kind not in part.kinds:
        other = next(one for one in (MLP, ATTENTION, RESIDUAL) if kind in one.kinds)
        raise ValueError(
            f"load({part.argument}={str(folder)!r}): this folder holds {kind}, which read "
            f"{other.each}s: load({other.argument}={str(folder)!r})."
        )
    return layers


def _words(part: Part) -> str:
    return ", ".join(f'"{word}"' for word in (part.own, *part.kinds))


def _misfit(part: Part, given: Any) -> str:
    return (
        f"load({part.argument}={given!r:.60}) is a {type(given).__name__}: give {_words(part)}, a "
        f"folder of a set, or a list with one layer or None per {part.each}."
    )
