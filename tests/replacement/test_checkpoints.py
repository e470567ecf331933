"""Folders of transcoders: what is saved comes back, what is broken is named and never used."""

import dataclasses
import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import replacement.checkpoints.folders as folders
from replacement.checkpoints import load_transcoders, save_transcoders
from replacement.layers import JumpReLU, ReLU, Transcoder
from tests.random_layers import KINDS, random_transcoder

PARTS = ("read", "write", "read_bias", "write_bias")


def two_layers(kind: str = "jumprelu", skip: bool = True) -> list[Transcoder]:
    return [random_transcoder(kind, skip=skip, seed=seed, dtype=torch.float32) for seed in range(2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `save_transcoders` leaves it."""
    save_transcoders(two_layers(), tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip(tmp_path: Path, kind: str, skip: bool, dtype: torch.dtype) -> None:
    """Every tensor comes back as stored, rounded to the dtype of the file and no further."""
    layers = two_layers(kind, skip)
    save_transcoders(layers, tmp_path / "a" / "set", dtype=dtype)
    loaded = load_transcoders(tmp_path / "a" / "set")
    assert len(loaded) == len(layers)
    for before, after in zip(layers, loaded, strict=True):
        for name in PARTS:
            stored = getattr(before, name).to(dtype).float()
            assert torch.equal(getattr(after, name), stored), name
        assert (after.skip is None) == (not skip)
        if before.skip is not None and after.skip is not None:
            assert torch.equal(after.skip, before.skip.to(dtype).float())
        assert type(after.activation) is type(before.activation)
        assert after.activation.settings() == before.activation.settings()
        if isinstance(before.activation, JumpReLU) and isinstance(after.activation, JumpReLU):
            stored = before.activation.threshold.to(dtype).float()
            assert torch.equal(after.activation.threshold, stored)
    if dtype == torch.float32:
        y = torch.randn(5, 8)
        for before, after in zip(layers, loaded, strict=True):
            assert torch.equal(after.decode(after.encode(y), y), before.decode(before.encode(y), y))


def test_the_settings_say_what_layers_read_and_write(tmp_path: Path) -> None:
    own, other = two_layers(skip=False)
    other = dataclasses.replace(other, reads_stream=True, after_post_norm=True)
    stream, normed = (
        "residual stream before the MLP's norm",
        "normed MLP input, gain and bias included",
    )
    after = "MLP output after the norm that follows it"
    for number, (layers, reads, writes) in enumerate(
        [
            ([own, None], normed, "MLP output"),
            ([other, None, other], stream, after),
            ([own, other], f"{normed} or {stream}", f"MLP output or {after}"),
        ]
    ):
        save_transcoders(layers, tmp_path / str(number))
        config = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert (config["input"], config["output"]) == (reads, writes)


def test_loads_in_the_dtype_asked_for(folder: Path) -> None:
    layers = load_transcoders(str(folder), dtype=torch.float64)
    assert {getattr(layer, name).dtype for layer in layers for name in PARTS} == {torch.float64}
    activation = layers[0].activation
    assert isinstance(activation, JumpReLU)
    assert activation.threshold.dtype == torch.float64


def test_saving_again_replaces(folder: Path) -> None:
    """The second set is what is read, and no temporary file stays behind."""
    second = two_layers("topk", skip=False)
    save_transcoders(second, folder)
    assert torch.equal(load_transcoders(folder)[0].read, second[0].read)
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "layer_0.safetensors",
        "layer_1.safetensors",
    ]


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    """A layer whose read and write are one tensor is stored as two."""
    eye = torch.eye(3)
    tied = Transcoder(eye, eye, torch.zeros(3), torch.ones(3), ReLU())
    save_transcoders([tied], tmp_path)
    assert torch.equal(load_transcoders(tmp_path)[0].write, eye)


# --------------------------------------------------------------------------------- broken folders


def change_tensors(change: Callable[[dict], object]) -> Callable[[Path], Path]:
    """Return what rewrites the tensors of the second layer."""

    def corrupt(folder: Path) -> Path:
        path = folder / "layer_1.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return path

    return corrupt


def change_config(**entries: object) -> Callable[[Path], Path]:
    """Return what rewrites entries of config.json."""

    def corrupt(folder: Path) -> Path:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
        return path

    return corrupt


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """Return what rewrites the bytes of a file."""

    def corrupt(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))
        return path

    return corrupt


class Trap:
    """Code in a pickle: unpickling this would make the file it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def trap(folder: Path) -> Path:
    """A pickle with code in it, under the name of a layer."""
    path = folder / "layer_1.safetensors"
    path.write_bytes(pickle.dumps(Trap(folder / "sprung")))
    return path


def torch_trap(folder: Path) -> Path:
    """The same as torch.save writes it: a zip file with a pickle in it."""
    path = folder / "layer_1.safetensors"
    torch.save(Trap(folder / "sprung"), path)
    return path


def delete(name: str) -> Callable[[Path], Path]:
    def corrupt(folder: Path) -> Path:
        (folder / name).unlink()
        return folder / name

    return corrupt


def as_integers(tensors: dict) -> None:
    tensors["write"] = tensors["write"].to(torch.int32)


def with_nan(tensors: dict) -> None:
    tensors["skip"][0, 0] = float("nan")


def with_infinity(tensors: dict) -> None:
    tensors["read_bias"][3] = float("inf")


SECOND, CONFIG = "layer_1.safetensors", "config.json"
TENSORS_BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing": (lambda t: t.pop("write"), r"missing tensors \['write'\]"),
    "unexpected": (lambda t: t.update(W_enc=torch.ones(2)), r"unexpected \['W_enc'\]"),
    "transposed": (lambda t: t.update(read=t["read"].T), r"read has shape \(8, 20\)"),
    "short bias": (lambda t: t.update(read_bias=t["read_bias"][:-1]), "has shape"),
    "scalar bias": (lambda t: t.update(read_bias=torch.tensor(1.0)), "has shape"),
    "other width": (lambda t: t.update(write_bias=torch.ones(9)), r"\(9,\).*\(8,\)"),
    "integers": (as_integers, r"write is torch\.int32"),
    "NaN": (with_nan, "skip holds NaN"),
    "infinity": (with_infinity, "read_bias holds NaN or infinite"),
}
BYTES_BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda raw: raw[:-40], "cannot be read"),
    "cut in the header": (lambda raw: raw[:30], "cannot be read"),
    "empty": (lambda raw: raw[:0], "cannot be read"),
    "endless header": (lambda raw: struct.pack("<Q", 2**62) + raw[8:], "cannot be read"),
}
CONFIG_BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "not JSON": (change_bytes(CONFIG, lambda raw: raw[:-9]), "not valid JSON"),
    "not text": (change_bytes(CONFIG, lambda _: b"\xff\xfe\x00"), "not valid JSON"),
    "a list": (change_bytes(CONFIG, lambda _: b"[1]"), "'list'"),
    "other format": (change_config(format="sae_lens"), "'sae_lens'"),
    "newer version": (change_config(version=3), r"version 3.*Upgrade"),
    "no version": (change_config(version=None), "version None"),
    "other width": (change_config(d_model=9), "d_model 9"),
    "no layers": (change_config(activation=[]), "must list the settings"),
    "fewer settings than layers": (change_config(activation=[{"name": "relu"}]), "n_layers"),
    "no number of layers": (change_config(n_layers=None), '"n_layers" is None'),
    "no width": (change_config(d_model="8"), "\"d_model\" is '8'"),
}
SETTINGS_BROKEN: dict[str, tuple[dict, str]] = {
    "BatchTopK without threshold": ({"name": "batchtopk"}, "no inference threshold"),
    "BatchTopK of null": ({"name": "batchtopk", "threshold": None}, "no inference threshold"),
    "BatchTopK below zero": ({"name": "batchtopk", "threshold": -1.0}, r"a number >= 0; got -1"),
    "TopK of none": ({"name": "topk", "k": 0}, "not understood"),
    "unknown": ({"name": "gated"}, "not understood"),
}
BROKEN: dict[str, tuple[Callable[[Path], Path], type[Exception], str]] = {
    "pickle": (trap, ValueError, "cannot be read"),
    "torch.save": (torch_trap, ValueError, "cannot be read"),
    "missing layer": (delete(SECOND), FileNotFoundError, "lists 2 layers"),
    **{
        f"tensors: {name}": (change_tensors(change), ValueError, message)
        for name, (change, message) in TENSORS_BROKEN.items()
    },
    **{
        f"bytes: {name}": (change_bytes(SECOND, change), ValueError, message)
        for name, (change, message) in BYTES_BROKEN.items()
    },
    **{
        f"config: {name}": (change, ValueError, message)
        for name, (change, message) in CONFIG_BROKEN.items()
    },
    **{
        f"activation: {name}": (change_config(activation=[settings] * 2), ValueError, message)
        for name, (settings, message) in SETTINGS_BROKEN.items()
    },
}


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_a_jumprelu_without_thresholds_is_refused(tmp_path: Path, kind: str) -> None:
    """The settings ask for thresholds that no layer file holds."""
    save_transcoders(two_layers(kind), tmp_path)
    change_config(activation=[{"name": "jumprelu"}] * 2)(tmp_path)
    with pytest.raises(ValueError, match=r"jumprelu with .*threshold"):
        load_transcoders(tmp_path)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused(folder: Path, name: str) -> None:
    """The error names the file and the fault, and no code in a file runs."""
    corrupt, kind, message = BROKEN[name]
    path = corrupt(folder)
    with pytest.raises(kind, match=message) as caught:
        load_transcoders(folder)
    assert str(folder) in str(caught.value), "the path is named"
    assert path.name in str(caught.value), "so is the file at fault"
    assert not (folder / "sprung").exists()


def test_the_trap_would_spring(folder: Path) -> None:
    """Control: the pickle used above does run code where it is unpickled."""
    pickle.loads(trap(folder).read_bytes())
    assert (folder / "sprung").exists()


def test_missing_folders_say_what_to_give(tmp_path: Path) -> None:
    absent = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(absent))}.*config.json"):
        load_transcoders(absent)
    (tmp_path / "sae.pt").touch()
    with pytest.raises(ValueError, match=r"Found: sae\.pt\. Looked for: config\.json"):
        load_transcoders(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_transcoders(tmp_path / "sae.pt")


# ------------------------------------------------------------------------------- interrupted saves


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    """Stopped half way through the second file: nothing of the set is there."""
    calls = []

    def half(tensors: dict, path: str) -> None:
        save_file(tensors, path)
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise stop("no space left")

    monkeypatch.setattr(folders, "save_file", half)
    with pytest.raises(stop):
        save_transcoders(two_layers(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"Looked for: config\.json"):
        load_transcoders(tmp_path)


def test_an_interrupted_save_over_an_old_set_leaves_whole_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old set stays readable: files are replaced whole or not at all."""

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(folders, "save_file", refuse)
    with pytest.raises(OSError, match="no space"):
        save_transcoders(two_layers("relu"), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_the_config_that_names_the_files_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two files, there is no config.json that promises what is not there."""
    moved = []

    def stop_at_the_second(path: Path, target: Path) -> None:
        moved.append(target.name)
        if len(moved) == 2:
            raise OSError("no space left")
        path.rename(target)

    monkeypatch.setattr(Path, "replace", stop_at_the_second)
    with pytest.raises(OSError, match="no space"):
        save_transcoders(two_layers(), tmp_path)
    with pytest.raises(ValueError, match=r"Looked for: config\.json"):
        load_transcoders(tmp_path)


def test_values_that_the_dtype_cannot_hold_are_refused_when_saving(tmp_path: Path) -> None:
    """float16 ends at 65504: better an error now than a file that no one can load."""
    large = random_transcoder("relu", dtype=torch.float32)
    large.write[0, 0] = 1e6
    with pytest.raises(ValueError, match="write"):
        save_transcoders([large], tmp_path, dtype=torch.float16)
