"""Llama Scope's dictionaries against what their loader of 2024 did, step by step."""

import json
import math
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
    above,
    after,
    assert_broken_is_refused,
    assert_does,
    assert_spoiled_is_refused,
    every_spoiled,
    inputs,
    norms,
    only,
    read,
    slow,
    top,
    weights,
)

SAE_HOOKS = ("blocks.1.hook_attn_out", "blocks.1.hook_attn_out")
HOOKS = ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
MEAN_IN, MEAN_OUT = 5.0, 0.75
CONFIG: dict[str, Any] = {
    "d_model": D_MODEL,
    "d_sae": N_FEATURES,
    "hook_point_in": HOOKS[0],
    "hook_point_out": HOOKS[1],
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.4,
    "dataset_average_activation_norm": {"in": MEAN_IN, "out": MEAN_OUT},
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "top_k": 4,
}


def their_tensors(*, bias: bool = True) -> dict[str, Tensor]:
    raw = weights(31)
    tensors = {
        "encoder.weight": raw["W_enc"].T.contiguous(),
        "encoder.bias": raw["b_enc"],
        "decoder.weight": raw["W_dec"].T.contiguous(),
    }
    return {**tensors, "decoder.bias": raw["b_dec"]} if bias else tensors


def their_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(config))
    (folder / "lm_config.json").write_text("{}")
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    return folder


def their_steps(
    config: dict[str, Any], tensors: dict[str, Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """What their loader of 2024 made of the weights, step by step, and did with them."""
    s_in = s_out = 1.0
    if config["norm_activation"] == "dataset-wise":
        means = config["dataset_average_activation_norm"]
        s_in, s_out = (math.sqrt(D_MODEL) / means[side] for side in ("in", "out"))
    encoder, decoder = tensors["encoder.weight"].T, tensors["decoder.weight"].T
    b_enc = tensors["encoder.bias"] / s_in
    b_dec = tensors.get("decoder.bias", torch.zeros(D_MODEL)) / s_out
    decoder = decoder * s_in / s_out
    norm = decoder.square().sum(1).sqrt()
    decoder, encoder, b_enc = decoder / norm[:, None], encoder * norm, b_enc * norm
    gate = above([config["jump_relu_threshold"]] * N_FEATURES)
    if config["act_fn"] == "topk":
        gate = top(config["top_k"])
    found, output = slow(x, encoder, b_enc, decoder, gate)
    return found / norm * s_in, output + b_dec  # ours keep the scale that training gave them


@pytest.mark.parametrize("norm", ["inference", "dataset-wise"])
@pytest.mark.parametrize("act_fn", ["jumprelu", "topk"])
@pytest.mark.parametrize("bias", [False, True])
def test_transcoders_do_what_their_loader_did(
    tmp_path: Path, act_fn: str, norm: str, bias: bool
) -> None:
    config = {**CONFIG, "act_fn": act_fn, "norm_activation": norm, "use_decoder_bias": bias}
    tensors = their_tensors(bias=bias)
    folder = their_folder(tmp_path / "Llama3_1-8B-Base-L1TC-8x", config, tensors)
    number, layer = only(folder, norms=norms("rms"))
    assert number == 1
    hook = inputs()
    assert_does(layer, after(norms("rms")[1], hook), *their_steps(config, tensors, hook))


def test_saes_of_attention_do_what_their_loader_did(tmp_path: Path) -> None:
    config = {**CONFIG, "hook_point_in": SAE_HOOKS[0], "hook_point_out": SAE_HOOKS[1]}
    tensors = their_tensors()
    kind, layers = read(their_folder(tmp_path, config, tensors))
    assert kind == "attention-saes"
    assert_does(layers[1], inputs(), *their_steps(config, tensors, inputs()))


def say(**entries: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(entries)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no gate": (say(sparsity_include_decoder_norm=False), "decoder_norm is False; known: True"),
    "shifted": (say(apply_decoder_bias_to_pre_encoder=True), "pre_encoder is True"),
    "glu": (say(use_glu_encoder=True), "use_glu_encoder is True"),
    "scale of each token": (say(norm_activation="token-wise"), "norm_activation is 'token-wise'"),
    "a switch in numbers": (say(use_decoder_bias=1), "use_decoder_bias is 1"),
    "no means": (say(dataset_average_activation_norm=None), r'norm\["in"\] is None'),
    "one mean": (say(dataset_average_activation_norm={"in": 2.0}), r'norm\["out"\] is None'),
    "mean of zero": (
        say(dataset_average_activation_norm={"in": 0.0, "out": 1.0}),
        r'norm\["in"\] is 0\.0',
    ),
    "no threshold": (say(jump_relu_threshold=None), "jump_relu_threshold is None"),
    "below zero": (say(jump_relu_threshold=-1.0), r"jump_relu_threshold is -1\.0"),
    "another activation": (say(act_fn="gelu"), "activation is 'gelu'"),
    "an MLP's output": (say(hook_point_in=HOOKS[1]), "reads what the MLP wrote"),
    "no width": (say(d_model="6"), "d_model is '6'"),
    "other features": (say(d_sae=21), "has shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    config = dict(CONFIG)
    change(config)
    folder = their_folder(tmp_path / "layer", config, their_tensors())
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, norms=norms("rms"))
    assert str(folder) in str(caught.value)


@every_spoiled("encoder.weight", "decoder.weight", "decoder.bias")
def test_spoiled_tensors_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    assert_spoiled_is_refused(
        lambda tensors: their_folder(tmp_path / "layer", CONFIG, tensors),
        their_tensors(),
        spoil,
        tensor,
        norms=norms("rms"),
    )


def test_broken_files_are_refused_and_not_run(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "layer", CONFIG, their_tensors())
    path = folder / "checkpoints" / "final.safetensors"
    assert_broken_is_refused(path, folder, "cannot be read", norms=norms("rms"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"final\.safetensors: missing"):
        read(folder, norms=norms("rms"))
