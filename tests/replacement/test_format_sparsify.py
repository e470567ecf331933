"""sparsify's dictionaries against a slow reading of their tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.replacement.formats_made import (
    D_MODEL,
    N_FEATURES,
    assert_broken_is_refused,
    assert_does,
    assert_spoiled_is_refused,
    every_spoiled,
    inputs,
    only,
    read,
    slow,
    top,
    weights,
)

CONFIG: dict[str, Any] = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": N_FEATURES,
    "k": 4,
    "multi_topk": False,
    "skip_connection": True,
    "transcode": True,
    "d_in": D_MODEL,
}
SAE = {**CONFIG, "transcode": False, "skip_connection": False}


def their_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    raw = weights(seed)
    tensors = {
        "encoder.weight": raw["W_enc"].T.contiguous(),
        "encoder.bias": raw["b_enc"],
        "W_dec": raw["W_dec"],
        "b_dec": raw["b_dec"],
    }
    if config["skip_connection"]:
        tensors["W_skip"] = raw["skip"]
    return tensors


def their_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae.safetensors")
    return folder


def by_hand(config: dict[str, Any], tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    found, output = slow(
        x if config["transcode"] else x - tensors["b_dec"],
        tensors["encoder.weight"].T,
        tensors["encoder.bias"],
        tensors["W_dec"],
        top(config["k"]),
    )
    output = output + tensors["b_dec"]
    if config["skip_connection"]:
        output = output + torch.einsum("oi,pi->po", tensors["W_skip"], x)
    return found, output


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ["layers.{}.mlp", "h.{}.mlp", "gpt_neox.layers.{}.mlp"])
def test_transcoders_do_what_their_tensors_say(tmp_path: Path, name: str, skip: bool) -> None:
    config = {**CONFIG, "skip_connection": skip}
    held = {number: their_tensors(config, 10 * number) for number in (1, 10, 2)}
    for number, tensors in held.items():
        their_folder(tmp_path / name.format(number), config, tensors)
    kind, layers = read(tmp_path)
    assert kind == "transcoders" and len(layers) == 11
    for number, tensors in held.items():
        assert_does(layers[number], inputs(), *by_hand(config, tensors, inputs()))
        assert not layers[number].after_post_norm


@pytest.mark.parametrize("module", ["self_attn", "attention", "attn"])
def test_saes_of_attention_read_less_their_bias(tmp_path: Path, module: str) -> None:
    tensors = their_tensors(SAE)
    kind, layers = read(their_folder(tmp_path / f"layers.3.{module}", SAE, tensors))
    assert kind == "attention-saes" and not layers[3].after_post_norm
    assert_does(layers[3], inputs(), *by_hand(SAE, tensors, inputs()))


def test_defaults_are_theirs(tmp_path: Path) -> None:
    """32 times the width, 32 kept."""
    config = {"d_in": D_MODEL, "transcode": True}
    n = 32 * D_MODEL
    tensors = {
        "encoder.weight": torch.ones(n, D_MODEL),
        "encoder.bias": torch.zeros(n),
        "W_dec": torch.ones(n, D_MODEL),
        "b_dec": torch.zeros(D_MODEL),
    }
    _, layer = only(their_folder(tmp_path / "layers.0.mlp", config, tensors))
    assert layer.n_features == n and layer.activation.k == 32


def test_the_run_must_list_the_folder(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "layers.1.mlp", CONFIG, their_tensors(CONFIG))
    (tmp_path / "config.json").write_text(json.dumps({"hookpoints": ["layers.1.mlp"]}))
    assert only(tmp_path)[0] == 1
    (tmp_path / "config.json").write_text(json.dumps({"hookpoints": ["layers.2.mlp"]}))
    with pytest.raises(ValueError, match=r"hook points layers\.2\.mlp; layers\.1\.mlp is not"):
        read(folder)


def say(**entries: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(entries)


REFUSED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "the stream": ("layers.3", say(), "a transcoder of a whole layer"),
    "another module": ("layers.3.mlp.gate_proj", say(), "is not the name of a part"),
    "no module": ("best", say(), "'best' is not the name"),
    "SAE of an MLP": ("layers.3.mlp", say(transcode=False), "an SAE of an MLP's output"),
    "attention": ("layers.3.self_attn", say(), "a transcoder of attention"),
    "groups": ("layers.3.mlp", say(activation="groupmax"), "activation is 'groupmax'"),
    "signed": ("layers.3.mlp", say(signed=True), "signed True"),
    "no k": ("layers.3.mlp", say(k=0), "topk with k 0"),
    "no width": ("layers.3.mlp", say(d_in=None), "d_in is None"),
    "another width": ("layers.3.mlp", say(d_in=7), "has shape"),
    "other features": ("layers.3.mlp", say(num_latents=0), "has shape"),
    "a switch in words": ("layers.3.mlp", say(transcode="yes"), "transcode is 'yes'"),
    "no skip said": ("layers.3.mlp", say(skip_connection=False), r"unexpected \['W_skip'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str) -> None:
    module, change, message = REFUSED[name]
    config = dict(CONFIG)
    change(config)
    folder = their_folder(tmp_path / module, config, their_tensors(CONFIG))
    with pytest.raises(ValueError, match=message) as caught:
        read(folder)
    assert str(folder) in str(caught.value)


def test_hooks_and_thresholds_are_checked(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "layers.1.mlp", CONFIG, their_tensors(CONFIG))
    assert read(folder, hooks=("mlp.hook_in", "mlp.hook_out"))[0] == "transcoders"
    with pytest.raises(ValueError, match=r"but hooks=\('ln2.hook_normalized', 'mlp.hook_out'\)"):
        read(folder, hooks=("ln2.hook_normalized", "mlp.hook_out"))
    with pytest.raises(ValueError, match="threshold= is for batchtopk"):
        read(folder, threshold=1)


@every_spoiled("encoder.weight", "encoder.bias", "W_dec", "W_skip")
def test_spoiled_tensors_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    assert_spoiled_is_refused(
        lambda tensors: their_folder(tmp_path / "layers.1.mlp", CONFIG, tensors),
        their_tensors(CONFIG),
        spoil,
        tensor,
    )


def test_broken_files_are_refused_and_not_run(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "layers.1.mlp", CONFIG, their_tensors(CONFIG))
    assert_broken_is_refused(folder / "sae.safetensors", folder, "cannot be read")
