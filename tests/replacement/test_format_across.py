"""Cross-layer transcoders of circuit-tracer, Gemma Scope 2 and OpenMOSS, and ours once saved.

Against a slow reading of their tensors: what every feature is worth, and what it writes where.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from replacement.checkpoints import load_cross_layer_transcoders, save_cross_layer_transcoders
from replacement.layers import CrossLayerTranscoder
from tests.replacement.formats_made import (
    D_MODEL,
    EXACT,
    N_FEATURES,
    N_LAYERS,
    above,
    after,
    assert_broken_is_refused,
    assert_spoiled_is_refused,
    every_spoiled,
    inputs,
    noise,
    norms,
    read,
    relu,
    slow,
    top,
    weights,
)

KIND = "cross-layer-transcoders"
TRACER: dict[str, Any] = {
    "model_kind": "cross_layer_transcoder",
    "feature_input_hook": "hook_resid_mid",
    "feature_output_hook": "hook_mlp_out",
}
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"


def decoders(number: int) -> Tensor:
    """Return [feature, target, d_model] of one layer."""
    return noise(700 + number, N_FEATURES, N_LAYERS - number, D_MODEL)


def assert_spreads(
    layer: CrossLayerTranscoder,
    y: Tensor,
    activations: Tensor,
    outputs: list[Tensor],
) -> None:
    """Check what features are worth, and the sums that they write to every MLP."""
    active = layer.encode(y)
    found = torch.zeros_like(activations)
    found[active.pos, active.index] = active.activation
    torch.testing.assert_close(found, activations, **EXACT)
    assert len(y) < len(active) < activations.numel()
    assert layer.n_targets == len(outputs)
    torch.testing.assert_close(layer.spread(active), torch.stack(outputs), **EXACT)


# ------------------------------------------------------------------------- circuit-tracer


def tracer_files(number: int, *, jump: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    raw = weights(100 * number)
    encoder = {
        f"W_enc_{number}": raw["W_enc"].T.contiguous(),
        f"b_enc_{number}": raw["b_enc"],
        f"b_dec_{number}": raw["b_dec"],
    }
    if jump:
        encoder[f"threshold_{number}"] = raw["threshold"]
    return encoder, {f"W_dec_{number}": decoders(number)}


def tracer_folder(folder: Path, config: dict[str, Any], *, jump: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for number in range(N_LAYERS):
        encoder, decoder = tracer_files(number, jump=jump)
        save_file(encoder, folder / f"W_enc_{number}.safetensors")
        save_file(decoder, folder / f"W_dec_{number}.safetensors")
    return folder


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("hook", ["hook_resid_mid", "mlp.hook_in", "ln2.hook_normalized"])
def test_of_circuit_tracer(tmp_path: Path, hook: str, jump: bool) -> None:
    folder = tracer_folder(tmp_path, {**TRACER, "feature_input_hook": hook}, jump=jump)
    kind, layers = read(folder, norms=norms("rms"))
    assert kind == KIND and len(layers) == N_LAYERS
    x = inputs()
    for number, layer in enumerate(layers):
        raw = weights(100 * number)
        gate = above(raw["threshold"].tolist()) if jump else relu
        written = [
            slow(x, raw["W_enc"], raw["b_enc"], decoders(number)[:, target], gate)
            for target in range(N_LAYERS - number)
        ]
        y = after(norms("rms")[number], x) if hook.startswith("ln2") else x
        assert_spreads(layer, y, written[0][0], [output for _, output in written])
        assert layer.reads_stream == (hook == "hook_resid_mid")
        assert layer.after_post_norm
        torch.testing.assert_close(layer.write_bias, raw["b_dec"], **EXACT)


def scope_folder(folder: Path) -> Path:
    """The last file is listed twice, as published; W_dec has rows for layers that are not later."""
    files = []
    for number in range(N_LAYERS):
        raw = weights(100 * number)
        tensors = {
            "w_enc": raw["W_enc"],
            "w_dec": noise(700 + number, N_FEATURES, N_LAYERS, D_MODEL),
            "b_enc": raw["b_enc"],
            "b_dec": raw["b_dec"],
            "threshold": raw["threshold"],
            "affine_skip_connection": raw["skip"],
        }
        files.append(f"shard_{number}.safetensors")
        save_file(tensors, folder / files[-1])
    config = {**TRACER, "transcoders": [*files, files[-1]]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_of_gemma_scope_2_as_circuit_tracer_lists_it(tmp_path: Path) -> None:
    kind, layers = read(scope_folder(tmp_path))
    assert kind == KIND and len(layers) == N_LAYERS
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "activation": "topk"}))
    with pytest.raises(ValueError, match=r"activation is 'topk', but shard_0\.safetensors is of"):
        read(tmp_path)
    x = inputs()
    for number, layer in enumerate(layers):
        raw = weights(100 * number)
        decoder = noise(700 + number, N_FEATURES, N_LAYERS, D_MODEL)
        gate = above(raw["threshold"].tolist())
        written = [
            slow(x, raw["W_enc"], raw["b_enc"], decoder[:, target], gate)
            for target in range(number, N_LAYERS)
        ]
        assert_spreads(layer, x, written[0][0], [output for _, output in written])
        around = raw["b_dec"] + torch.einsum("pi,io->po", x, raw["skip"])
        torch.testing.assert_close(layer.around(x), around, **EXACT)


@every_spoiled("W_enc_1", "b_enc_1", "W_dec_1")
def test_spoiled_tensors_of_circuit_tracer_are_refused(
    tmp_path: Path, spoil: str, tensor: str
) -> None:
    part = "W_dec" if tensor == "W_dec_1" else "W_enc"
    path = tracer_folder(tmp_path / "set", TRACER) / f"{part}_1.safetensors"

    def write(tensors: dict[str, Tensor]) -> Path:
        save_file(tensors or {"unnamed": torch.ones(1)}, path)
        return path.parent

    tensors = tracer_files(1)[part == "W_dec"]
    assert_spoiled_is_refused(write, tensors, spoil, tensor)


def test_broken_files_of_circuit_tracer_are_refused_and_not_run(tmp_path: Path) -> None:
    folder = tracer_folder(tmp_path / "set", TRACER)
    assert_broken_is_refused(folder / "W_dec_1.safetensors", folder, "cannot be read")


def change(**entries: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(entries)


TRACER_REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another kind": (change(model_kind="crosscoder"), "model_kind is 'crosscoder'"),
    "of attention": (
        change(feature_input_hook="hook_attn_out", feature_output_hook="hook_attn_out"),
        "MLPs alone have them",
    ),
    "the stream before attention": (change(feature_input_hook="hook_resid_pre"), "No layer here"),
    "another activation": (change(activation="relu"), "threshold a feature, but the activation is"),
    "a file twice": (
        change(transcoders=[f"W_enc_{number}.safetensors" for number in (0, 0, 1)]),
        "lists W_enc_0.safetensors more than once",
    ),
    "pooled": (change(activation="batchtopk"), "but the activation is 'batchtopk'"),
}


@pytest.mark.parametrize("name", TRACER_REFUSED)
def test_what_is_not_certain_of_circuit_tracer_is_refused(tmp_path: Path, name: str) -> None:
    alter, message = TRACER_REFUSED[name]
    config = dict(TRACER)
    alter(config)
    with pytest.raises(ValueError, match=message) as caught:
        read(tracer_folder(tmp_path / "set", config))
    assert str(tmp_path / "set") in str(caught.value)


def test_missing_files_of_circuit_tracer_are_named(tmp_path: Path) -> None:
    folder = tracer_folder(tmp_path / "set", TRACER)
    (folder / "W_dec_2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"W_dec_2\.safetensors: missing beside W_enc_2"):
        read(folder)
    (folder / "W_enc_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"W_enc_1\.safetensors missing"):
        read(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"without its config\.yaml"):
        read(folder)


# ------------------------------------------------------------------------------- OpenMOSS

MOSS: dict[str, Any] = {
    "sae_type": "clt",
    "d_model": D_MODEL,
    "act_fn": "jumprelu",
    "top_k": 4,
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "hook_points_in": [f"blocks.{number}.hook_resid_mid" for number in range(N_LAYERS)],
    "hook_points_out": [f"blocks.{number}.hook_mlp_out" for number in range(N_LAYERS)],
}
MEANS = {"in": [1.3, 2.0, 0.7, 4.1], "out": [0.6, 3.2, 1.1, 2.5]}


def moss_tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    raw = [weights(100 * number) for number in range(N_LAYERS)]
    tensors = {
        "W_E": torch.stack([one["W_enc"] for one in raw]),
        "b_E": torch.stack([one["b_enc"] for one in raw]),
    }
    for to in range(N_LAYERS):
        rows = [decoders(number)[:, to - number] for number in range(to + 1)]
        tensors[f"W_D.{to}"] = torch.stack(rows)
        tensors[f"b_D.{to}"] = raw[to]["b_dec"]
    if config["act_fn"] == "jumprelu":
        tensors[LOG_THRESHOLD] = torch.stack([one["threshold"] for one in raw]).log()
    for number in range(N_LAYERS):
        for side, name in (("in", "hook_resid_mid"), ("out", "hook_mlp_out")):
            mean = torch.tensor(MEANS[side][number], dtype=torch.float64)
            tensors[f"dataset_average_activation_norm.blocks.{number}.{name}"] = mean
    return tensors


def moss_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        moss_tensors(config) if tensors is None else tensors, folder / "sae_weights.safetensors"
    )
    return folder


@pytest.mark.parametrize("scaled", ["dataset-wise", "inference"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_of_openmoss(tmp_path: Path, activation: str, gated: bool, scaled: str) -> None:
    """Trained on s_in · x and s_out · y; the gate sees the norm of all that a feature writes."""
    config = {**MOSS, "act_fn": activation, "norm_activation": scaled}
    config["sparsity_include_decoder_norm"] = gated
    kind, layers = read(moss_folder(tmp_path, config))
    assert kind == KIND and len(layers) == N_LAYERS
    x = inputs()
    for number, layer in enumerate(layers):
        raw = weights(100 * number)
        factors = {
            side: [D_MODEL**0.5 / mean if scaled == "dataset-wise" else 1.0 for mean in means]
            for side, means in MEANS.items()
        }
        gate = {"relu": relu, "topk": top(4), "jumprelu": above(raw["threshold"].tolist())}
        seen = decoders(number).flatten(1).norm(dim=-1) if gated else None
        written = [
            slow(
                factors["in"][number] * x,
                raw["W_enc"],
                raw["b_enc"],
                decoders(number)[:, target] / factors["out"][number + target],
                gate[activation],
                seen=seen,
            )
            for target in range(N_LAYERS - number)
        ]
        assert_spreads(layer, x, written[0][0], [output for _, output in written])
        bias = raw["b_dec"] / factors["out"][number]
        torch.testing.assert_close(layer.write_bias, bias, **EXACT)
        assert layer.reads_stream


@every_spoiled("W_E", "b_E", "W_D.2", "b_D.1")
def test_spoiled_tensors_of_openmoss_are_refused(tmp_path: Path, spoil: str, tensor: str) -> None:
    def write(tensors: dict[str, Tensor]) -> Path:
        return moss_folder(tmp_path / "set", MOSS, tensors)

    assert_spoiled_is_refused(write, moss_tensors(MOSS), spoil, tensor)


def test_broken_files_of_openmoss_are_refused_and_not_run(tmp_path: Path) -> None:
    folder = moss_folder(tmp_path / "set", MOSS)
    assert_broken_is_refused(folder / "sae_weights.safetensors", folder, "cannot be read")


MOSS_REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "pooled over layers": (change(act_fn="layertopk"), "activation is 'layertopk'"),
    "pooled over a batch": (change(act_fn="batchtopk"), "is for|jumprelu has one|batchtopk"),
    "no hooks": (lambda config: config.pop("hook_points_in"), "hook_points_in is None"),
    "one hook less": (
        lambda config: config["hook_points_out"].pop(),
        "4 hook_points_in and 3 hook_points_out",
    ),
    "another order": (
        lambda config: (config["hook_points_in"].reverse(), config["hook_points_out"].reverse()),
        "listed from layer 0 on",
    ),
    "two layers": (lambda config: config["hook_points_out"].reverse(), "two layers"),
    "no mean": (
        lambda config: config.update(
            hook_points_in=[f"blocks.{number}.mlp.hook_in" for number in range(N_LAYERS)]
        ),
        r"blocks\.0\.mlp\.hook_in is None",
    ),
    "a hook that is no text": (
        lambda config: config["hook_points_in"].__setitem__(0, {"a": 1}),
        r"hook_points_in is \{'a': 1\}, which is no hook point",
    ),
    "width true": (change(d_model=True), "d_model is True; it is a whole number above 0"),
    "gated encoder": (change(use_glu_encoder=True), "use_glu_encoder"),
    "a scale for each token": (change(norm_activation="token-wise"), "token-wise"),
}


@pytest.mark.parametrize("name", MOSS_REFUSED)
def test_what_is_not_certain_of_openmoss_is_refused(tmp_path: Path, name: str) -> None:
    alter, message = MOSS_REFUSED[name]
    tensors, config = moss_tensors(MOSS), json.loads(json.dumps(MOSS))
    alter(config)
    if config["act_fn"] != "jumprelu":
        tensors.pop(LOG_THRESHOLD)
    with pytest.raises(ValueError, match=message) as caught:
        read(moss_folder(tmp_path / "set", config, tensors))
    assert str(tmp_path / "set") in str(caught.value)


# ----------------------------------------------------------------------------------- ours


def test_a_round_trip_through_our_folder_keeps_everything(tmp_path: Path) -> None:
    _, layers = read(moss_folder(tmp_path / "theirs", MOSS))
    layers[1] = None
    save_cross_layer_transcoders(layers, tmp_path / "ours", dtype=torch.float64)
    kind, again = read(tmp_path / "ours")
    assert kind == KIND and again[1] is None
    loaded = load_cross_layer_transcoders(tmp_path / "ours", dtype=torch.float64)
    for before, after_, third in zip(layers, again, loaded, strict=True):
        if before is not None:
            for name in ("read", "write", "read_bias", "write_bias", "gate_scale"):
                assert torch.equal(getattr(before, name), getattr(after_, name))
                assert torch.equal(getattr(before, name), getattr(third, name))
            assert torch.equal(before.activation.threshold, after_.activation.threshold)
            assert after_.reads_stream and after_.after_post_norm
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["input"] == "residual stream before the MLP's norm"
    assert config["output"].endswith("side by side after the norm that follows it")


@pytest.mark.parametrize("flag", ["reads_stream", "after_post_norm"])
def test_flags_of_our_folders_are_checked(tmp_path: Path, flag: str) -> None:
    _, layers = read(moss_folder(tmp_path / "theirs", MOSS))
    save_cross_layer_transcoders(layers, tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    config = json.loads(path.read_text())
    for wrong in (True, [True], [1, 1, 1, 1]):
        path.write_text(json.dumps({**config, flag: wrong}))
        with pytest.raises(ValueError, match=f'"{flag}" must list true or false'):
            read(tmp_path / "ours")
