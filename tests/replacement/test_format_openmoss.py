"""OpenMOSS' transcoders and SAEs, version 2, against a slow reading of their tensors."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement.layers import ReLU
from tests.replacement.formats_made import (
    D_MODEL,
    N_FEATURES,
    above,
    after,
    assert_broken_is_refused,
    assert_does,
    assert_kept_in_half,
    assert_spoiled_is_refused,
    every_spoiled,
    inputs,
    norms,
    only,
    read,
    relu,
    slow,
    top,
    weights,
)

LOG = "activation_function.log_jumprelu_threshold"
MEAN = "dataset_average_activation_norm."
SAE_HOOKS = ("blocks.1.hook_attn_out", "blocks.1.hook_attn_out")
HOOKS = ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
MEAN_IN, MEAN_OUT = 5.0, 0.75
CONFIG: dict[str, Any] = {
    "sae_type": "sae",
    "d_model": D_MODEL,
    "expansion_factor": N_FEATURES / D_MODEL,
    "use_decoder_bias": True,
    "act_fn": "topk",
    "norm_activation": "inference",
    "sparsity_include_decoder_norm": True,
    "top_k": 4,
    "hook_point_in": HOOKS[0],
    "hook_point_out": HOOKS[1],
    "use_glu_encoder": False,
}


def their_tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    raw = weights(21)
    means = {config["hook_point_in"]: MEAN_IN, config["hook_point_out"]: MEAN_OUT}
    tensors = {
        "W_E": raw["W_enc"],
        "b_E": raw["b_enc"],
        "W_D": raw["W_dec"],
        **{MEAN + hook: torch.tensor(mean) for hook, mean in means.items()},
    }
    if config.get("use_decoder_bias", True):
        tensors["b_D"] = raw["b_dec"]
    if config.get("act_fn") == "jumprelu":
        tensors[LOG] = raw["threshold"].log()
    return tensors


def their_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    save_file(tensors, folder / "sae_weights.safetensors", {"version": "2.0.0"})
    return folder


def by_hand(config: dict[str, Any], tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    gates = {"relu": relu, "topk": top(4), "batchtopk": above([0.5] * N_FEATURES)}
    gate = gates.get(config.get("act_fn", "relu"))
    if gate is None:
        gate = above([math.exp(level) for level in tensors[LOG].tolist()])
    scales = [1.0, 1.0]
    if config.get("norm_activation", "dataset-wise") == "dataset-wise":
        hooks = (config["hook_point_in"], config["hook_point_out"])
        scales = [math.sqrt(D_MODEL) / float(tensors[MEAN + hook]) for hook in hooks]
    seen = tensors["W_D"].square().sum(1).sqrt()
    if not config.get("sparsity_include_decoder_norm", True):
        seen = torch.ones(N_FEATURES)
    found, output = slow(
        scales[0] * x, tensors["W_E"], tensors["b_E"], tensors["W_D"], gate, seen=seen
    )
    return found, (output + tensors.get("b_D", torch.zeros(D_MODEL))) / scales[1]


@pytest.mark.parametrize("norm", ["inference", "dataset-wise"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("act_fn", ["relu", "topk", "jumprelu", "batchtopk"])
def test_transcoders_do_what_their_code_does(
    tmp_path: Path, act_fn: str, gated: bool, norm: str
) -> None:
    config = {
        **CONFIG,
        "act_fn": act_fn,
        "sparsity_include_decoder_norm": gated,
        "norm_activation": norm,
    }
    tensors = their_tensors(config)
    threshold = 0.5 if act_fn == "batchtopk" else None
    folder = their_folder(tmp_path, config, tensors)
    number, layer = only(folder, norms=norms("rms"), threshold=threshold)
    assert number == 1 and layer.after_post_norm
    hook = inputs()
    y = after(norms("rms")[1], hook)
    assert_does(layer, y, *by_hand(config, tensors, hook))
    assert_kept_in_half(folder, norms=norms("rms"), threshold=threshold)


@pytest.mark.parametrize("norm", ["inference", "dataset-wise"])
@pytest.mark.parametrize("bias", [False, True])
def test_saes_of_attention_do_what_their_code_does(tmp_path: Path, bias: bool, norm: str) -> None:
    config = {**CONFIG, "use_decoder_bias": bias, "norm_activation": norm, "act_fn": "jumprelu"}
    config |= {"hook_point_in": SAE_HOOKS[0], "hook_point_out": SAE_HOOKS[1]}
    tensors = their_tensors(config)
    kind, layers = read(their_folder(tmp_path, config, tensors))
    assert kind == "attention-saes" and layers[0] is None
    assert_does(layers[1], inputs(), *by_hand(config, tensors, inputs()))


def test_defaults_are_theirs(tmp_path: Path) -> None:
    config = {name: CONFIG[name] for name in ("sae_type", "d_model")}
    config |= {"hook_point_in": HOOKS[0], "hook_point_out": HOOKS[1]}
    tensors = their_tensors(config)
    _, layer = only(their_folder(tmp_path, config, tensors), norms=norms("layer"))
    assert isinstance(layer.activation, ReLU) and layer.gate_scale is not None
    assert_does(layer, inputs(), *by_hand(config, tensors, inputs()))


def test_thresholds_of_log_zero_only_rectify(tmp_path: Path) -> None:
    config = {**CONFIG, "act_fn": "jumprelu"}
    tensors = their_tensors(config)
    tensors[LOG] = torch.full_like(tensors[LOG], -torch.inf)
    _, layer = only(their_folder(tmp_path, config, tensors), norms=norms("layer"))
    assert_does(layer, inputs(), *by_hand(config, tensors, inputs()))


def say(**entries: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(entries)


def without_norms(**entries: object) -> Callable[[dict[str, Any]], object]:
    return say(norm_activation="dataset-wise", **entries)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "glu": (say(use_glu_encoder=True), "use_glu_encoder.*not linear"),
    "scale of each token": (say(norm_activation="token-wise"), "changes with the input"),
    "no mean norm": (without_norms(), r"dataset_average_activation_norm\.blocks.* is None"),
    "batchtopk": (say(act_fn="batchtopk"), "batchtopk without inference threshold"),
    "layertopk": (say(act_fn="layertopk"), "activation is 'layertopk'"),
    "no k": (say(top_k=0), "topk with k 0"),
    "no thresholds": (say(act_fn="jumprelu"), r"missing tensors .*log_jumprelu"),
    "no width": (say(d_model=None), "d_model is None"),
    "another width": (say(d_model=7), "has shape"),
    "a switch in words": (say(sparsity_include_decoder_norm="no"), "is 'no'; it is true or false"),
    "no bias said": (say(use_decoder_bias=False), r"unexpected \['b_D'\]"),
    "several hooks": (say(sae_type="crosscoder"), "'crosscoder' of OpenMOSS, which no layer here"),
    "residual": (
        say(hook_point_in="blocks.1.hook_resid_post", hook_point_out="blocks.2.hook_resid_post"),
        "two layers",
    ),
    "no hooks": (lambda config: config.pop("hook_point_in"), "hook_point_in is None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    config, tensors = dict(CONFIG), their_tensors(CONFIG)
    if "mean norm" in name:
        tensors = {key: held for key, held in tensors.items() if not key.startswith(MEAN)}
    change(config)
    folder = their_folder(tmp_path / "layer", config, tensors)
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, norms=norms("rms"))
    assert str(folder) in str(caught.value)


@every_spoiled("W_E", "b_E", "W_D", "b_D")
def test_spoiled_tensors_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    assert_spoiled_is_refused(
        lambda tensors: their_folder(tmp_path / "layer", CONFIG, tensors),
        their_tensors(CONFIG),
        spoil,
        tensor,
        norms=norms("rms"),
    )


def test_broken_files_are_refused_and_not_run(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "layer", CONFIG, their_tensors(CONFIG))
    path = folder / "sae_weights.safetensors"
    assert_broken_is_refused(path, folder, "cannot be read", norms=norms("rms"))
    path.rename(folder / "sae_weights.pt")
    with pytest.raises(FileNotFoundError, match=r"found: config\.json, sae_weights\.pt"):
        read(folder, norms=norms("rms"))
