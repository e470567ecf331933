"""Folders of every class of layers: bit by bit the same, partial sets, kinds told apart."""

import dataclasses
import json
import struct
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from replacement.checkpoints import (
    kind_of,
    load_attention_saes,
    load_lorsa,
    load_residual_saes,
    load_transcoders,
    save_attention_saes,
    save_lorsa,
    save_residual_saes,
    save_transcoders,
)
from replacement.checkpoints.folders import save_folder
from replacement.checkpoints.layouts import LAYOUTS, Layout
from replacement.layers import JumpReLU, Lorsa, Smooth
from tests.replacement.layers_made import (
    ACTIVATIONS,
    CLASSES,
    ROTARIES,
    differences,
    inputs,
    random_layer,
    random_query_key,
)

SAVE: dict[str, Callable[..., None]] = {
    "transcoder": save_transcoders,
    "transcoder with skip": save_transcoders,
    "sae": save_attention_saes,
    "residual sae": save_residual_saes,
    "lorsa": save_lorsa,
}
LOAD: dict[str, Callable[..., list]] = {
    "transcoder": load_transcoders,
    "transcoder with skip": load_transcoders,
    "sae": load_attention_saes,
    "residual sae": load_residual_saes,
    "lorsa": load_lorsa,
}
KINDS = {
    "transcoder": "transcoders",
    "transcoder with skip": "transcoders",
    "sae": "attention-saes",
    "residual sae": "residual-saes",
    "lorsa": "lorsa",
}


@pytest.mark.parametrize("gated", [False, True], ids=["no gate", "decoder-norm gate"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_saved_comes_back_bit_by_bit(
    tmp_path: Path, kind: str, activation: str, gated: bool
) -> None:
    layers = [random_layer(kind, activation, gated=gated, seed=seed) for seed in range(2)]
    SAVE[kind](layers, tmp_path, dtype=torch.float64)
    loaded = LOAD[kind](tmp_path, dtype=torch.float64)
    assert differences(layers, loaded) == []
    y = inputs(5)
    for before, after in zip(layers, loaded, strict=True):
        assert torch.equal(before.forward(y), after.forward(y))


@given(
    turns=st.sampled_from(list(ROTARIES)),
    norm=st.booleans(),
    bias=st.booleans(),
    window=st.none() | st.integers(1, 10**9),
    n_key_heads=st.sampled_from([1, 2, 4]),
    scale=st.floats(1e-300, 1e300),
    amplitude=st.floats(1e-3, 1e3),
    eps=st.floats(0, 1),
    one_sided=st.booleans(),
    gated=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_query_key_option_comes_back(
    tmp_path: Path,
    turns: str,
    norm: bool,
    bias: bool,
    window: int | None,
    n_key_heads: int,
    scale: float,
    amplitude: float,
    eps: float,
    one_sided: bool,
    gated: bool,
) -> None:
    """Numbers to the last bit too, and a norm or bias of one side only."""
    heads = random_query_key(
        turns=turns, norm=norm, window=window, n_key_heads=n_key_heads, bias=bias
    )
    heads = dataclasses.replace(heads, scale=scale)
    if heads.rotary is not None:
        heads = dataclasses.replace(
            heads, rotary=dataclasses.replace(heads.rotary, amplitude=amplitude)
        )
    if heads.query_norm is not None:
        heads = dataclasses.replace(
            heads, query_norm=dataclasses.replace(heads.query_norm, eps=eps)
        )
    if one_sided:
        heads = dataclasses.replace(heads, key_norm=None, query_bias=None)
    layer = random_layer("lorsa", "jumprelu", gated=gated, query_key=heads)
    save_lorsa([layer], tmp_path, dtype=torch.float64)
    assert differences(layer, load_lorsa(tmp_path, dtype=torch.float64)[0]) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_frequencies_are_kept_exactly_in_any_type_of_file(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Everything else is rounded to the type of the file, and no further."""
    layer = random_layer("lorsa", "jumprelu", gated=True)
    save_lorsa([layer], tmp_path, dtype=dtype)
    loaded = load_lorsa(tmp_path)[0]
    assert torch.equal(
        loaded.query_key.rotary.inverse_frequency, layer.query_key.rotary.inverse_frequency
    )
    for name in ("read", "write", "read_bias", "write_bias", "gate_scale"):
        assert torch.equal(getattr(loaded, name), getattr(layer, name).to(dtype).float())
    assert torch.equal(loaded.query_key.query, layer.query_key.query.to(dtype).float())
    assert torch.equal(loaded.activation.threshold, layer.activation.threshold.to(dtype).float())


@pytest.mark.parametrize("kind", CLASSES)
def test_layers_may_be_absent(tmp_path: Path, kind: str) -> None:
    """A mixture: the others are the model's own sublayers."""
    layer = random_layer(kind, "topk", dtype=torch.float32)
    SAVE[kind]([None, layer, None], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "layer_1.safetensors",
    ]
    loaded = LOAD[kind](tmp_path)
    assert [one is None for one in loaded] == [True, False, True]
    assert differences(layer.read, loaded[1].read) == []
    for none in ([], [None, None]):
        with pytest.raises(ValueError, match="no layers given"):
            SAVE[kind](none, tmp_path)


def test_a_set_saved_over_a_larger_one_reads_only_its_own_files(tmp_path: Path) -> None:
    layers = [random_layer("sae", seed=seed, dtype=torch.float32) for seed in range(3)]
    save_attention_saes(layers, tmp_path)
    save_attention_saes([layers[2], None], tmp_path)
    loaded = load_attention_saes(tmp_path)
    assert len(loaded) == 2 and loaded[1] is None
    assert differences(loaded[0], layers[2]) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_the_kind_of_a_folder_is_told_and_minded(tmp_path: Path, kind: str) -> None:
    SAVE[kind]([random_layer(kind)], tmp_path)
    assert kind_of(str(tmp_path)) == KINDS[kind]
    argument = LAYOUTS[kind_of(tmp_path)].argument
    right = f"{LOAD[kind].__name__}, or give it as load\\({argument}="
    for load in (load_transcoders, load_attention_saes, load_residual_saes, load_lorsa):
        if load is LOAD[kind]:
            assert len(load(tmp_path)) == 1
            continue
        with pytest.raises(ValueError, match=f"a folder of {KINDS[kind]}, not of .*{right}"):
            load(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.kind)
def test_layers_of_another_class_are_not_saved(tmp_path: Path, layout: Layout) -> None:
    """Not even those with the same tensors (transcoders without skip and SAEs)."""
    for kind in CLASSES:
        if KINDS[kind] != layout.kind:
            layer = random_layer(kind)
            with pytest.raises(TypeError, match=f"save_.* takes .*; got a {type(layer).__name__}"):
                save_folder(layout, [layer], tmp_path / "set", torch.float32)
    assert not (tmp_path / "set").exists()


def test_kinds_of_other_folders_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder of layers"):
        kind_of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"Found: nothing\. Looked for: config\.json"):
        kind_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r'"format" is None.*"linear-circuits lorsa"'):
        kind_of(tmp_path)
    (tmp_path / "config.json").write_text('{"sae_type": "lorsa"}')
    for reads in (kind_of, load_lorsa):
        with pytest.raises(ValueError, match=r"OpenMOSS.*load_openmoss_lorsa"):
            reads(tmp_path)


def test_folders_of_version_1_are_read(tmp_path: Path) -> None:
    """The bundled set, and one of our own with its version put back."""
    bundled = Path(str(resources.files("replacement") / "bundled/four-tasks/transcoders"))
    assert all(layer is not None for layer in load_transcoders(bundled))
    layer = random_layer("transcoder with skip", "jumprelu", dtype=torch.float32)
    save_transcoders([layer], tmp_path)
    rewrite_config(tmp_path, lambda config: config.update(version=1))
    assert differences(layer, load_transcoders(tmp_path)[0]) == []


# --------------------------------------------------------------------------- broken folders


def rewrite_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def rewrite_tensors(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / "layer_0.safetensors")
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "layer_0.safetensors",
    )


def setting(**entries: object) -> Callable[[dict], object]:
    return lambda config: config["query_key"][0].update(entries)


def short(name: str, axis: int = 0) -> Callable[[dict], object]:
    """Drops the last entry of an axis."""
    return lambda t: t.update({name: t[name].narrow(axis, 0, t[name].shape[axis] - 1)})


def spoil(name: str, value: float) -> Callable[[dict], object]:
    return lambda t: t[name].view(-1)[:1].fill_(value)


def drop(*names: str) -> Callable[[dict], object]:
    return lambda t: [t.pop(name) for name in names]


TENSORS: dict[str, tuple[Callable[[dict], object], str]] = {
    "no query": (drop("query"), r"missing tensors \['query'\]"),
    "a skip": (lambda t: t.update(skip=torch.ones(8, 8)), r"unexpected \['skip'\]"),
    "short gate_scale": (short("gate_scale"), r"gate_scale has shape \(23,\).*\[feature\]"),
    "short threshold": (short("threshold"), "threshold has shape"),
    "query of another width": (short("query", 1), r"query has shape \(4, 7, 6\).*d_model 8"),
    "keys of another d_head": (short("key", 2), r"key has shape \(4, 8, 5\)"),
    "three key heads": (short("key"), r"key_bias has shape \(4, 6\)"),
    "bias of three heads": (short("query_bias"), "query_bias has shape"),
    "gains of three heads": (short("key_norm"), "key_norm has shape"),
    "a matrix of frequencies": (
        lambda t: t.update(inverse_frequency=torch.ones(3, 1)),
        r"inverse_frequency has shape \(3, 1\)",
    ),
    "too many frequencies": (
        lambda t: t.update(inverse_frequency=torch.ones(4)),
        "turns 8 coordinates, a head has 6",
    ),
    "NaN in the gains": (spoil("query_norm", float("nan")), "query_norm holds NaN"),
    "infinite gate_scale": (spoil("gate_scale", float("inf")), "gate_scale holds NaN or inf"),
    "whole numbers": (lambda t: t.update(key=t["key"].int()), r"key is torch\.int32"),
    "no gains": (drop("query_norm"), r"query_norm_eps is 0\.001"),
    "no frequencies": (drop("inverse_frequency"), "adjacent is False"),
    "heads that do not divide": (
        lambda t: [
            short(name)(t) for name in ("read", "write", "read_bias", "gate_scale", "threshold")
        ],
        "23 value-output heads cannot share 4",
    ),
    "key heads that do not divide": (
        lambda t: [short(name)(t) for name in ("key", "key_bias", "key_norm")],
        "4 query heads cannot share 3 key heads",
    ),
}
SETTINGS: dict[str, tuple[Callable[[dict], object], str]] = {
    "no query_key": (lambda c: c.pop("query_key"), '"query_key" must list'),
    "null query_key": (lambda c: c.update(query_key=[None]), '"query_key" is None'),
    "null activation": (lambda c: c.update(activation=[None]), '"activation" is None'),
    "activation in a word": (lambda c: c.update(activation=["relu"]), "\"activation\" is 'relu'"),
    "an unknown activation": (lambda c: c.update(activation=[{}]), "not understood"),
    "an unknown entry": (setting(softcap=30.0), "exactly scale, window"),
    "an entry too few": (lambda c: c["query_key"][0].pop("window"), "exactly scale, window"),
    "no scale": (setting(scale=None), "scale is None"),
    "negative scale": (setting(scale=-1.0), r"scale is -1\.0; it must be a number > 0"),
    "a scale of NaN": (setting(scale=float("nan")), "scale is nan"),
    "scale in words": (setting(scale="auto"), "scale is 'auto'"),
    "window of zero": (setting(window=0), "window is 0"),
    "half a window": (setting(window=2.5), r"window is 2\.5"),
    "no epsilon": (setting(key_norm_eps=None), "key_norm_eps is None"),
    "negative epsilon": (setting(query_norm_eps=-1e-6), "query_norm_eps is -1e-06"),
    "pairs in words": (setting(adjacent="no"), "adjacent is 'no'"),
    "pairs in numbers": (setting(adjacent=0), "adjacent is 0"),
    "no amplitude": (setting(amplitude=None), "amplitude is None"),
    "amplitude true": (setting(amplitude=True), "amplitude is True"),
    "threshold without jumprelu": (
        lambda c: c.update(activation=[{"name": "relu"}]),
        "a threshold a feature, but",
    ),
}
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda raw: raw[:-1],
    "cut in the header": lambda raw: raw[:40],
    "empty": lambda raw: raw[:0],
    "endless header": lambda raw: struct.pack("<Q", 2**62) + raw[8:],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One Lorsa with every option."""
    save_lorsa([random_layer("lorsa", "jumprelu", gated=True)], tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", TENSORS)
def test_broken_tensors_of_lorsa_are_refused(folder: Path, name: str) -> None:
    change, message = TENSORS[name]
    rewrite_tensors(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_lorsa(folder)
    assert str(folder) in str(caught.value) and "layer_0.safetensors" in str(caught.value)


@pytest.mark.parametrize("name", SETTINGS)
def test_broken_settings_of_lorsa_are_refused(folder: Path, name: str) -> None:
    change, message = SETTINGS[name]
    rewrite_config(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_lorsa(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize("name", BYTES)
def test_broken_files_of_lorsa_are_refused(folder: Path, name: str) -> None:
    path = folder / "layer_0.safetensors"
    path.write_bytes(BYTES[name](path.read_bytes()))
    with pytest.raises(ValueError, match=r"layer_0\.safetensors: cannot be read"):
        load_lorsa(folder)


def test_a_missing_layer_is_named(folder: Path) -> None:
    (folder / "layer_0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"layer_0\.safetensors: missing"):
        load_lorsa(folder)


@pytest.mark.parametrize("kind", CLASSES)
def test_missing_folders_say_what_else_there_is(tmp_path: Path, kind: str) -> None:
    own = LAYOUTS[KINDS[kind]].instead
    with pytest.raises(FileNotFoundError, match=f"no such folder of .*model's own {own}"):
        LOAD[kind](tmp_path / "nowhere")


# ------------------------------------------------------------------------- what is not written


def replaced(layer: Lorsa, **changes: Any) -> Lorsa:
    return dataclasses.replace(layer, **changes)


UNWRITABLE: dict[str, tuple[Callable[[Lorsa], Lorsa], torch.dtype, str]] = {
    "beyond float16": (
        lambda layer: replaced(layer, gate_scale=1e6 * layer.gate_scale),
        torch.float16,
        r"layer 1: gate_scale .*torch\.float16.*wider type",
    ),
    "NaN": (
        lambda layer: replaced(layer, read_bias=float("nan") * layer.read_bias),
        torch.float32,
        "layer 1: read_bias holds NaN",
    ),
    "an activation without words": (
        lambda layer: replaced(layer, activation=Smooth("gelu")),
        torch.float32,
        "layer 1: activation settings .*gelu.* not understood",
    ),
    "one threshold for all": (
        lambda layer: replaced(layer, activation=JumpReLU(layer.activation.threshold[:1])),
        torch.float32,
        r"layer 1: threshold has shape \(1,\)",
    ),
    "another width": (
        lambda layer: replaced(
            layer,
            read=layer.read[:, 1:],
            write=layer.write[:, 1:],
            write_bias=layer.write_bias[1:],
        ),
        torch.float32,
        "layer 1: write_bias has shape",
    ),
    "a scale of zero": (
        lambda layer: replaced(layer, query_key=dataclasses.replace(layer.query_key, scale=0.0)),
        torch.float32,
        r"layer 1: .*scale is 0\.0",
    ),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_could_not_be_read_again_is_not_written(folder: Path, name: str) -> None:
    """And what was in the folder stays."""
    change, dtype, message = UNWRITABLE[name]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sound = random_layer("lorsa", "jumprelu", gated=True, seed=3)
    with pytest.raises(ValueError, match=message):
        save_lorsa([sound, change(sound)], folder, dtype=dtype)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    """safetensors writes files that only their owner may read; folders are shared."""
    save_lorsa([random_layer("lorsa", "topk", gated=False)], tmp_path / "set")
    (tmp_path / "plain").write_text("")
    wanted = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "set").iterdir()} == {wanted}
