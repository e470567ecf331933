"""Replacement layers that cannot be read, or do not fit the model."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuits import load
from circuits.reading import MLP, ModelFacts, located
from replacement.checkpoints import read_layers, save_transcoders
from replacement.layers import BatchTopK, Transcoder
from tests.circuits.folders import (
    save_text_model,
    text_model,
    text_transcoders,
)
from tests.errors.mistakes import Mistake, assert_explained, each, made_file
from tests.random_layers import random_transcoder
from tests.replacement import test_format_circuit_tracer as circuit_tracer_made
from tests.replacement import test_format_saelens as saelens_made
from tests.replacement import test_format_sparsify as sparsify_made
from tests.replacement.test_format_saelens import SAE, TRANSCODER

HOOKS = ("ln2.hook_normalized", "hook_mlp_out")
RESIDUAL = "blocks.0.hook_resid_pre"
GEMMA = ModelFacts("google/gemma-2-2b", "gemma2", 26, 2304, None)


def transcoders_without_threshold(folder: Path) -> Path:
    layers = [random_transcoder("batchtopk", seed=layer, dtype=torch.float32) for layer in range(2)]
    save_transcoders(layers, folder)
    settings = json.loads((folder / "config.json").read_text())
    for activation in settings["activation"]:
        del activation["threshold"]
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def arrays(folder: Path) -> Path:
    """A folder with arrays as Gemma Scope has them."""
    folder.mkdir()
    np.savez(folder / "params.npz", W_enc=np.zeros((8, 4), dtype=np.float32))
    return folder.parent


def ours(folder: Path, n_layers: int = 2, d_model: int = 8) -> Path:
    """A sound folder of transcoders."""
    layers = [
        random_transcoder("relu", d_model, seed=layer, dtype=torch.float32)
        for layer in range(n_layers)
    ]
    save_transcoders(layers, folder)
    return folder


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def cut(folder: Path, name: str) -> Path:
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    return folder


def pointers(folder: Path, name: str) -> Path:
    """What a clone without git-lfs leaves in a file's place."""
    (folder / name).parent.mkdir(exist_ok=True)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 440\n"
    (folder / name).write_text(text)
    return folder


def with_tensor(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    file = folder / "layer_0.safetensors"
    tensors = load_file(file)
    save_file({**tensors, name: change(tensors[name])}, file)
    return folder


def saelens(folder: Path, base: dict[str, Any], **changes: Any) -> Path:
    """One dictionary as SAELens keeps it; hook names are among the model's metadata."""
    hooks = {name: changes.pop(name) for name in list(changes) if name.startswith("hook")}
    config = {**base, **changes, "metadata": {**base["metadata"], **hooks}}
    tensors = saelens_made.their_tensors(config)
    return saelens_made.their_folder(folder / "of saelens", config, tensors)


def sparsify(folder: Path, module: str) -> Path:
    config = sparsify_made.CONFIG
    return sparsify_made.their_folder(folder / module, config, sparsify_made.their_tensors(config))


def listing(folder: Path, module: str) -> Path:
    """The folder of a run of sparsify that was to train another module."""
    (folder / "config.json").write_text(json.dumps({"hookpoints": [module]}))
    return folder


def circuit_tracer(folder: Path, **changes: Any) -> Path:
    return circuit_tracer_made.their_folder(folder, {**circuit_tracer_made.CONFIG, **changes})


class Trap:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "was run"),)


def pickled(folder: Path, content: object) -> Path:
    torch.save(content, folder / "layer.pt")
    return folder


def on_meta(layer: Transcoder) -> Transcoder:
    given = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    moved = {
        name: held.to("meta") for name, held in given.items() if isinstance(held, torch.Tensor)
    }
    return dataclasses.replace(layer, **moved)


LAYERS = [
    Mistake(
        "transcoders of another width",
        lambda _: load(text_model(), mlp=[random_transcoder("topk", d_model=6)] * 2),
        ValueError,
        ("MLP 0", "vectors of 6", "are 8", "another model"),
    ),
    Mistake(
        "one transcoder for two layers",
        lambda _: load(text_model(), mlp=text_transcoders()[:1]),
        ValueError,
        ("1 replacement layers", "2 MLPs", "one per layer"),
    ),
    Mistake(
        "no transcoders",
        lambda _: load(text_model(), mlp=[]),
        ValueError,
        ("0 replacement layers", "2 MLPs"),
    ),
    Mistake(
        "transcoders of another dtype",
        lambda _: load(text_model(), mlp=[random_transcoder("topk")] * 2),
        ValueError,
        ("torch.float64", "torch.float32", "same dtype"),
    ),
    Mistake(
        "numbers for transcoders",
        lambda _: load(text_model(), mlp=[1, 2]),
        TypeError,
        ("mlp=[…]), entry 0: 1, an int. Give", "one layer or None per MLP"),
    ),
    Mistake(
        "a set that holds no layer for an entry of a list",
        lambda folder: load(text_model(), mlp=[None, ours(folder / "one", n_layers=1)]),
        ValueError,
        ("mlp=[…]), entry 1", "one' holds no layer for MLP 1, only for 0", 'None or "neurons"'),
    ),
    Mistake(
        "one transcoder, not a list",
        lambda _: load(text_model(), mlp=text_transcoders()[0]),
        TypeError,
        ("load(mlp=…): a Transcoder. Give", "one layer or None per MLP"),
    ),
    Mistake(
        "BatchTopK with a threshold of NaN",
        lambda _: BatchTopK(float("nan")),
        ValueError,
        ("nan", "threshold", "running mean"),
    ),
    Mistake(
        "BatchTopK without a threshold",
        lambda _: BatchTopK(None),
        ValueError,
        ("None", "threshold", "running mean"),
    ),
    Mistake(
        "a folder of BatchTopK without a threshold",
        lambda folder: load(text_model(), mlp=transcoders_without_threshold(folder)),
        ValueError,
        ("config.json", "no inference threshold", 'Add "threshold"'),
    ),
    Mistake(
        "transcoders where there are none",
        lambda _: load(text_model(), mlp="transcoders"),
        ValueError,
        ('mlp="transcoders"', "./transcoders", 'mlp="neurons"'),
    ),
    Mistake(
        "an unknown folder of transcoders",
        lambda _: load(text_model(), mlp="./none"),
        FileNotFoundError,
        ("none", "no such folder", '"neurons"', "config.json"),
    ),
    Mistake(
        "a misspelt kind",
        lambda _: load(text_model(), mlp="neuron"),
        ValueError,
        ("neuron", "Nearest: 'neurons'", "circuits list"),
    ),
    Mistake(
        "a misspelt set",
        lambda _: load(text_model(), mlp="gpt2-transcoder"),
        ValueError,
        ("mlp='gpt2-transcoder'", "no layers of that name", "'gpt2-transcoders'", "circuits list"),
    ),
    Mistake(
        "no name of a set",
        lambda _: load(text_model(), mlp=""),
        ValueError,
        ("mlp=''", "no layers of that name", "circuits list", "user/repo"),
    ),
    Mistake(
        "a set of another model",
        lambda _: load(text_model(), mlp="gpt2-transcoders"),
        ValueError,
        ("'gpt2-transcoders'", "12 layers, vectors of 768", "2 layers and vectors of 8", "list"),
    ),
    Mistake(
        "a set for the other argument",
        lambda _: load(text_model(), attention=["heads", "gpt2-transcoders@v2"]),
        ValueError,
        ("attention='gpt2-transcoders@v2'", "replace mlp", "load(mlp='gpt2-transcoders@v2')"),
    ),
    Mistake(
        "a set that cannot be read",
        lambda _: load(text_model(), mlp="gpt2-clt-16k"),
        ValueError,
        ("'gpt2-clt-16k'", "cannot be read", "converts it", "circuits list"),
    ),
    Mistake(
        "a set with several layers for one place",
        lambda _: located(MLP, "gemma-scope-transcoders", GEMMA),
        ValueError,
        ("several layers for one place", "mlp='gemma-scope-transcoders/layer_3/width_16k"),
    ),
    Mistake(
        "layers by hub name without a network",
        lambda _: load(text_model(), mlp="user/repo/sub@v2"),
        FileNotFoundError,
        ("user/repo/sub@v2", "not in the cache", "HF_HUB_OFFLINE is set", "once with a network"),
    ),
    Mistake(
        "a folder that holds no transcoders",
        lambda folder: load(text_model(), mlp=made_file(folder / "ae.pt").parent),
        ValueError,
        ("ae.pt", "cannot be read", "Copy the file again"),
    ),
    Mistake(
        "a folder of a model for transcoders",
        lambda folder: load(text_model(), mlp=save_text_model(folder)),
        ValueError,
        ("config.json", "not a format I know", "linear-circuits", "SAELens"),
    ),
    Mistake(
        "transcoders on another device",
        lambda _: load(text_model(), mlp=[on_meta(layer) for layer in text_transcoders()]),
        ValueError,
        ("MLP 0", "on meta", "on cpu", "same dtype on the same device"),
    ),
    Mistake(
        "a folder of transcoders of another width",
        lambda folder: load(text_model(), mlp=ours(folder, d_model=6)),
        ValueError,
        ("MLP 0", "vectors of 6", "are 8", "another model"),
    ),
    Mistake(
        "a folder of transcoders of a deeper model",
        lambda folder: load(text_model(), mlp=ours(folder, n_layers=3)),
        ValueError,
        ("layer 2", "2 layers, 0 to 1", "this model"),
    ),
    Mistake(
        "a folder of transcoders for attention",
        lambda folder: load(text_model(), attention=ours(folder)),
        ValueError,
        ("holds transcoders", "read MLPs", "load(mlp="),
    ),
    Mistake(
        "an empty folder",
        lambda folder: load(text_model(), mlp=folder),
        ValueError,
        ("not a format I know", "Found: nothing", "circuit-tracer", "SAELens", "sparsify"),
    ),
    Mistake(
        "layers without their settings",
        lambda folder: load(text_model(), mlp=without(ours(folder), "config.json")),
        ValueError,
        ("layer files without settings", "layer_0.safetensors", "copy it too"),
    ),
    Mistake(
        "a layer that was not copied",
        lambda folder: load(text_model(), mlp=without(ours(folder), "layer_1.safetensors")),
        FileNotFoundError,
        ("layer_1.safetensors: missing", "lists 2 layers", "Copy the folder again"),
    ),
    Mistake(
        "half of a layer",
        lambda folder: load(text_model(), mlp=cut(ours(folder), "layer_1.safetensors")),
        ValueError,
        ("layer_1.safetensors: cannot be read", "Copy the file again"),
    ),
    Mistake(
        "a pointer in the place of a layer",
        lambda folder: load(text_model(), mlp=pointers(ours(folder), "layer_1.safetensors")),
        ValueError,
        ("layer_1.safetensors: cannot be read", "git-lfs", "git lfs pull"),
    ),
    Mistake(
        "a pointer in the place of layer.pt",
        lambda folder: load(text_model(), mlp=pointers(folder, "layer.pt")),
        ValueError,
        ("layer.pt: cannot be read", "git-lfs", "git lfs pull"),
    ),
    Mistake(
        "a pointer in the place of params.npz",
        lambda folder: read_layers(pointers(folder, "layer_0/params.npz"), hooks=HOOKS),
        ValueError,
        ("params.npz: cannot be read", "git-lfs", "git lfs pull"),
    ),
    Mistake(
        "a pickle with code in it",
        lambda folder: load(text_model(), mlp=pickled(folder, {"cfg": Trap(folder)})),
        ValueError,
        ("layer.pt: refused", "mkdir", "Nothing in it was run", "authors"),
    ),
    Mistake(
        "a pickle of something else",
        lambda folder: load(text_model(), mlp=pickled(folder, {"weights": torch.ones(2)})),
        ValueError,
        ("layer.pt", '"state_dict"', "Give the files"),
    ),
    Mistake(
        "whole numbers for weights",
        lambda folder: load(text_model(), mlp=with_tensor(ours(folder), "read", Tensor.int)),
        ValueError,
        ("layer_0.safetensors: read is torch.int32", "floating-point"),
    ),
    Mistake(
        "NaN in a layer",
        lambda folder: load(
            text_model(), mlp=with_tensor(ours(folder), "write", lambda held: held * torch.nan)
        ),
        ValueError,
        ("layer_0.safetensors: write holds NaN", "Copy the file again"),
    ),
    Mistake(
        "a tensor of another shape",
        lambda folder: load(
            text_model(), mlp=with_tensor(ours(folder), "write", lambda held: held[:, 1:].clone())
        ),
        ValueError,
        ("write has shape", "it must be", "Correct the one"),
    ),
    Mistake(
        "Gemma Scope's files without hooks",
        lambda folder: load(text_model(), mlp=arrays(folder / "layer_0")),
        ValueError,
        ("do not say what", "ln2.hook_normalized", "read_layers", "give load the layers"),
    ),
    Mistake(
        "an SAE of the residual stream",
        lambda folder: load(text_model(), mlp=saelens(folder, SAE, hook_name=RESIDUAL)),
        ValueError,
        ("holds residual-saes", "load(residual="),
    ),
    Mistake(
        "a hook that nobody knows",
        lambda folder: load(text_model(), mlp=saelens(folder, SAE, hook_name="blocks.0.mlp.in")),
        ValueError,
        ("hook_name is 'blocks.0.mlp.in'", "blocks.L.mlp.hook_in", "misspelt"),
    ),
    Mistake(
        "hooks of two layers",
        lambda folder: load(
            text_model(), mlp=saelens(folder, TRANSCODER, hook_name="blocks.0.mlp.hook_in")
        ),
        ValueError,
        ("blocks.0.mlp.hook_in", "blocks.2.hook_mlp_out", "two layers", "correct the hooks"),
    ),
    Mistake(
        "an architecture that is not read",
        lambda folder: load(text_model(), mlp=saelens(folder, SAE, architecture="gated")),
        ValueError,
        ("architecture is 'gated'", "standard, topk"),
    ),
    Mistake(
        "SAELens' BatchTopK without a threshold",
        lambda folder: load(
            text_model(), attention=saelens(folder, SAE, architecture="batchtopk", k=4)
        ),
        ValueError,
        ("batchtopk", "Pass threshold=", "read_layers", "give load the layers"),
    ),
    Mistake(
        "a module that is no sublayer",
        lambda folder: load(text_model(), mlp=sparsify(folder, "layers.1.mlp.gate_proj")),
        ValueError,
        ("'layers.1.mlp.gate_proj'", "layers.L with one of mlp", "their own names"),
    ),
    Mistake(
        "a module that the run does not list",
        lambda folder: load(
            text_model(), mlp=listing(sparsify(folder, "layers.1.mlp").parent, "layers.0.mlp")
        ),
        ValueError,
        ("hook points layers.0.mlp", "layers.1.mlp is not"),
    ),
    Mistake(
        "a cross-layer transcoder without its files",
        lambda folder: load(
            text_model(), mlp=circuit_tracer(folder, model_kind="cross_layer_transcoder")
        ),
        ValueError,
        ("W_enc_0.safetensors missing", "found: none", "Copy the folder again"),
    ),
    Mistake(
        "layers of several formats",
        lambda folder: load(
            text_model(), mlp=saelens(sparsify(folder, "layers.1.mlp").parent, TRANSCODER).parent
        ),
        ValueError,
        ("layers of several formats", "SAELens", "sparsify", "a folder of one"),
    ),
]


@each(LAYERS)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)


def refuse_to_rename(*_: object, **__: object) -> None:
    raise OSError("no space left on the device")


def test_a_failed_save_of_transcoders_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", refuse_to_rename)
    with pytest.raises(OSError, match="no space left"):
        save_transcoders(text_transcoders(), tmp_path / "layers")
    assert list((tmp_path / "layers").iterdir()) == []
