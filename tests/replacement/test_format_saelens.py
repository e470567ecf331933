"""SAELens' dictionaries against a slow reading of their tensors and settings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement.layers import BatchTopK
from tests.replacement.formats_made import (
    D_MODEL,
    N_FEATURES,
    N_LAYERS,
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

SAE: dict[str, Any] = {
    "architecture": "standard",
    "d_in": D_MODEL,
    "d_sae": N_FEATURES,
    "dtype": "float32",
    "device": "cuda",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "model_name": "gpt2",
        "hook_name": "blocks.2.hook_attn_out",
        "hook_head_index": None,
        "model_from_pretrained_kwargs": {},
        "sae_lens_version": "6.5.0",
    },
}
TRANSCODER: dict[str, Any] = {
    **SAE,
    "architecture": "transcoder",
    "d_out": D_MODEL,
    "apply_b_dec_to_input": False,
    "metadata": {
        **SAE["metadata"],
        "hook_name": "blocks.2.mlp.hook_in",
        "hook_name_out": "blocks.2.hook_mlp_out",
    },
}
K, LEVEL = 4, 0.7


def their_tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    raw = weights(7)
    tensors = {name: raw[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if config["architecture"].startswith("jumprelu"):
        tensors["threshold"] = raw["threshold"]
    if "skip" in config["architecture"]:
        tensors["W_skip"] = raw["skip"]
    return tensors


def their_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def by_hand(
    config: dict[str, Any], tensors: dict[str, Tensor], x: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Activations as stored before any rescaling by decoder norms, and the output."""
    gates = {"standard": relu, "transcoder": relu, "skip_transcoder": relu, "topk": top(K)}
    gate = gates.get(config["architecture"], above([LEVEL] * N_FEATURES))
    if "threshold" in tensors:
        gate = above([max(level, 0.0) for level in tensors["threshold"].tolist()])
    read_from = scale * x
    if config["apply_b_dec_to_input"]:
        read_from = read_from - tensors["b_dec"]
    seen = None
    if config.get("rescale_acts_by_decoder_norm"):
        seen = tensors["W_dec"].square().sum(1).sqrt()
    found, output = slow(
        read_from, tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], gate, seen=seen
    )
    output = (output + tensors["b_dec"]) / scale
    if "W_skip" in tensors:
        output = output + torch.einsum("oi,pi->po", tensors["W_skip"], x)
    return found, output


SAES = ("standard", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk")
TRANSCODERS = (
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("architecture", SAES)
def test_attention_saes_do_what_their_tensors_say(
    tmp_path: Path, architecture: str, gated: bool, shifted: bool
) -> None:
    config = {**SAE, "architecture": architecture, "apply_b_dec_to_input": shifted, "k": K}
    if gated and "topk" in architecture:
        config["rescale_acts_by_decoder_norm"] = True
    tensors = their_tensors(config)
    threshold = LEVEL if "batchtopk" in architecture else None
    folder = their_folder(tmp_path, config, tensors)
    kind, layers = read(folder, threshold=threshold)
    assert kind == "attention-saes" and layers[:2] == [None, None] and len(layers) == 3
    assert_does(layers[2], inputs(), *by_hand(config, tensors, inputs()))
    assert layers[2].after_post_norm


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_transcoders_do_what_their_tensors_say(tmp_path: Path, architecture: str) -> None:
    config = {**TRANSCODER, "architecture": architecture}
    tensors = their_tensors(config)
    kind, layers = read(their_folder(tmp_path, config, tensors), n_layers=N_LAYERS)
    assert kind == "transcoders" and layers[3] is None
    assert_does(layers[2], inputs(), *by_hand(config, tensors, inputs()))


@pytest.mark.parametrize("architecture", ["jumprelu_transcoder", "jumprelu_skip_transcoder"])
@pytest.mark.parametrize(("kind", "folded"), [("rms", False), ("layer", False), ("layer", True)])
def test_normalized_input_and_folded_norms(
    tmp_path: Path, architecture: str, kind: str, folded: bool
) -> None:
    """A model with folded norms has LayerNorm's hook before gain and bias too."""
    metadata = {
        **TRANSCODER["metadata"],
        "hook_name": "blocks.2.ln2.hook_normalized",
        "model_from_pretrained_kwargs": {"fold_ln": folded},
    }
    config = {**TRANSCODER, "architecture": architecture, "metadata": metadata}
    tensors, norm = their_tensors(config), norms(kind)[2]
    folder = their_folder(tmp_path, config, tensors)
    number, layer = only(folder, norms=norms(kind))
    hook = inputs()
    y = after(norm, hook) if kind == "rms" or folded else hook
    assert number == 2
    assert_does(layer, y, *by_hand(config, tensors, hook))
    with pytest.raises(ValueError, match=r"Pass norms="):
        read(folder)
    with pytest.raises(ValueError, match=r"a dictionary of layer 2, for a model of 2 layers"):
        read(folder, norms=norms(kind)[:2])


@pytest.mark.parametrize("spoil", ["zero", "narrow"])
def test_norms_that_cannot_be_undone_are_refused(tmp_path: Path, spoil: str) -> None:
    metadata = {**TRANSCODER["metadata"], "hook_name": "blocks.2.ln2.hook_normalized"}
    config = {**TRANSCODER, "metadata": metadata}
    folder = their_folder(tmp_path, config, their_tensors(config))
    given = norms("rms")
    gain = given[2].gain
    assert gain is not None
    changed = gain[:-1] if spoil == "narrow" else gain * (torch.arange(D_MODEL) != 1)
    given[2] = type(given[2])(changed, None, 1e-6, False)
    message = "norm has 5 factors" if spoil == "narrow" else "a gain of 0"
    with pytest.raises(ValueError, match=message):
        read(folder, norms=given)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "transcoder"])
def test_scales_that_were_not_folded_are(tmp_path: Path, architecture: str) -> None:
    base = TRANSCODER if "transcoder" in architecture else SAE
    config = {**base, "architecture": architecture, "k": K}
    config["normalize_activations"] = "expected_average_only_in"
    if architecture == "topk":
        config["rescale_acts_by_decoder_norm"] = True
    tensors = their_tensors(config)
    folder = their_folder(tmp_path, config, tensors)
    with pytest.raises(ValueError, match=r"factor that inputs were.*activation_scaler\.json"):
        read(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.4}')
    _, layer = only(folder)
    assert_does(layer, inputs(), *by_hand(config, tensors, inputs(), scale=0.4))
    assert_kept_in_half(folder)
    for wrong in ("0", "null", "true", '"a"'):
        (folder / "activation_scaler.json").write_text(f'{{"scaling_factor": {wrong}}}')
        with pytest.raises(ValueError, match=r"scaling_factor is .*number above 0"):
            read(folder)


def test_sae_of_centred_writes(tmp_path: Path) -> None:
    """In such a model attention's output is less its mean; with RMS norms nothing was centred."""
    metadata = {**SAE["metadata"], "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    config = {**SAE, "metadata": metadata}
    tensors = their_tensors(config)
    folder = their_folder(tmp_path, config, tensors)
    x = inputs()
    for kind, seen in (("layer", x - x.mean(1, keepdim=True)), ("rms", x)):
        _, layer = only(folder, norms=norms(kind))
        assert_does(layer, x, *by_hand(config, tensors, seen))
        assert_kept_in_half(folder, norms=norms(kind))
    with pytest.raises(ValueError, match=r"center_writing_weights.*Pass norms="):
        read(folder)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_settings_of_version_5_and_before(tmp_path: Path, activation: str) -> None:
    """Everything at the top, other names, nothing said where there was one choice only."""
    config: dict[str, Any] = {
        "model_name": "gpt2",
        "hook_point": "blocks.1.hook_attn_out",
        "hook_point_layer": 1,
        "hook_point_head_index": None,
        "d_in": D_MODEL,
        "d_sae": N_FEATURES,
        "activation_fn_str": activation,
        "activation_fn_kwargs": {"k": K} if activation == "topk" else {},
        "normalize_activations": False,
    }
    new = {**SAE, "architecture": "standard" if activation == "relu" else "topk"}
    tensors = their_tensors(new)
    ones = {"scaling_factor": torch.ones(N_FEATURES)}
    number, layer = only(their_folder(tmp_path, config, {**tensors, **ones}))
    assert number == 1
    assert_does(layer, inputs(), *by_hand(new, tensors, inputs()))


def test_a_hugging_face_hook_is_what_counts(tmp_path: Path) -> None:
    """SAELens calls Gemma Scope 2's input hook_mlp_in, which is none of the model's own."""
    metadata = {
        **TRANSCODER["metadata"],
        "hook_name": "blocks.2.hook_mlp_in",
        "hf_hook_name": "model.layers.2.pre_feedforward_layernorm.output",
        "hf_hook_name_out": "model.layers.2.post_feedforward_layernorm.output",
    }
    config = {**TRANSCODER, "metadata": metadata}
    tensors = their_tensors(config)
    number, layer = only(their_folder(tmp_path / "a", config, tensors))
    assert number == 2 and layer.after_post_norm
    assert_does(layer, inputs(), *by_hand(config, tensors, inputs()))
    del metadata["hf_hook_name"]
    with pytest.raises(ValueError, match=r"hook_mlp_in .*TransformerLens means the stream"):
        read(their_folder(tmp_path / "b", config, tensors))


def test_negative_thresholds_rectify(tmp_path: Path) -> None:
    config = {**SAE, "architecture": "jumprelu"}
    tensors = their_tensors(config)
    tensors["threshold"] = tensors["threshold"] - 0.6
    assert (tensors["threshold"] < -0.1).any()
    _, layer = only(their_folder(tmp_path, config, tensors))
    assert_does(layer, inputs(), *by_hand(config, tensors, inputs()))


def test_a_stored_threshold_of_batchtopk_is_taken(tmp_path: Path) -> None:
    config = {**SAE, "architecture": "batchtopk", "k": 3.5}
    tensors = their_tensors(config)
    with pytest.raises(ValueError, match=r"batchtopk without inference threshold.*Pass threshold"):
        read(their_folder(tmp_path / "a", config, tensors))
    tensors["topk_threshold"] = torch.tensor(LEVEL, dtype=torch.float64)
    folder = their_folder(tmp_path / "b", config, tensors)
    assert_does(only(folder)[1], inputs(), *by_hand(config, tensors, inputs()))
    assert only(folder, threshold=0.2)[1].activation == BatchTopK(0.2)
    with pytest.raises(ValueError, match=r"threshold= is for batchtopk.*'relu'"):
        read(their_folder(tmp_path / "c", SAE, their_tensors(SAE)), threshold=0.2)


def say(**entries: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(entries)


def tell(**entries: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(metadata={**config["metadata"], **entries})


REFUSED: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], object], str]] = {
    "heads": (SAE, tell(hook_name="blocks.2.attn.hook_z"), "before W_O has no layer"),
    "heads, reshaped": (SAE, say(reshape_activations="hook_z"), "hook_z.*before W_O"),
    "one head": (SAE, tell(hook_head_index=3), "hook_head_index is 3"),
    "MLP's input": (SAE, tell(hook_name="blocks.2.mlp.hook_in"), "No layer here reads"),
    "what an MLP wrote": (SAE, tell(hook_name="blocks.2.hook_mlp_out"), "not what it reads"),
    "two hooks": (SAE, tell(hook_name_out="blocks.2.hook_mlp_out"), "reproduces what it reads"),
    "no hook": (SAE, tell(hook_name=None), "hook_name is None"),
    "another layer": (SAE, say(hook_layer=3), "hook_layer is 3, but hook_name blocks.2"),
    "gated": (SAE, say(architecture="gated"), "architecture is 'gated', which is not read"),
    "another activation": (SAE, say(activation_fn="tanh-relu"), "activation_fn is 'tanh-relu'"),
    "topk without k": (SAE, say(architecture="topk"), "topk with k None"),
    "layer norm": (SAE, say(normalize_activations="layer_norm"), "changes with the input"),
    "norm": (SAE, say(normalize_activations="constant_norm_rescale"), "changes with the input"),
    "whitening": (SAE, say(normalize_activations="covariance_whitening"), "changes with the inp"),
    "rescaled standard": (SAE, say(rescale_acts_by_decoder_norm=True), "passes over it"),
    "a switch in words": (SAE, say(apply_b_dec_to_input="no"), "apply_b_dec_to_input is 'no'"),
    "another width": (SAE, say(d_in=7), "has shape"),
    "other features": (SAE, say(d_sae=21), "has shape"),
    "two layers": (
        TRANSCODER,
        tell(hook_name_out="blocks.3.hook_mlp_out"),
        r"blocks\.2\.mlp\.hook_in.*blocks\.3\.hook_mlp_out.*two layers",
    ),
    "no output": (TRANSCODER, tell(hook_name_out=None), "hook_name_out is None"),
    "shifted transcoder": (TRANSCODER, say(apply_b_dec_to_input=True), "SAELens refuses too"),
    "skip of an SAE": (
        {**TRANSCODER, "architecture": "skip_transcoder"},
        tell(hook_name="blocks.2.hook_attn_out", hook_name_out="blocks.2.hook_attn_out"),
        "with a skip connection",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str) -> None:
    base, change, message = REFUSED[name]
    config = dict(base)
    change(config)
    folder = their_folder(tmp_path / "layer", config, their_tensors(base))
    with pytest.raises(ValueError, match=message) as caught:
        read(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_factors_after_the_gate_are_refused(tmp_path: Path, name: str) -> None:
    tensors = {**their_tensors(SAE), name: torch.full((N_FEATURES,), 1.1)}
    with pytest.raises(ValueError, match=f"{name} is not 1 everywhere"):
        read(their_folder(tmp_path, SAE, tensors))


@every_spoiled("W_enc", "b_dec", "threshold", "W_skip")
def test_spoiled_tensors_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    config = {**TRANSCODER, "architecture": "jumprelu_skip_transcoder"}

    def write(tensors: dict[str, Tensor]) -> Path:
        return their_folder(tmp_path / "layer", config, tensors)

    assert_spoiled_is_refused(write, their_tensors(config), spoil, tensor)


def test_broken_files_are_refused_and_not_run(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "layer", SAE, their_tensors(SAE))
    assert_broken_is_refused(folder / "sae_weights.safetensors", folder, "cannot be read")
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match=r"cfg\.json: not valid JSON"):
        read(folder)
