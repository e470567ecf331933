"""circuit-tracer's transcoder sets against a slow reading of their tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.replacement.formats_made import (
    N_LAYERS,
    above,
    after,
    assert_broken_is_refused,
    assert_does,
    assert_spoiled_is_refused,
    every_spoiled,
    inputs,
    norms,
    read,
    relu,
    slow,
    top,
    weights,
)

CONFIG: dict[str, Any] = {
    "model_name": "some/model",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "mlp.hook_out",
    "scan": "someone/transcoders",
}
THRESHOLD = "activation_function.threshold"


def their_tensors(seed: int, *, threshold: bool = False, skip: bool = False) -> dict[str, Tensor]:
    raw = weights(100 * seed)
    tensors = {
        "W_enc": raw["W_enc"].T.contiguous(),
        "W_dec": raw["W_dec"],
        "b_enc": raw["b_enc"],
        "b_dec": raw["b_dec"],
    }
    if threshold:
        tensors[THRESHOLD] = raw["threshold"]
    if skip:
        tensors["W_skip"] = raw["skip"]
    return tensors


def their_folder(
    folder: Path, config: dict[str, Any], layers: list[dict[str, Tensor]] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for number, tensors in enumerate(layers or [their_tensors(i) for i in range(N_LAYERS)]):
        save_file(tensors, folder / f"layer_{number}.safetensors")
    return folder


def by_hand(tensors: dict[str, Tensor], x: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
    gate = relu if k is None else top(k)
    if THRESHOLD in tensors:
        gate = above(tensors[THRESHOLD].tolist())
    found, output = slow(x, tensors["W_enc"].T, tensors["b_enc"], tensors["W_dec"], gate)
    output = output + tensors["b_dec"]
    if "W_skip" in tensors:
        output = output + torch.einsum("oi,pi->po", tensors["W_skip"], x)
    return found, output


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", ["relu", "unsaid", "topk", "jumprelu", "thresholds"])
def test_layers_do_what_their_tensors_say(tmp_path: Path, activation: str, skip: bool) -> None:
    config = dict(CONFIG)
    if activation not in ("unsaid", "thresholds"):
        config["activation"] = activation
    if activation == "topk":
        config["k"] = 4
    jump = activation in ("jumprelu", "thresholds")
    given = [their_tensors(i, threshold=jump, skip=skip) for i in range(N_LAYERS)]
    kind, layers = read(their_folder(tmp_path, config, given))
    assert kind == "transcoders" and len(layers) == N_LAYERS
    for tensors, layer in zip(given, layers, strict=True):
        y = inputs()
        assert_does(layer, y, *by_hand(tensors, y, 4 if activation == "topk" else None))
        assert not layer.after_post_norm


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("skip", [False, True])
def test_normalized_input_is_before_the_gain_of_rms_norms_only(
    tmp_path: Path, kind: str, skip: bool
) -> None:
    config = {**CONFIG, "feature_input_hook": "ln2.hook_normalized"}
    config["feature_output_hook"] = "hook_mlp_out"
    given = [their_tensors(i, skip=skip) for i in range(N_LAYERS)]
    folder = their_folder(tmp_path, config, given)
    _, layers = read(folder, norms=norms(kind))
    for tensors, layer, norm in zip(given, layers, norms(kind), strict=True):
        hook = inputs()
        y = after(norm, hook) if kind == "rms" else hook
        assert_does(layer, y, *by_hand(tensors, hook))
        assert layer.after_post_norm
    with pytest.raises(ValueError, match=r"before its gain.*Pass norms=") as caught:
        read(folder)
    assert str(folder) in str(caught.value)


def test_the_stream_before_the_norm_is_read_as_it_is(tmp_path: Path) -> None:
    config = {**CONFIG, "feature_input_hook": "hook_resid_mid"}
    _, layers = read(their_folder(tmp_path, config))
    assert all(layer.reads_stream for layer in layers)
    assert_does(layers[2], inputs(), *by_hand(their_tensors(2), inputs()))


def test_half_types_are_converted_and_full_ones_stay_in_the_file(tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in their_tensors(0).items()}
    full = {name: tensor.float() for name, tensor in half.items()}
    (_, halves), (_, fulls) = (
        read(their_folder(tmp_path / name, CONFIG, [given]), dtype=torch.float32)
        for name, given in (("half", half), ("full", full))
    )
    for name in ("read", "write", "read_bias", "write_bias"):
        assert getattr(halves[0], name).dtype == torch.float32
        assert torch.equal(getattr(halves[0], name), getattr(fulls[0], name))


def test_listed_files_of_three_layouts(tmp_path: Path) -> None:
    """As sets list Gemma Scope's own files; order is the list's."""
    raw = weights(3)
    own, scope, scope_2 = their_tensors(1), dict(raw), dict(raw)
    scope.pop("skip")
    tmp_path.joinpath("deep").mkdir()
    np.savez(tmp_path / "deep" / "params.npz", **{k: v.numpy() for k, v in scope.items()})
    scope_2 = {name.replace("W_", "w_"): raw[name] for name in scope}
    scope_2["affine_skip_connection"] = raw["skip"]
    save_file(scope_2, tmp_path / "two.safetensors")
    save_file(own, tmp_path / "own.safetensors")
    files = ["deep/params.npz", str(tmp_path / "own.safetensors"), "two.safetensors"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "transcoders": files}))
    _, layers = read(tmp_path, n_layers=5)
    assert layers[3:] == [None, None]
    x = inputs()
    found, output = slow(
        x, raw["W_enc"], raw["b_enc"], raw["W_dec"], above(raw["threshold"].tolist())
    )
    output = output + raw["b_dec"]
    assert_does(layers[0], x, found, output)
    assert_does(layers[1], x, *by_hand(own, x))
    assert_does(layers[2], x, found, output + torch.einsum("pi,io->po", x, raw["skip"]))


@every_spoiled("W_enc", "W_dec", "b_enc", "b_dec")
def test_spoiled_tensors_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    def write(tensors: dict[str, Tensor]) -> Path:
        return their_folder(tmp_path / "set", CONFIG, [their_tensors(0), tensors])

    assert_spoiled_is_refused(write, their_tensors(1), spoil, tensor)


def test_broken_files_are_refused_and_not_run(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "set", CONFIG)
    assert_broken_is_refused(folder / "layer_2.safetensors", folder, "cannot be read")


def say(**entries: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(entries)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no kind": (lambda config: config.pop("model_kind"), "model_kind is None"),
    "residual stream": (
        say(feature_input_hook="hook_resid_pre"),
        r"blocks\.0\.hook_resid_pre \(the residual stream entering the layer\)",
    ),
    "no input": (lambda config: config.pop("feature_input_hook"), "feature_input_hook is None"),
    "a number": (say(feature_output_hook=3), "feature_output_hook is 3"),
    "a hook with a tail": (say(feature_input_hook="mlp.hook_ins"), "is 'blocks.0.mlp.hook_ins'"),
    "of attention": (say(feature_output_hook="hook_attn_out"), "No layer here reads the one"),
    "another activation": (say(activation="gelu"), "activation is 'gelu'"),
    "no k": (say(activation="topk"), "topk with k None"),
    "half a k": (say(activation="topk", k=2.5), r"topk with k 2\.5"),
    "true k": (say(activation="topk", k=True), "topk with k True"),
    "no k at all": (say(activation="topk", k=0), "topk with k 0"),
    "no thresholds": (say(activation="jumprelu"), "jumprelu with a threshold"),
    "no list": (say(transcoders="layer_0.safetensors"), "transcoders is 'layer_0"),
    "empty list": (say(transcoders=[]), r"transcoders is \[\]"),
    "not of the hub": (say(transcoders=["s3://a/b/c.npz"]), "lists s3://a/b/c.npz; read here"),
    "a file twice": (
        say(transcoders=["layer_0.safetensors", "./layer_1.safetensors", "layer_1.safetensors"]),
        "lists layer_1.safetensors more than once",
    ),
    "half a hub name": (say(transcoders=["hf://a"]), "lists hf://a; read here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    config = dict(CONFIG)
    change(config)
    with pytest.raises(ValueError, match=message) as caught:
        read(their_folder(tmp_path / "set", config))
    assert str(tmp_path / "set") in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": ["x"]}, r"activation is \['x'\], but two\.safetensors is of Gemma Scope"),
        ({"activation": "relu"}, "activation is 'relu', but two"),
        ({"k": 4}, "k is 4, but two"),
        ({"activation": "jump_relu"}, ""),
    ],
)
def test_settings_beside_files_of_gemma_scope_are_checked(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    raw = weights(3)
    raw.pop("skip")
    tensors = {name.replace("W_", "w_"): tensor for name, tensor in raw.items()}
    save_file(tensors, tmp_path / "two.safetensors")
    config = {**CONFIG, "transcoders": ["two.safetensors"], **settings}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    if message:
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
    else:
        assert len(read(tmp_path)[1]) == 1


def test_other_refusals(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "set", CONFIG)
    with pytest.raises(ValueError, match=r"threshold= is for batchtopk.*'relu'"):
        read(folder, threshold=0.3)
    with pytest.raises(ValueError, match=r"hooks=\('ln2.hook_normalized', 'hook_mlp_out'\) was"):
        read(folder, hooks=("ln2.hook_normalized", "hook_mlp_out"))
    assert read(folder, hooks=("mlp.hook_in", "mlp.hook_out"))[0] == "transcoders"
    with pytest.raises(ValueError, match=r"has layer 3, but the model has 3 layers, 0 to 2"):
        read(folder, n_layers=3)
    (folder / "layer_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"layer_1\.safetensors missing \(found: layer_0"):
        read(folder)
    with pytest.raises(FileNotFoundError, match=r"there\.safetensors: missing"):
        read(their_folder(tmp_path / "listed", {**CONFIG, "transcoders": ["there.safetensors"]}))
    relu_with = their_folder(
        tmp_path / "contradiction",
        {**CONFIG, "activation": "relu"},
        [their_tensors(0, threshold=True)],
    )
    with pytest.raises(ValueError, match=r"threshold a feature, but the activation is 'relu'"):
        read(relu_with)
    (folder / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"config\.yaml: not valid YAML"):
        read(folder)
    (folder / "config.yaml").write_text("!!python/object/apply:os.mkdir [ran]")
    with pytest.raises(ValueError, match=r"config\.yaml: not valid YAML"):
        read(folder)
    assert not Path("ran").exists()


def test_layers_of_two_models_are_refused(tmp_path: Path) -> None:
    narrow = {
        "W_enc": torch.ones(3, 4),
        "W_dec": torch.ones(3, 4),
        "b_enc": torch.ones(3),
        "b_dec": torch.ones(4),
    }
    with pytest.raises(ValueError, match=r"layer_1\.safetensors: reads vectors of 4.* of 6"):
        read(their_folder(tmp_path, CONFIG, [their_tensors(0), narrow]))
