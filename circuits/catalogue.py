"""Layers that others published, by short names: the rows of catalogue.toml, and what is bundled.

Imports no torch: `circuits list` answers at once.
"""

import dataclasses
import difflib
import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import safe_open

BUNDLED = ("four-tasks", "five-tasks")
ARGUMENTS = {
    "mlp": "mlp",
    "cross-layer": "mlp",
    "attention": "attention",
    "attention-saes": "attention",
    "residual-saes": "residual",
}
"""What a set replaces, and which argument of `load` takes it."""
LINE = "  {:<28} {:<14} {:>8} {:>9}  {}"
"""A row of `circuits list`."""
BUNDLED_KINDS = {"transcoders": "mlp", "lorsa": "attention", "attention-saes": "attention-saes"}


@dataclass(frozen=True)
class PublishedModel:
    """What a model must look like for the layers that were trained on it."""

    type: str
    """`model_type` of its config."""
    layers: int
    d_model: int


@dataclass(frozen=True)
class PublishedSet:
    """One row: a set of layers in a repository of the hub. None: not known."""

    name: str
    model: str
    repo: str
    replaces: str
    format: str | None = None
    revision: str | None = None
    folder: str = ""
    other_folders: tuple[str, ...] = ()
    features: int | None = None
    """Of one layer."""
    stored: int | None = None
    """Bytes of a stored number."""
    size: int | None = None
    """Bytes of all layers, as stated by those who measured it."""
    licence: str | None = None
    hooks: tuple[str, str] | None = None
    choose: str | None = None
    """The folder of one of several layers for the same place; one has to be named."""
    refused: str | None = None
    note: str | None = None

    @property
    def bytes(self) -> int | None:
        """As stated, else of the read and write vectors by their shapes; None: not known."""
        if self.size is not None or self.features is None or self.stored is None:
            return self.size
        model = models()[self.model]
        writes = model.layers
        if self.replaces == "cross-layer":
            writes = model.layers * (model.layers + 1) // 2
        return self.features * model.d_model * (model.layers + writes) * self.stored


@cache
def models() -> dict[str, PublishedModel]:
    """Return the models that published sets are for, by hub name."""
    return {name: PublishedModel(**row) for name, row in _rows()["models"].items()}


@cache
def published() -> dict[str, PublishedSet]:
    """Return every published set by its short name.

    >>> published()["gpt2-transcoders"].repo
    'pchlenski/gpt2-transcoders'
    """
    return {
        name: PublishedSet(name=name, **{key: _frozen(value) for key, value in row.items()})
        for name, row in _rows()["sets"].items()
    }


def matching(model: str | None) -> list[str]:
    """Return the models, bundled and published ones, that a name means; all for None.

    Raises ValueError where there is none.

    >>> matching("gpt2")
    ['openai-community/gpt2']
    """
    known = [*BUNDLED, *models()]
    if model is None:
        return known
    same = [name for name in known if _bare(name) == _bare(model)]
    found = same or [name for name in known if _bare(model) in _bare(name)]
    if not found:
        near = nearest(_bare(model), [_bare(name) for name in known])
        raise ValueError(
            f"circuits list {model}: no layers for a model of that name.{near} Models: "
            f"{', '.join(known)}."
        )
    return found


def nearest(given: str, known: Sequence[str]) -> str:
    """Return " Nearest: 'a', 'b'." for a misspelt name, nothing where none is near."""
    near = difflib.get_close_matches(given, known, n=3)
    return f" Nearest: {', '.join(map(repr, near))}." if near else ""


def rows(model: str | None = None) -> list[dict[str, Any]]:
    """Return what `circuits list` shows, one entry a set, bundled ones first; all for None."""
    wanted = matching(model)
    sets = [one for name in BUNDLED for one in _bundled(name)] + list(published().values())
    return [
        dataclasses.asdict(one)
        | {"size": one.bytes, "size_computed": one.size is None and one.bytes is not None}
        for one in sets
        if one.model in wanted
    ]


def table(shown: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text of 80 columns, model by model; a sentence where there are none."""
    if not shown:
        return "no trained layers: the model is read through its own neurons and heads"
    lines = [LINE.format("layers", "replaces", "features", "size", "format")]
    for model in dict.fromkeys(row["model"] for row in shown):
        lines += ["", f"{model} (bundled)" if model in BUNDLED else model]
        lines += [line for row in shown if row["model"] == model for line in _lines(row)]
    return "\n".join(line.rstrip() for line in lines)


def _lines(row: dict[str, Any]) -> list[str]:
    known = "?" if row["features"] is None else str(row["features"])
    cells = (row["name"], row["replaces"], known, _size(row), row["format"] or "?")
    why = f"not read: {row['refused']}" if row["refused"] else None
    if row["choose"]:
        why = f"several a layer; add the folder of one: {row['name']}/{row['choose']}"
    wrapped = textwrap.wrap(why or "", 76, break_long_words=False, break_on_hyphens=False)
    return [LINE.format(*cells), *(f"    {line}" for line in wrapped)]


def _size(row: dict[str, Any]) -> str:
    if row["size"] is None:
        return "?"
    unit, factor = ("GB", 1e9) if row["size"] >= 1e9 else ("MB", 1e6)
    return f"{'~' if row['size_computed'] else ''}{row['size'] / factor:.1f} {unit}"


def _bundled(model: str) -> list[PublishedSet]:
    found = []
    for kind, replaces in BUNDLED_KINDS.items():
        files = sorted((bundled_folder(model) / kind).glob("*.safetensors"))
        if files:
            size = sum(file.stat().st_size for file in files)
            features = _n_features(files[0])
            one = PublishedSet(kind, model, "", replaces, "ours", features=features, size=size)
            found.append(dataclasses.replace(one, licence="MIT"))
    return found


def bundled_folder(model: str) -> Path:
    """Return the folder of a bundled model."""
    return Path(str(resources.files("replacement") / "bundled" / model))


def _n_features(file: Path) -> int:
    with safe_open(str(file), framework="np") as opened:
        return opened.get_slice("read_bias").get_shape()[0]


def _rows() -> dict[str, Any]:
    text = (resources.files("circuits") / "catalogue.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _bare(name: str) -> str:
    """A model's name without its owner, as people write it: gpt2, gpt2-small, GPT2 are one."""
    bare = name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    return "gpt2" if bare == "gpt2-small" else bare
