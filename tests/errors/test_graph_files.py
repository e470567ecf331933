"""Circuit files that cannot be written or read, and circuits of another model."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits import ReplacementModel, load, read, trace
from graphs.files.archive import array_bytes
from tests.circuits.folders import text_model, text_transcoders, tokenizer
from tests.errors.mistakes import Mistake, assert_explained, each, made, made_file
from tests.errors.models_given import circuit, wordless
from tests.samples import Shape, random_gpt2


def saved(folder: Path, dtype: str = "float32") -> Path:
    """A sound .circuit file of a model without tokenizer."""
    model = load(wordless().hf_model, dtype=dtype)
    traced = trace(model.run([1, 20, 30]).logit(4), threshold=0.1)
    return traced.save(folder / "saved.circuit")


def other_vocabulary() -> ReplacementModel:
    return ReplacementModel(random_gpt2(Shape(d_vocab=13), dtype=torch.float32))


def other_weights() -> ReplacementModel:
    shape = Shape(d_vocab=len(tokenizer()), n_context=24)
    return ReplacementModel(random_gpt2(shape, seed=7, dtype=torch.float32))


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The file with its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def truncated(folder: Path) -> Path:
    path = saved(folder)
    path.write_bytes(path.read_bytes()[:-400])
    return path


def with_pickle(folder: Path) -> Path:
    """An array of objects, which numpy would unpickle: code would run."""
    path = saved(folder)
    bait = folder / "bait.npy"
    np.save(bait, np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    return rewritten(path, lambda members: members.update({"nodes.layer.npy": bait.read_bytes()}))


def bomb(folder: Path) -> Path:
    """A small file whose directory promises a terabyte."""
    path = folder / "bomb.circuit"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head.json", b"{}")
        archive.writestr("nodes.layer.npy", bytes(1 << 20))
        archive.filelist[-1].file_size = 1 << 40
    return path


def newer(folder: Path) -> Path:
    def change(members: dict[str, bytes]) -> None:
        head = json.loads(members["head.json"])
        members["head.json"] = json.dumps({**head, "version": 99}).encode()

    return rewritten(saved(folder), change)


def with_nan(folder: Path) -> Path:
    def change(members: dict[str, bytes]) -> None:
        count = json.loads(members["head.json"])["counts"]["nodes"]
        members["nodes.attribution.npy"] = array_bytes(np.full(count, np.nan))

    return rewritten(saved(folder), change)


def text_file(folder: Path) -> Path:
    path = folder / "notes.circuit"
    path.write_text("not a circuit\n")
    return path


FILES = [
    Mistake(
        "save to an unknown ending",
        lambda folder: circuit().save(folder / "ioi.pdf"),
        ValueError,
        ("ioi.pdf", "'.pdf'", ".circuit", ".svg"),
    ),
    Mistake(
        "save without an ending",
        lambda folder: circuit().save(folder / "ioi"),
        ValueError,
        ("ioi", "''", ".circuit", ".svg"),
    ),
    Mistake(
        "save to a missing folder",
        lambda folder: circuit().save(folder / "none" / "ioi.circuit"),
        FileNotFoundError,
        ("no folder", "none", "mkdir -p"),
    ),
    Mistake(
        "save over a folder",
        lambda folder: circuit().save(made(folder / "ioi.circuit")),
        ValueError,
        ("is a folder", "name of a file"),
    ),
    Mistake(
        "read a missing file",
        lambda folder: read(folder / "none.circuit"),
        FileNotFoundError,
        ("none.circuit", "no file", "Check the name"),
    ),
    Mistake("read a folder", lambda folder: read(folder), ValueError, ("not a file", ".circuit")),
    Mistake(
        "read an empty file",
        lambda folder: read(made_file(folder / "a.circuit")),
        ValueError,
        ("a.circuit", "not a zip", "circuit.save"),
    ),
    Mistake(
        "read a text file",
        lambda folder: read(text_file(folder)),
        ValueError,
        ("notes.circuit", "not a zip", "circuit.save"),
    ),
    Mistake(
        "read half a file",
        lambda folder: read(truncated(folder)),
        ValueError,
        ("saved.circuit", "damaged", "copied"),
    ),
    Mistake(
        "read a pickle",
        lambda folder: read(with_pickle(folder)),
        ValueError,
        ("nodes.layer.npy", "not a circuit", "Save the circuit again"),
    ),
    Mistake(
        "read a zip bomb",
        lambda folder: read(bomb(folder)),
        ValueError,
        ("unpack to", "at most", "Save the circuit again"),
    ),
    Mistake(
        "read a newer version",
        lambda folder: read(newer(folder)),
        ValueError,
        ("version 99", "up to", "pip install -U linear-circuits"),
    ),
    Mistake(
        "read NaN",
        lambda folder: read(with_nan(folder)),
        ValueError,
        ("saved.circuit", "nodes.attribution", "finite"),
    ),
    Mistake(
        "test without a model",
        lambda folder: read(saved(folder)).test(),
        ValueError,
        ("has no model", "circuit.attach(load('GPT2LMHeadModel', attention='heads', mlp="),
    ),
    *(
        Mistake(
            f"test without a model, traced in {dtype}",
            lambda folder, dtype=dtype: read(saved(folder, dtype)).test(),
            ValueError,
            ("has no model", "mlp='neurons'", f", dtype={dtype!r}))"),
        )
        for dtype in ("float64", "bfloat16")
    ),
    Mistake(
        "attach a model kept in another type",
        lambda folder: read(saved(folder, "bfloat16")).attach(other_weights()),
        ValueError,
        ("computes", "loaded with dtype='bfloat16'", "model, layers and weights"),
    ),
    Mistake(
        "attach a model of other weights",
        lambda folder: read(saved(folder)).attach(other_weights()),
        ValueError,
        ("logit([4])", "computes", "'GPT2LMHeadModel'", "model, layers and weights"),
    ),
    Mistake(
        "attach a model of another vocabulary",
        lambda folder: read(saved(folder)).attach(other_vocabulary()),
        ValueError,
        ("vocabulary of 13", "'GPT2LMHeadModel'", "model, layers and weights"),
    ),
    Mistake(
        "attach the model read through other layers",
        lambda folder: read(saved(folder)).attach(load(text_model(), mlp=text_transcoders())),
        ValueError,
        ("'mlp': 'neurons'", "'mlp': 'given'", "model, layers and weights"),
    ),
    Mistake(
        "attach a name",
        lambda folder: read(saved(folder)).attach("four-tasks"),
        TypeError,
        ("'four-tasks'", "load(", "model, layers and weights"),
    ),
]


@each(FILES)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)


def refuse_to_rename(*_: object, **__: object) -> None:
    raise OSError("no space left on the device")


@pytest.mark.parametrize("ending", [".circuit", ".svg"])
def test_a_failed_save_leaves_what_was_there(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / f"old{ending}", tmp_path / f"new{ending}"
    old.write_text("what was there")
    monkeypatch.setattr(os, "replace", refuse_to_rename)
    for path in (old, new):
        with pytest.raises(OSError, match="no space left"):
            circuit().save(path)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_text() == "what was there"
