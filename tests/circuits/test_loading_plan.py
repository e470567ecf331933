"""What loading takes is known before: bytes of memory and to download, against what is loaded."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import circuits.loading
import circuits.loading_plan
import circuits.reading
from circuits import load
from circuits.cli import app
from circuits.loading_plan import LoadingPlan, loading_plan
from replacement.model import ReplacementModel
from tests.circuits.folders import PROMPT, save_text_model, text_model, text_transcoders
from tests.fake_hub import FakeHub, files_of
from tests.families import CONFIGS, tiny

ROOT = Path(__file__).parents[2]


def held_by_model(model: ReplacementModel) -> int:
    return sum(parameter.nbytes for parameter in model.hf_model.parameters())


def held_by_layers(layers: Iterable[Any]) -> int:
    tensors = [tensor for layer in layers for tensor in tensors_in(layer)]
    return sum(tensor.nbytes for tensor in tensors)


def tensors_in(held: Any) -> list[Tensor]:
    """Every tensor in a layer, and in what it holds (activation, queries and keys)."""
    if isinstance(held, Tensor):
        return [held]
    parts = vars(held).values() if hasattr(held, "__dataclass_fields__") else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_bytes_are_those_of_its_parameters(name: str, tmp_path: Path) -> None:
    copy.deepcopy(tiny(name)).to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype in ("float32", "float64"):
        plan = loading_plan(tmp_path, dtype=dtype)
        assert plan.model_bytes == held_by_model(load(tmp_path, dtype=dtype))
        assert (plan.layer_bytes, plan.model_download, plan.layer_download) == (0, 0, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("mlp", "attention"),
    [(None, None), ("transcoders", "heads"), ("neurons", "attention-saes"), ("neurons", "heads")],
)
def test_layers_bytes_are_those_of_their_tensors(
    mlp: str | None, attention: str | None, dtype: str
) -> None:
    plan = loading_plan("four-tasks", mlp=mlp, attention=attention, dtype=dtype)
    model = load("four-tasks", mlp=mlp, attention=attention, dtype=dtype)
    blocks = model.weights.layers
    layers = [block.attention for block in blocks if block.attention is not None]
    layers += [block.mlp for block in blocks if not block.mlp.exact]
    assert plan.layer_bytes == held_by_layers(layers)
    assert plan.bytes == plan.layer_bytes + held_by_model(model)
    assert (plan.dtype, plan.device) == (dtype, "cpu")


def test_a_model_in_memory_takes_nothing_unless_it_is_copied(tmp_path: Path) -> None:
    model = text_model()
    assert loading_plan(model).bytes == 0
    copied = loading_plan(model, dtype="float64")
    assert copied.model_bytes == 2 * sum(parameter.nbytes for parameter in model.parameters())
    set_ = save_text_model(tmp_path) / "transcoders"
    from_disk = held_by_layers(text_transcoders())
    assert loading_plan(model, mlp=set_).layer_bytes == from_disk
    assert loading_plan(model, mlp=[set_, "neurons"]).layer_bytes == from_disk, "read whole"
    assert loading_plan(model, mlp=text_transcoders()).layer_bytes == 0, "here already"


# ---------------------------------------------------------------- what does not fit


def must_not_run(*_: object, **__: object) -> None:
    raise AssertionError("weights were read")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading any weight, or a tokenizer, fails the test."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", must_not_run)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", must_not_run)
    monkeypatch.setattr(circuits.reading, "read_layers", must_not_run)
    loaders = dict.fromkeys(circuits.reading.LOADERS, must_not_run)
    monkeypatch.setattr(circuits.reading, "LOADERS", loaders)


def with_free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(circuits.loading_plan, "free_bytes", lambda _: count)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("short_of", "dtype", "fits"),
    [
        ("model and layers", "float64", 'dtype="float32"'),
        ("model and layers", "float32", 'dtype="bfloat16"; or mlp="neurons", attention="heads", '),
        ("model and layers", "bfloat16", 'mlp="neurons", attention="heads", residual="stream" ('),
        ("half", "float64", 'dtype="bfloat16"; or mlp="neurons"'),
        ("model", "bfloat16", "a smaller model"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(
    short_of: str, dtype: str, fits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = loading_plan("four-tasks", dtype=dtype)
    parts = {"model and layers": plan.bytes, "half": plan.bytes // 2, "model": plan.model_bytes}
    with_free(monkeypatch, parts[short_of] - 1)
    with pytest.raises(MemoryError) as caught:
        load("four-tasks", dtype=dtype)
    message = str(caught.value)
    assert f"Fits: {fits}" in message and "load('four-tasks')" in message
    assert f"in {dtype} on cpu" in message and "are free" in message


def test_what_just_fits_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, loading_plan("four-tasks").bytes)
    assert load("four-tasks").name == "four-tasks"


def test_what_is_advised_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, loading_plan("four-tasks", dtype="float64").bytes - 1)
    load("four-tasks", dtype="float32")
    with_free(monkeypatch, loading_plan("four-tasks").bytes - 1)
    load("four-tasks", mlp="neurons", attention="heads")
    load("four-tasks", mlp="neurons", attention="heads", residual="stream")
    load("four-tasks", dtype="bfloat16")


def test_a_model_used_as_it_is_is_not_advised_to_be_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_ = save_text_model(tmp_path) / "transcoders"
    with_free(monkeypatch, loading_plan(text_model(), mlp=set_).bytes - 1)
    with pytest.raises(MemoryError, match='Fits: mlp="neurons"'):
        load(text_model(), mlp=set_)


# ---------------------------------------------------------------- the command line


@pytest.mark.usefixtures("no_weights")
def test_a_dry_plan_reads_no_weight() -> None:
    words = ["plan", "four-tasks", PROMPT, "--explain", " Mary", "--dry"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    shown, expected = (
        text.split(";")[0] for text in (result.stdout, str(loading_plan("four-tasks")))
    )
    assert shown == expected and result.stdout.endswith(" free on cpu\n")


def test_a_plan_comes_before_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits.loading, "_from_pretrained", must_not_run)
    words = ["plan", "four-tasks", PROMPT, "--explain", " Mary"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, AssertionError)
    assert result.stdout.startswith("download 0 B\nweights  model 3.4 MB")


def test_a_plan_is_read_aloud() -> None:
    plan = LoadingPlan(
        "gpt2", 500_000_000, 1_800_000_000, 497_759_232, 1_800_000_000, 10**10, "float32", "cpu"
    )
    assert str(plan) == (
        "download 2.3 GB: model 500.0 MB, layers 1.8 GB\n"
        "weights  model 497.8 MB, layers 1.8 GB in float32; 10.0 GB free on cpu"
    )


# ---------------------------------------------------------------- model and layers on the hub


AS_A_USER = """
import contextlib, json, os, sys, urllib.request
from huggingface_hub import constants
from typer.testing import CliRunner
from circuits.cli import app
shown = []
for more in (["--dry"], [], []):
    result = CliRunner().invoke(app, [*sys.argv[1:], *more])
    shown.append([result.exit_code, result.stdout, result.stderr])
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/org/next")
    constants.HF_HUB_OFFLINE = len(shown) == 2
print(json.dumps(shown))
"""


def test_a_model_and_layers_of_the_hub(tmp_path: Path) -> None:
    """Planned dry, then loaded and planned whole, then offline, in one process of its own."""
    folder = save_text_model(tmp_path / "model")
    layers = files_of(folder / "transcoders")
    files = {name: data for name, data in files_of(folder).items() if "/" not in name}
    hub = FakeHub()
    hub.publish("org/model", files | {"pytorch_model.bin": bytes(9999), "onnx/model.onnx": b"no"})
    hub.publish("org/layers", layers)
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    environment["HF_HUB_CACHE"] = str(tmp_path / "home" / "hub")
    words = ["plan", "org/model", PROMPT, "--explain", " Mary", "--mlp", "org/layers"]
    done = subprocess.run(
        [sys.executable, "-c", AS_A_USER, *words],
        cwd=ROOT,
        env={**environment, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    hub.stop()
    dry, whole, again = json.loads(done.stdout)
    assert [dry[0], whole[0], again[0]] == [0, 0, 0], (dry, whole, again)
    expected = replace(
        loading_plan(folder, mlp=folder / "transcoders"),
        model_download=sum(map(len, files.values())) - len(files["config.json"]),
        layer_download=sum(map(len, layers.values())),
    )
    assert dry[1].split(";")[0] == whole[1].split(";")[0] == str(expected).split(";")[0]
    assert (
        again[1].startswith("download unknown (hub out of reach), layers 0 B\n")
        and "nodes" not in dry[1]
    )
    assert whole[1].split("target")[1].split(";")[0] == again[1].split("target")[1].split(";")[0]
    turns = "\n".join(hub.asked).split("GET /org/next")
    assert "GET" in turns[0] and "model.safetensors" not in turns[0] and "tokenizer" not in turns[0]
    assert "model.safetensors" in turns[1] and "pytorch_model.bin" not in turns[1]
    assert turns[2].strip() == "", "offline the hub is not asked"
