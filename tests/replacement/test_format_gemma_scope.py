"""Gemma Scope's two layouts against a slow reading of their tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.replacement.formats_made import (
    Bomb,
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
    weights,
)

HOOKS = ("ln2.hook_normalized", "hook_mlp_out")
CONFIG_2: dict[str, Any] = {
    "architecture": "jump_relu",
    "model_name": "google/gemma-3-270m-pt",
    "hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output",
    "width": 20,
    "l0": 10,
    "affine_connection": True,
    "type": "transcoder",
}
SKIP = "affine_skip_connection"


def scope_tensors(seed: int = 0) -> dict[str, Tensor]:
    raw = weights(seed)
    raw.pop("skip")
    return raw


def scope_file(folder: Path, tensors: dict[str, Tensor], number: int = 2) -> Path:
    path = folder / f"layer_{number}" / "width_16k" / "average_l0_65"
    path.mkdir(parents=True, exist_ok=True)
    np.savez(path / "params.npz", **{name: held.numpy() for name, held in tensors.items()})
    return path / "params.npz"


def scope_2_tensors(*, skip: bool = True) -> dict[str, Tensor]:
    raw = weights(11)
    names = {"W_enc": "w_enc", "W_dec": "w_dec", "skip": SKIP}
    tensors = {names.get(name, name): tensor for name, tensor in raw.items()}
    if not skip:
        del tensors[SKIP]
    return tensors


def scope_2_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "params.safetensors")
    return folder


def by_hand(tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    raw = {name.replace("w_", "W_"): tensor for name, tensor in tensors.items()}
    found, output = slow(
        x, raw["W_enc"], raw["b_enc"], raw["W_dec"], above(raw["threshold"].tolist())
    )
    output = output + raw["b_dec"]
    if SKIP in raw:
        output = output + torch.einsum("pi,io->po", x, raw[SKIP])
    return found, output


def test_transcoders_read_before_the_gain_and_write_after_the_post_norm(tmp_path: Path) -> None:
    held = {number: scope_tensors(number) for number in (0, 2)}
    for number, tensors in held.items():
        scope_file(tmp_path, tensors, number)
    kind, layers = read(tmp_path, hooks=HOOKS, norms=norms("rms"))
    assert kind == "transcoders" and [layer is None for layer in layers] == [0, 1, 0, 1]
    for number, tensors in held.items():
        hook = inputs(number)
        y = after(norms("rms")[number], hook)
        assert_does(layers[number], y, *by_hand(tensors, hook))
        assert layers[number].after_post_norm and layers[number].skip is None


def test_a_single_file_and_saes_of_attention(tmp_path: Path) -> None:
    """Their own attention SAEs are of the heads; an SAE of attention's output would be read."""
    tensors = scope_tensors()
    path = scope_file(tmp_path, tensors)
    number, layer = only(path, hooks=HOOKS, norms=norms("rms"))
    assert number == 2
    hook = inputs()
    assert_does(layer, after(norms("rms")[2], hook), *by_hand(tensors, hook))
    assert read(path, hooks=("hook_attn_out",) * 2)[0] == "attention-saes"
    for hooks, message in (
        (("attn.hook_z",) * 2, r"hook_z.*before W_O has no layer"),
        (("hook_resid_mid", "hook_resid_post"), "reads the one and writes the other"),
        (("hook_mlp_out",) * 2, "reads what the MLP wrote"),
        (("ln2.hook_normalised", "hook_mlp_out"), r"hooks= is 'blocks\.2\.ln2\.hook_normalised'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read(path, hooks=hooks, norms=norms("rms"))
        assert str(path) in str(caught.value)


def test_files_that_do_not_say_what_they_are_need_hooks_and_folders(tmp_path: Path) -> None:
    path = scope_file(tmp_path, scope_tensors())
    with pytest.raises(ValueError, match=r"Pass hooks=.*'ln2.hook_normalized', 'hook_mlp_out'"):
        read(tmp_path, norms=norms("rms"))
    with pytest.raises(ValueError, match="Pass norms="):
        read(tmp_path, hooks=HOOKS)
    with pytest.raises(ValueError, match="threshold= is for batchtopk"):
        read(tmp_path, hooks=HOOKS, norms=norms("rms"), threshold=0.1)
    bare = tmp_path / "bare"
    bare.mkdir()
    path.rename(bare / "params.npz")
    with pytest.raises(ValueError, match="no folder above it is called layer_0"):
        read(bare, hooks=HOOKS, norms=norms("rms"))


def test_two_widths_of_a_layer_are_refused(tmp_path: Path) -> None:
    path = scope_file(tmp_path, scope_tensors())
    other = path.parent.with_name("average_l0_9")
    other.mkdir()
    (other / "params.npz").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"layer 2 is there twice.*l0_65.*l0_9"):
        read(tmp_path, hooks=HOOKS, norms=norms("rms"))


@every_spoiled("W_enc", "W_dec", "threshold")
def test_spoiled_arrays_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    assert_spoiled_is_refused(
        lambda tensors: scope_file(tmp_path, tensors),
        scope_tensors(),
        spoil,
        tensor,
        hooks=HOOKS,
        norms=norms("rms"),
    )


def test_broken_archives_are_refused_and_not_run(tmp_path: Path) -> None:
    path = scope_file(tmp_path / "set", scope_tensors())
    given: dict[str, Any] = {"hooks": HOOKS, "norms": norms("rms")}
    assert_broken_is_refused(path, tmp_path / "set", "cannot be read", **given)
    mark = tmp_path / "was run"
    np.savez(path, W_enc=np.array([Bomb(mark)], dtype=object))
    with pytest.raises(ValueError, match=r"params\.npz: cannot be read \(Object arrays"):
        read(path, **given)
    assert not mark.exists()
    np.savez(path, W_enc=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="W_enc is <U1; weights are floating-point"):
        read(path, **given)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="a single array"):
        read(path, **given)


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_2_does_what_its_tensors_say(tmp_path: Path, skip: bool) -> None:
    config, tensors = {**CONFIG_2, "affine_connection": skip}, scope_2_tensors(skip=skip)
    folder = scope_2_folder(tmp_path / "layer_1_width_16k_l0_small", config, tensors)
    kind, layers = read(folder)
    assert kind == "transcoders" and layers[0] is None and len(layers) == 2
    assert_does(layers[1], inputs(), *by_hand(tensors, inputs()))
    assert layers[1].after_post_norm
    del config["affine_connection"]
    assert only(scope_2_folder(tmp_path / "b", config, tensors))[0] == 1


def test_an_sae_of_attentions_output(tmp_path: Path) -> None:
    config = {**CONFIG_2, "hf_hook_point_in": "model.layers.3.self_attn.o_proj.output"}
    config |= {"hf_hook_point_out": None, "affine_connection": False}
    tensors = scope_2_tensors(skip=False)
    kind, layers = read(scope_2_folder(tmp_path, config, tensors))
    assert kind == "attention-saes" and not layers[3].after_post_norm
    assert_does(layers[3], inputs(), *by_hand(tensors, inputs()))


def say(**entries: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(entries)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another architecture": (say(architecture="topk"), "architecture is 'topk'"),
    "heads": (
        say(
            hf_hook_point_in="model.layers.1.self_attn.o_proj.input",
            hf_hook_point_out=None,
        ),
        "before W_O has no layer",
    ),
    "residual": (
        say(hf_hook_point_in="model.layers.1.output", hf_hook_point_out=None),
        "with a skip connection",
    ),
    "either norm": (
        say(hf_hook_point_in="model.layers.1.post_attention_layernorm.output"),
        "no hook point that is known",
    ),
    "no skip said": (say(affine_connection=False), "affine_connection is False, but.*has a"),
    "skip in words": (say(affine_connection="yes"), "affine_connection is 'yes'"),
    "two layers": (
        say(hf_hook_point_out="model.layers.2.post_feedforward_layernorm.output"),
        "two layers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    config = dict(CONFIG_2)
    change(config)
    folder = scope_2_folder(tmp_path / "layer", config, scope_2_tensors())
    with pytest.raises(ValueError, match=message) as caught:
        read(folder)
    assert str(folder) in str(caught.value)


@every_spoiled("w_enc", "w_dec", "b_enc")
def test_spoiled_tensors_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    assert_spoiled_is_refused(
        lambda tensors: scope_2_folder(tmp_path / "layer", CONFIG_2, tensors),
        scope_2_tensors(),
        spoil,
        tensor,
    )


def test_broken_files_are_refused_and_not_run(tmp_path: Path) -> None:
    folder = scope_2_folder(tmp_path / "layer", CONFIG_2, scope_2_tensors())
    assert_broken_is_refused(folder / "params.safetensors", folder, "cannot be read")
    (folder / "params.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"params\.safetensors: missing"):
        read(folder)
