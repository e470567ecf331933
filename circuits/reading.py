"""What MLPs, attention and the stream are read as: from words and folders of `load` to layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuits.catalogue import ARGUMENTS, PublishedSet, models, nearest, published
from replacement.checkpoints import (
    load_attention_saes,
    load_cross_layer_transcoders,
    load_lorsa,
    load_residual_saes,
    load_transcoders,
    read_layers,
)
from replacement.checkpoints.hub import Source, fetch, source_of
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


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before its weights are read."""

    name: str
    type: str
    n_layers: int
    d_model: int
    folder: Path | None
    """Where its files are; None for a model in memory or on the hub."""

    @classmethod
    def of(cls, config: Any, name: str, folder: Path | None) -> "ModelFacts":
        """Return the facts in a Hugging Face config."""
        text = config.get_text_config()
        return cls(name, config.model_type, text.num_hidden_layers, text.hidden_size, folder)


@dataclass(frozen=True)
class LayerSet:
    """A set of layers, found but not read."""

    name: str
    place: Path | Source
    kind: str | None = None
    """One of the words for sets bundled with a model; None for all others."""
    hooks: tuple[str, str] | None = None


def chosen_layers(
    part: Part,
    asked: Any,
    facts: ModelFacts,
    dtype: torch.dtype,
    device: torch.device,
    norms: Sequence[Norm],
) -> tuple[Layers, str | list[str]]:
    """Return the layers that one part of the model is read through, and what to call them.

    The name is that of the set, or of each entry of a list whose names differ, as `load` takes it.

    `asked`: a word, a folder or hub name of a set in any known format, one layer (or word, or set
    to take that layer from) per sublayer, or None for what is bundled with the model, else its own
    parts. `norms`: the model's, in front of these sublayers. Raises what `located` does, ValueError
    for layers that do not fit, and what fetching them raises.
    """
    found = located(part, asked, facts)
    sets = {
        word: None if one is None else _read(part, one, dtype, device, norms)
        for word, one in found.items()
    }
    if asked is None or isinstance(asked, str | Path):
        word = next(iter(found))
        return sets[word], _called(part, found[word])
    layers, names = [], []
    for number, one in enumerate(asked):
        if one is None:
            layers.append(None)
            names.append(part.own)
        elif isinstance(one, str | Path):
            layers.append(_of_set(part, number, one, sets[str(one)]))
            names.append(_called(part, found[str(one)]))
        elif isinstance(one, part.layers) and not one.exact and _fits(part, one):
            layers.append(one)
            names.append("given")
        else:
            raise TypeError(_misfit(part, one, f", entry {number}"))
    return layers, names[0] if len(set(names)) == 1 else names


def located(part: Part, asked: Any, facts: ModelFacts) -> dict[str, LayerSet | None]:
    """Return where the sets asked for lie, by the word that asks; None for the model's own parts.

    Nothing is read or fetched, and what looks like a path is never sent to the hub. Raises
    TypeError, FileNotFoundError or ValueError for what is no set, or not one for this model.
    """
    if asked is None:
        bundled = [kind for kind in part.kinds if _bundled(facts, kind) is not None]
        asked = next(iter(bundled), part.own)
    if isinstance(asked, str | Path):
        return {str(asked): _located(part, asked, facts)}
    if not isinstance(asked, Sequence):
        raise TypeError(_misfit(part, asked))
    words = {str(one): one for one in asked if isinstance(one, str | Path)}
    return {word: _located(part, one, facts) for word, one in words.items()}


def _located(part: Part, asked: str | Path, facts: ModelFacts) -> LayerSet | None:
    word = str(asked)
    if isinstance(asked, str) and word == part.own:
        return None
    if isinstance(asked, str) and word in part.kinds:
        bundled = _bundled(facts, word)
        if bundled is None:
            raise ValueError(
                f'load({part.argument}="{word}"): this model brings no {word} of its own. Give the '
                f'folder of a set, {part.argument}="./{word}", or {part.argument}="{part.own}".'
            )
        return LayerSet(word, bundled, kind=word)
    if isinstance(asked, Path) or _is_path(word):
        folder = Path(asked).expanduser()
        if not folder.exists():
            raise FileNotFoundError(
                f"load({part.argument}={str(Path(asked))!r}): no such folder. Fits: "
                f"{_words(part)}, or a folder of a set, ours (config.json, layer_0.safetensors, …) "
                "or a published one."
            )
        return LayerSet(folder.name, folder)
    name, _, revision = word.partition("@")
    short, _, path = name.partition("/")
    if short in published():
        return _of_catalogue(part, published()[short], path.rstrip("/"), revision, word, facts)
    source = source_of(word)
    if source is None:
        near = nearest(word, (part.own, *part.kinds, *published()))
        raise ValueError(
            f"load({part.argument}={word!r}): no layers of that name.{near} All: circuits list. "
            f"Fits besides: {_words(part)}, a folder (./{word or 'folder'}), a hub name "
            "(user/repo/sub/folder@revision)."
        )
    return LayerSet(word, source)


def _is_path(word: str) -> bool:
    """What is there, or is written as only a path is, or starts with a folder that is there."""
    if not word:
        return False
    path = Path(word).expanduser()
    written = word.startswith((".", "/", "~")) or "\\" in word
    return written or path.exists() or ("/" in word and Path(path.parts[0]).is_dir())


def _of_catalogue(
    part: Part, row: PublishedSet, path: str, revision: str, word: str, facts: ModelFacts
) -> LayerSet:
    """The set of a row, if it is one for this model and this part."""
    given = f"load({part.argument}={word!r})"
    if row.refused is not None:
        raise ValueError(f"{given}: cannot be read here: {row.refused}. Others: circuits list.")
    argument = ARGUMENTS[row.replaces]
    if argument != part.argument:
        raise ValueError(
            f"{given}: these layers replace {row.replaces}. Give load({argument}={word!r})."
        )
    fits = models()[row.model]
    if (facts.type, facts.n_layers, facts.d_model) != (fits.type, fits.layers, fits.d_model):
        raise ValueError(
            f"{given}: layers of {row.model} ({fits.type}, {fits.layers} layers, vectors of "
            f"{fits.d_model}); {facts.name} is {facts.type} with {facts.n_layers} layers and "
            f"vectors of {facts.d_model}. Load that model, or see circuits list for other sets."
        )
    if row.choose is not None and not path:
        raise ValueError(
            f"{given}: holds several layers for one place. Name one or, in a list, one for each "
            f"layer of the model: {part.argument}={f'{row.name}/{row.choose}'!r}."
        )
    source = Source(row.repo, path or row.folder, revision or row.revision)
    return LayerSet(word, source, hooks=row.hooks)


def _read(
    part: Part, found: LayerSet, dtype: torch.dtype, device: torch.device, norms: Sequence[Norm]
) -> list[Any]:
    if found.kind is not None:
        return LOADERS[found.kind](found.place, device=device, dtype=dtype)
    folder = fetch(found.place) if isinstance(found.place, Source) else found.place
    kind, layers = read_layers(
        folder, norms=norms, n_layers=len(norms), hooks=found.hooks, device=device, dtype=dtype
    )
    if kind not in part.kinds:
        other = next(one for one in (MLP, ATTENTION, RESIDUAL) if kind in one.kinds)
        raise ValueError(
            f"load({part.argument}={str(found.place)!r}): this folder holds {kind}, which read "
            f"{other.each}s: load({other.argument}={str(found.place)!r})."
        )
    return layers


def _of_set(part: Part, number: int, name: str | Path, layers: Layers) -> Any:
    """The layer that one entry of a list takes from a set; ValueError where the set has none."""
    if layers is None:
        return None
    held = [place for place, layer in enumerate(layers) if layer is not None]
    if number not in held:
        raise ValueError(
            f"load({part.argument}=[…]), entry {number}: {str(name)!r} holds no layer for "
            f"{part.each} {number}, only for {', '.join(map(str, held))}. Give None or "
            f'"{part.own}" there, or a set that holds one.'
        )
    return layers[number]


def _called(part: Part, found: LayerSet | None) -> str:
    return part.own if found is None else found.name


def _fits(part: Part, layer: Any) -> bool:
    """Transcoders are the features of MLPs alone, though all are features."""
    return part is not MLP or not isinstance(layer, Lorsa | AttentionSAE | ResidualSAE)


def _bundled(facts: ModelFacts, kind: str) -> Path | None:
    folder = None if facts.folder is None else facts.folder / kind
    return folder if folder is not None and folder.is_dir() else None


def _words(part: Part) -> str:
    return ", ".join(f'"{word}"' for word in (part.own, *part.kinds))


def _misfit(part: Part, given: Any, entry: str = "") -> str:
    kind = type(given).__name__
    what = f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
    if not isinstance(given, FeatureLayer):  # whose numbers would say nothing
        what = f"{given!r:.60}, {what}"
    return (
        f"load({part.argument}={'[…]' if entry else '…'}){entry}: {what}. Give {_words(part)}, a "
        f"folder or hub name of a set, or a list with one layer or None per {part.each}."
    )
