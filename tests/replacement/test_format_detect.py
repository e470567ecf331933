"""Which format a folder is of: ours, Lorsa of OpenMOSS, several, none."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from replacement.checkpoints import (
    load_openmoss_lorsa,
    save_attention_saes,
    save_lorsa,
    save_openmoss_lorsa,
    save_transcoders,
)
from replacement.checkpoints.detect import read_layers
from replacement.model import ReplacementModel
from replacement.norms import Norm
from tests.families import IDS, tiny
from tests.replacement.layers_made import D_MODEL, differences, inputs, noise, random_layer

SAVES: dict[str, tuple[Any, str]] = {
    "transcoders": (save_transcoders, "transcoder with skip"),
    "lorsa": (save_lorsa, "lorsa"),
    "attention-saes": (save_attention_saes, "sae"),
}


MODELS = {
    "GPT-2": ("ln_2", "mlp"),
    "Llama, grouped keys": ("post_attention_layernorm", "mlp"),
    "Gemma-2, grouped keys": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
}
"""Which modules norm the MLP's input and give what it adds."""


def a_norm(*, centred: bool) -> Norm:
    source = torch.Generator().manual_seed(3)
    bias = noise(source, D_MODEL) if centred else None
    return Norm(1.5 + noise(source, D_MODEL), bias, 1e-6, centred)


@pytest.mark.parametrize("kind", SAVES)
def test_ours_are_read_as_they_were_saved(tmp_path: Path, kind: str) -> None:
    save, made = SAVES[kind]
    given = [random_layer(made, "jumprelu"), None]
    save(given, tmp_path, dtype=torch.float64)
    found, layers = read_layers(tmp_path, dtype=torch.float64)
    assert found == kind and differences(layers, given) == []
    assert len(read_layers(tmp_path, n_layers=3)[1]) == 3
    with pytest.raises(ValueError, match="has layer 0, but the model has 0 layers"):
        read_layers(tmp_path, n_layers=0)
    for given_too in ({"threshold": 0.1}, {"hooks": ("mlp.hook_in", "mlp.hook_out")}):
        with pytest.raises(ValueError, match="these layers are ours"):
            read_layers(tmp_path, **given_too)


@pytest.mark.parametrize("centred", [False, True])
def test_lorsa_of_openmoss_in_folders(tmp_path: Path, centred: bool) -> None:
    """The gain of an RMS norm is taken back; LayerNorm's hook has it."""
    norm = a_norm(centred=centred)
    layer = dataclasses.replace(
        random_layer("lorsa", "topk"), query_key=random_layer("lorsa").query_key
    )
    heads = dataclasses.replace(layer.query_key, window=None, rotary=None)
    heads = dataclasses.replace(heads, query_norm=None, key_norm=None)
    layer = dataclasses.replace(layer, query_key=heads)
    for number in (0, 2):
        folder = tmp_path / "lorsa" / f"layer{number}_lorsa_8x_k64"
        save_openmoss_lorsa(layer, folder, layer_number=number, dtype=torch.float64)
    kind, layers = read_layers(tmp_path, norms=[norm] * 4, dtype=torch.float64)
    assert kind == "lorsa" and [held is None for held in layers] == [0, 1, 0, 1]
    x = inputs(5)
    y = x if centred else x * norm.gain
    for held in (layers[0], layers[2]):
        torch.testing.assert_close(held.forward(y), layer.forward(x), rtol=0.0, atol=1e-11)
        assert held.after_post_norm
    with pytest.raises(ValueError, match=r"ln1\.hook_normalized.*Pass norms=.*attention_norm"):
        read_layers(tmp_path)
    with pytest.raises(ValueError, match="layer 2, for a model of 1 layers"):
        read_layers(tmp_path, norms=[norm])
    with pytest.raises(ValueError, match=r"but hooks=\('hook_attn_out', 'hook_attn_out'\) was"):
        read_layers(tmp_path, norms=[norm] * 4, hooks=("hook_attn_out",) * 2)
    assert load_openmoss_lorsa(folder)[0] == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_run_has_the_features_that_their_hooks_give(tmp_path: Path, name: str) -> None:
    """From a model's own stream by hand: their normalized input, their features, what is added."""
    made = tiny(name)
    weights = ReplacementModel(made).weights
    shapes = {"W_enc": (20, 8), "W_dec": (20, 8), "b_enc": (20,), "b_dec": (8,)}
    source = torch.Generator().manual_seed(1)
    held = {key: noise(source, *shape) for key, shape in shapes.items()}
    for number in range(weights.n_layers):
        save_file(held, tmp_path / f"layer_{number}.safetensors")
    (tmp_path / "config.yaml").write_text(
        "model_kind: transcoder_set\nfeature_input_hook: ln2.hook_normalized\n"
        "feature_output_hook: hook_mlp_out\n"
    )
    norms = [layer.mlp_norm for layer in weights.layers]
    _, layers = read_layers(tmp_path, norms=norms, dtype=torch.float64)
    seen: dict[str, torch.Tensor] = {}
    norm_name, added_name = MODELS[name]
    block: Any = made.get_submodule("transformer.h.1" if name == "GPT-2" else "model.layers.1")
    handles = [
        block.get_submodule(path).register_forward_hook(
            lambda _, given, output, path=path: seen.update({path: (given[0], output)})
        )
        for path in (norm_name, added_name)
    ]
    run = ReplacementModel(made, mlps=layers).run(IDS)
    made(torch.tensor([IDS]))
    for handle in handles:
        handle.remove()
    stream, normed = (part[0].detach() for part in seen[norm_name])
    hook = normed if name == "GPT-2" else stream / (stream.square().mean(-1, True) + 1e-6).sqrt()
    activations = (hook @ held["W_enc"].T + held["b_enc"]).clamp(min=0)
    mlp = run.layers[1].mlp
    found = torch.zeros_like(activations)
    found[mlp.active.pos, mlp.active.index] = mlp.active.activation
    close = {"rtol": 0.0, "atol": 1e-5}  # their norms compute in float32
    torch.testing.assert_close(found, activations, **close)
    output = activations @ held["W_dec"] + held["b_dec"]
    torch.testing.assert_close(mlp.output, output, **close)
    torch.testing.assert_close(mlp.output + mlp.error, seen[added_name][1][0].detach(), **close)


def a_transcoder(folder: Path, number: int) -> Path:
    """A folder of SAELens."""
    folder.mkdir(parents=True)
    config = {
        "architecture": "transcoder",
        "apply_b_dec_to_input": False,
        "metadata": {
            "hook_name": f"blocks.{number}.mlp.hook_in",
            "hook_name_out": f"blocks.{number}.hook_mlp_out",
        },
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    shapes = {"W_enc": (4, 5), "W_dec": (5, 4), "b_enc": (5,), "b_dec": (4,)}
    tensors = {name: torch.full(shape, 0.5 + number) for name, shape in shapes.items()}
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def an_attention_sae(folder: Path) -> Path:
    a_transcoder(folder, 1)
    config = {"architecture": "standard", "metadata": {"hook_name": "blocks.1.hook_attn_out"}}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_layers_in_folders_of_folders(tmp_path: Path) -> None:
    for number, name in ((2, "a/b/two"), (0, "c"), (1, ".cache/one")):
        a_transcoder(tmp_path / name, number)
    kind, layers = read_layers(tmp_path)
    assert kind == "transcoders" and [layer is None for layer in layers] == [0, 1, 0]
    assert layers[2].read[0, 0] == 2.5 and layers[2].read.dtype == torch.float32
    norms = [a_norm(centred=True)] * 5
    assert len(read_layers(tmp_path, norms=norms)[1]) == 5
    assert len(read_layers(tmp_path, norms=norms, n_layers=7)[1]) == 7
    a_transcoder(tmp_path / "d", 2)
    with pytest.raises(ValueError, match=r"layer 2 is there twice, as .*two and .*d\. Give"):
        read_layers(tmp_path)


def test_two_kinds_and_two_formats_are_refused(tmp_path: Path) -> None:
    a_transcoder(tmp_path / "kinds" / "a", 0)
    an_attention_sae(tmp_path / "kinds" / "b")
    with pytest.raises(ValueError, match="layers of attention-saes and transcoders"):
        read_layers(tmp_path / "kinds")
    a_transcoder(tmp_path / "formats" / "a", 0)
    (tmp_path / "formats" / "some.pt").touch()
    with pytest.raises(ValueError, match=r"several formats: SAELens .*Dunefsky.*some\.pt"):
        read_layers(tmp_path / "formats")


def test_folders_of_nothing_known_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder of layers"):
        read_layers(tmp_path / "nowhere")
    (tmp_path / "weights.bin").touch()
    (tmp_path / "config.json").write_text("{}")
    every = r"config\.yaml \(circuit-tracer\).*SAELens.*sparsify.*Llama Scope.*OpenMOSS.*Gemma"
    with pytest.raises(ValueError, match=rf"Found: config\.json, weights\.bin\..*{every}"):
        read_layers(tmp_path)
    with pytest.raises(ValueError, match=r"not a format I know\. Found: weights\.bin"):
        read_layers(tmp_path / "weights.bin")
    (tmp_path / "layer_0.safetensors").touch()
    with pytest.raises(ValueError, match=r"layer files without settings.*config\.yaml"):
        read_layers(tmp_path)
    (tmp_path / "W_enc_0.safetensors").touch()
    with pytest.raises(ValueError, match="a cross-layer transcoder of circuit-tracer"):
        read_layers(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        read_layers(tmp_path)


def test_an_empty_set_of_ours_is_refused(tmp_path: Path) -> None:
    save_transcoders([random_layer("transcoder")], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["activation"] = [None]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="layers of no kind"):
        read_layers(tmp_path)
