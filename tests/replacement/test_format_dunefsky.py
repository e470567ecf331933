"""Dunefsky's transcoders, pickles with one class in them, against a slow reading of them."""

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.replacement.formats_made import (
    D_MODEL,
    N_FEATURES,
    N_LAYERS,
    Bomb,
    after,
    assert_broken_is_refused,
    assert_does,
    assert_spoiled_is_refused,
    every_spoiled,
    inputs,
    norms,
    only,
    read,
    relu,
    slow,
    weights,
)

CLASS = "LanguageModelSAERunnerConfig"


@dataclass
class Theirs:
    """As their class of settings is pickled."""

    model_name: str = "gpt2-small"
    hook_point: str = "blocks.2.ln2.hook_normalized"
    hook_point_layer: int = 2
    d_in: int = D_MODEL
    d_sae: int = N_FEATURES
    d_out: int = D_MODEL
    is_transcoder: bool = True
    out_hook_point: str = "blocks.2.hook_mlp_out"
    out_hook_point_layer: int = 2
    dtype: torch.dtype = torch.float32
    device: Any = field(default_factory=lambda: torch.device("cpu"))


def their_tensors(seed: int = 0) -> dict[str, Tensor]:
    raw = weights(seed)
    return {
        "W_enc": raw["W_enc"],
        "b_enc": raw["b_enc"],
        "W_dec": raw["W_dec"],
        "b_dec": raw["skip"][0].clone(),
        "b_dec_out": raw["b_dec"],
    }


def their_file(path: Path, config: object, tensors: object, module: str = "config") -> Path:
    """Write a file as their code does, with a module of theirs that is gone afterwards."""
    names = ("sae_training", f"sae_training.{module}")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = Theirs.__module__, Theirs.__qualname__
    try:
        for name in names:
            sys.modules[name] = types.ModuleType(name)
        Theirs.__module__, Theirs.__qualname__ = names[1], CLASS
        setattr(sys.modules[names[1]], CLASS, Theirs)
        torch.save({"cfg": config, "state_dict": tensors}, path)
    finally:
        Theirs.__module__, Theirs.__qualname__ = before
        for name in names:
            del sys.modules[name]
    return path


def their_name(layer: int) -> str:
    return f"final_sparse_autoencoder_gpt2-small_blocks.{layer}.ln2.hook_normalized_24576.pt"


def by_hand(tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    shifted = x - tensors["b_dec"]
    found, output = slow(shifted, tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], relu)
    return found, output + tensors["b_dec_out"]


def test_layers_do_what_their_tensors_say(tmp_path: Path) -> None:
    """They read the norm without its gain and bias: those are folded where they were trained."""
    held = {number: their_tensors(10 * number) for number in (0, 3)}
    for number, tensors in held.items():
        hooks = f"blocks.{number}.ln2.hook_normalized", f"blocks.{number}.hook_mlp_out"
        config = Theirs(
            hook_point=hooks[0],
            hook_point_layer=number,
            out_hook_point=hooks[1],
            out_hook_point_layer=number,
        )
        path = their_file(tmp_path / their_name(number), config, tensors)
        torch.save(torch.zeros(3), path.with_name(path.stem + "_log_feature_sparsity.pt"))
    kind, layers = read(tmp_path, norms=norms("layer"))
    assert kind == "transcoders" and [layer is None for layer in layers] == [0, 1, 1, 0]
    for number, tensors in held.items():
        hook = inputs(number)
        y = after(norms("layer")[number], hook)
        assert_does(layers[number], y, *by_hand(tensors, hook))
    number, layer = only(tmp_path / their_name(3), norms=norms("layer"))
    assert number == 3 and torch.equal(layer.read, layers[3].read)


def test_norms_are_needed(tmp_path: Path) -> None:
    their_file(tmp_path / their_name(2), Theirs(), their_tensors())
    with pytest.raises(ValueError, match=r"\.pt: reads blocks\.2.*Pass norms="):
        read(tmp_path)
    with pytest.raises(ValueError, match="threshold= is for batchtopk"):
        read(tmp_path, norms=norms("layer"), threshold=1.0)
    assert len(read(tmp_path, norms=norms("layer"))[1]) == N_LAYERS


REFUSED: dict[str, tuple[Callable[[Theirs], object], str]] = {
    "an SAE": (lambda config: setattr(config, "is_transcoder", False), "is_transcoder is False"),
    "another hook": (
        lambda config: setattr(config, "hook_point", "blocks.2.hook_resid_mid"),
        r"only ln2\.hook_normalized can be read",
    ),
    "another layer": (
        lambda config: setattr(config, "out_hook_point", "blocks.3.hook_mlp_out"),
        "two layers",
    ),
    "another number": (
        lambda config: setattr(config, "hook_point_layer", 5),
        "hook_point_layer is 5, but hook_point blocks.2",
    ),
    "another output number": (
        lambda config: setattr(config, "out_hook_point_layer", 5),
        "out_hook_point_layer is 5",
    ),
    "no output": (lambda config: setattr(config, "out_hook_point", None), "out_hook_point is None"),
    "another width": (lambda config: setattr(config, "d_in", 7), "has shape"),
    "other features": (lambda config: setattr(config, "d_sae", 21), "has shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    config = Theirs()
    change(config)
    path = their_file(tmp_path / their_name(2), config, their_tensors())
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, norms=norms("layer"))
    assert str(path) in str(caught.value)


@every_spoiled("W_enc", "b_dec", "W_dec", "b_dec_out")
def test_spoiled_tensors_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    assert_spoiled_is_refused(
        lambda tensors: their_file(tmp_path / their_name(2), Theirs(), tensors),
        their_tensors(),
        spoil,
        tensor,
        norms=norms("layer"),
    )


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = their_file(tmp_path / "set" / their_name(2), Theirs(), their_tensors())
    message = "cannot be read|refused"
    assert_broken_is_refused(path, tmp_path / "set", message, norms=norms("layer"))


@pytest.mark.parametrize("where", ["cfg", "state_dict", "inside"])
def test_pickles_with_code_are_refused_and_not_run(tmp_path: Path, where: str) -> None:
    mark = tmp_path / "was run"
    config, tensors = Theirs(), their_tensors()
    contents: dict[str, Any] = {"cfg": config, "state_dict": tensors}
    if where == "inside":
        contents["cfg"].model_name = Bomb(mark)
    else:
        contents[where] = Bomb(mark)
    path = their_file(tmp_path / "set" / their_name(2), contents["cfg"], contents["state_dict"])
    with pytest.raises(ValueError, match=r"refused, .*mkdir.*Nothing in it was run"):
        read(path, norms=norms("layer"))
    assert not mark.exists()


@pytest.mark.parametrize("contents", [3, {"cfg": 3}, {"cfg": {}, "state_dict": {"W_enc": 3}}])
def test_other_pickles_are_refused(tmp_path: Path, contents: object) -> None:
    torch.save(contents, tmp_path / "some.pt")
    with pytest.raises(ValueError, match="as Dunefsky's transcoders are kept"):
        read(tmp_path, norms=norms("layer"))
    path = their_file(tmp_path / "b" / "some.pt", Theirs(), their_tensors(), module="elsewhere")
    with pytest.raises(ValueError, match=r"refused, .*sae_training\.elsewhere"):
        read(path, norms=norms("layer"))
