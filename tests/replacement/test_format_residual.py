"""SAEs of the residual stream in every format: what they compute, and at which stage."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.replacement.test_format_gemma_scope as gemma_scope
import tests.replacement.test_format_llama_scope as llama_scope
import tests.replacement.test_format_openmoss as openmoss
import tests.replacement.test_format_saelens as saelens
import tests.replacement.test_format_sparsify as sparsify
from replacement.checkpoints import load_residual_saes, save_residual_saes
from replacement.layers import ResidualSAE
from tests.replacement.formats_made import (
    SPOILED,
    assert_broken_is_refused,
    assert_does,
    assert_spoiled_is_refused,
    inputs,
    norms,
    read,
)
from tests.replacement.layers_made import differences, random_layer

Tensors = dict[str, Tensor]
POST = ("hook_resid_post", "hook_resid_post")


@dataclass
class Their:
    """One format: how its files are written, and what its tensors do."""

    write: Callable[[Path, Tensors], Path]
    tensors: Callable[[], Tensors]
    by_hand: Callable[[Tensors, Tensor], tuple[Tensor, Tensor]]
    stage: int
    file: str
    """Where the tensors are."""
    spoil: str
    """The tensor that is spoiled."""
    given: dict[str, Any] = field(default_factory=dict)


def of_saelens(hook: str) -> dict[str, Any]:
    metadata = {**saelens.SAE["metadata"], "hook_name": f"blocks.2.{hook}"}
    return {**saelens.SAE, "architecture": "jumprelu", "metadata": metadata}


def of_their_saelens(hook: str, stage: int) -> Their:
    config = of_saelens(hook)
    return Their(
        lambda folder, tensors: saelens.their_folder(folder / "a", config, tensors),
        lambda: saelens.their_tensors(config),
        lambda tensors, x: saelens.by_hand(config, tensors, x),
        stage,
        "sae_weights.safetensors",
        "b_dec",
    )


AT_POST = {f"hook_point_{side}": "blocks.1.hook_resid_post" for side in ("in", "out")}
SCOPE_2 = {
    **gemma_scope.CONFIG_2,
    "hf_hook_point_in": "model.layers.1.output",
    "hf_hook_point_out": None,
    "affine_connection": False,
}
OPENMOSS = {**openmoss.CONFIG, **AT_POST, "norm_activation": "dataset-wise", "act_fn": "jumprelu"}
LLAMA_SCOPE = {**llama_scope.CONFIG, **AT_POST}
THEIRS = {
    "SAELens, entering a layer": of_their_saelens("hook_resid_pre", 4),
    "SAELens, entering an MLP": of_their_saelens("hook_resid_mid", 5),
    "SAELens, leaving a layer": of_their_saelens("hook_resid_post", 6),
    "Gemma Scope": Their(
        lambda folder, tensors: gemma_scope.scope_file(folder, tensors, 2),
        gemma_scope.scope_tensors,
        gemma_scope.by_hand,
        6,
        "",
        "W_dec",
        {"hooks": POST},
    ),
    "Gemma Scope 2": Their(
        lambda folder, tensors: gemma_scope.scope_2_folder(folder / "a", SCOPE_2, tensors),
        lambda: gemma_scope.scope_2_tensors(skip=False),
        gemma_scope.by_hand,
        4,
        "params.safetensors",
        "w_enc",
    ),
    "sparsify": Their(
        lambda folder, tensors: sparsify.their_folder(folder / "layers.1", sparsify.SAE, tensors),
        lambda: sparsify.their_tensors(sparsify.SAE),
        lambda tensors, x: sparsify.by_hand(sparsify.SAE, tensors, x),
        4,
        "sae.safetensors",
        "encoder.weight",
    ),
    "OpenMOSS": Their(
        lambda folder, tensors: openmoss.their_folder(folder / "a", OPENMOSS, tensors),
        lambda: openmoss.their_tensors(OPENMOSS),
        lambda tensors, x: openmoss.by_hand(OPENMOSS, tensors, x),
        4,
        "sae_weights.safetensors",
        "W_D",
    ),
    "Llama Scope": Their(
        lambda folder, tensors: llama_scope.their_folder(folder / "a", LLAMA_SCOPE, tensors),
        llama_scope.their_tensors,
        lambda tensors, x: llama_scope.their_steps(LLAMA_SCOPE, tensors, x),
        4,
        "checkpoints/final.safetensors",
        "decoder.weight",
    ),
}
each_format = pytest.mark.parametrize("their", THEIRS.values(), ids=list(THEIRS))


@each_format
def test_they_do_what_their_tensors_say_at_their_stage(tmp_path: Path, their: Their) -> None:
    tensors = their.tensors()
    folder = their.write(tmp_path, tensors)
    kind, layers = read(folder, **their.given)
    assert kind == "residual-saes" and isinstance(layers[their.stage], ResidualSAE)
    assert [layer is not None for layer in layers].index(True) == their.stage
    assert len(layers) == 2 * ((their.stage + 1) // 2) + 1
    assert_does(layers[their.stage], inputs(), *their.by_hand(tensors, inputs()))
    assert len(read(folder, **their.given, norms=norms("rms"))[1]) == 9
    with pytest.raises(ValueError, match=rf"has stage {their.stage}, but the model has 3 stages"):
        read(folder, **their.given, n_layers=1)


@each_format
@pytest.mark.parametrize("spoil", SPOILED)
def test_spoiled_tensors_are_refused(tmp_path: Path, their: Their, spoil: str) -> None:
    assert_spoiled_is_refused(
        lambda tensors: their.write(tmp_path, tensors),
        their.tensors(),
        spoil,
        their.spoil,
        **their.given,
    )


@each_format
def test_broken_files_are_refused_and_not_run(tmp_path: Path, their: Their) -> None:
    folder = their.write(tmp_path / "set", their.tensors())
    assert_broken_is_refused(folder / their.file, folder, "cannot be read", **their.given)


def test_sae_of_a_centred_stream(tmp_path: Path) -> None:
    """In such a model the stream itself has no mean; with RMS norms nothing was centred."""
    config = of_saelens("hook_resid_pre")
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    tensors = saelens.their_tensors(config)
    folder = saelens.their_folder(tmp_path, config, tensors)
    x = inputs()
    for kind, seen in (("layer", x - x.mean(1, keepdim=True)), ("rms", x)):
        _, layers = read(folder, norms=norms(kind))
        assert_does(layers[4], x, *saelens.by_hand(config, tensors, seen))
    with pytest.raises(ValueError, match=r"center_writing_weights.*Pass norms="):
        read(folder)


def test_the_same_stage_twice_is_refused(tmp_path: Path) -> None:
    """What leaves a layer enters the next one."""
    for name, hook in (("a", "blocks.1.hook_resid_post"), ("b", "blocks.2.hook_resid_pre")):
        config = of_saelens("hook_resid_pre")
        config["metadata"]["hook_name"] = hook
        saelens.their_folder(tmp_path / name, config, saelens.their_tensors(config))
    with pytest.raises(ValueError, match=r"stage 4 is there twice.*one dictionary a stage"):
        read(tmp_path)


def test_ours_keep_their_stages(tmp_path: Path) -> None:
    given = [None, random_layer("residual sae", "jumprelu", gated=True), None, None, None]
    save_residual_saes(given, tmp_path, dtype=torch.float64)
    assert differences(load_residual_saes(tmp_path, dtype=torch.float64), given) == []
    kind, layers = read(tmp_path)
    assert kind == "residual-saes" and differences(layers, given) == []
    assert len(read(tmp_path, n_layers=3)[1]) == 7
    with pytest.raises(ValueError, match="has stage 1, but the model has 1 stages, 0 to 0"):
        read(tmp_path, n_layers=0)
