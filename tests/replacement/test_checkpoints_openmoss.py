"""OpenMOSS' layout against a slow reading of its formulas, from the raw tensors of a file.

`raw_forward` knows nothing of our layers; `their_folder` writes what their code saves.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from replacement.checkpoints import load_openmoss_lorsa, save_openmoss_lorsa
from replacement.checkpoints.openmoss.saving import _expansion, _rotary_settings
from replacement.layers import BatchTopK, JumpReLU, Llama3Scaling, Lorsa, QueryKey, ReLU, TopK
from replacement.layers import rotary as turns_of
from replacement.precision import kept_type
from tests.replacement.layers_made import (
    ACTIVATIONS,
    D_HEAD,
    D_MODEL,
    N_FEATURES,
    N_HEADS,
    ROTARIES,
    STRETCHED,
    differences,
    inputs,
    noise,
    random_layer,
    random_query_key,
)

HOOK_IN, HOOK_OUT = "blocks.5.ln1.hook_normalized", "blocks.5.hook_attn_out"
MEAN_IN, MEAN_OUT = 7.0, 0.9
N_CTX = 12
THRESHOLD = "activation_function.log_jumprelu_threshold"
EXACT = {"rtol": 0.0, "atol": 1e-11}
BASE: dict[str, Any] = {
    "sae_type": "lorsa",
    "d_model": D_MODEL,
    "expansion_factor": N_FEATURES / D_MODEL,
    "use_decoder_bias": True,
    "act_fn": "topk",
    "norm_activation": "inference",
    "sparsity_include_decoder_norm": True,
    "top_k": 5,
    "jumprelu_threshold_window": 2.0,
    "hook_point_in": HOOK_IN,
    "hook_point_out": HOOK_OUT,
    "n_qk_heads": N_HEADS,
    "d_qk_head": D_HEAD,
    "positional_embedding_type": "rotary",
    "rotary_dim": D_HEAD,
    "rotary_base": 50,
    "rotary_adjacent_pairs": False,
    "rotary_scale": 1,
    "use_NTK_by_parts_rope": False,
    "n_ctx": N_CTX,
    "attn_scale": None,
    "use_post_qk_ln": False,
    "normalization_type": None,
    "eps": 1e-3,
    "skip_bos": False,  # their code ignores what it does not know
}
NORMED = {"use_post_qk_ln": True, "normalization_type": "RMS"}
NTK = {
    "use_NTK_by_parts_rope": True,
    "NTK_by_parts_factor": 4.0,
    "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 4.0,
    "old_context_len": 64,
}


def their_tensors(config: dict[str, Any], *, n_stored: int = N_HEADS, seed: int = 0) -> dict:
    """What the state dict of such a layer holds; query-key heads as many as stored."""
    source = torch.Generator().manual_seed(7000 + seed)
    tensors = {
        "W_Q": noise(source, n_stored, D_MODEL, D_HEAD),
        "W_K": noise(source, n_stored, D_MODEL, D_HEAD),
        "b_Q": noise(source, n_stored, D_HEAD),
        "b_K": noise(source, n_stored, D_HEAD),
        "W_V": noise(source, N_FEATURES, D_MODEL),
        "W_O": noise(source, N_FEATURES, D_MODEL)
        * torch.logspace(-0.5, 0.5, N_FEATURES, dtype=torch.float64)[:, None],
        "b_V": noise(source, N_FEATURES),
        "mask": torch.ones(N_CTX, N_CTX, dtype=torch.bool).tril(),
        "IGNORE": torch.tensor(-torch.inf),
        f"dataset_average_activation_norm.{HOOK_IN}": torch.tensor(MEAN_IN),
        f"dataset_average_activation_norm.{HOOK_OUT}": torch.tensor(MEAN_OUT),
    }
    if config["use_decoder_bias"]:
        tensors["b_D"] = noise(source, D_MODEL)
    if config["use_post_qk_ln"]:
        tensors["ln_q.w"] = 1 + noise(source, n_stored, D_HEAD)
        tensors["ln_k.w"] = 1 + noise(source, n_stored, D_HEAD)
    if config["positional_embedding_type"] == "rotary":  # tables of nonsense: they are not read
        tensors["rotary_sin"] = noise(source, N_CTX, config["rotary_dim"])
        tensors["rotary_cos"] = noise(source, N_CTX, config["rotary_dim"])
    if config["act_fn"] == "jumprelu":
        tensors[THRESHOLD] = noise(source, N_FEATURES) - 1
    return tensors


def their_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    save_file(tensors, folder / "sae_weights.safetensors", {"version": "2.0.0"})
    return folder


def raw_forward(
    config: dict[str, Any], tensors: dict[str, Tensor], x: Tensor, threshold: float = 0.0
) -> Tensor:
    """Their forward pass on one prompt [pos, d_model], number by number."""
    n_pos, n_stored = len(x), len(tensors["W_Q"])
    group = N_FEATURES // config["n_qk_heads"]
    divisor = config["attn_scale"] or math.sqrt(config["d_qk_head"])
    pre = torch.zeros(n_pos, N_FEATURES, dtype=torch.float64)
    for head in range(config["n_qk_heads"]):
        stored = head // (config["n_qk_heads"] // n_stored)
        queries = [raw_side(config, tensors, x, t, "Q", stored) for t in range(n_pos)]
        keys = [raw_side(config, tensors, x, s, "K", stored) for s in range(n_pos)]
        for t in range(n_pos):
            first = 0
            if config.get("attn_type") == "local":
                first = max(0, t - config["window_size"] + 1)
            seen = range(first, t + 1)
            exps = [math.exp(float(queries[t] @ keys[s]) / divisor) for s in seen]
            for i in range(head * group, (head + 1) * group):
                for s, share in zip(seen, exps, strict=True):
                    value = float(x[s] @ tensors["W_V"][i] + tensors["b_V"][i])
                    pre[t, i] += share / sum(exps) * value
    norms = torch.ones(N_FEATURES, dtype=torch.float64)
    if config["sparsity_include_decoder_norm"]:
        norms = torch.tensor([math.sqrt(sum(float(w) ** 2 for w in row)) for row in tensors["W_O"]])
        norms = norms.to(torch.float64)
    output = torch.zeros_like(x)
    for t in range(n_pos):
        kept = raw_activation(config, tensors, (pre[t] * norms).tolist(), threshold)
        for i, value in kept.items():
            output[t] += value / norms[i] * tensors["W_O"][i]
    return output + tensors.get("b_D", 0.0)


def raw_side(
    config: dict[str, Any], tensors: dict[str, Tensor], x: Tensor, pos: int, side: str, head: int
) -> Tensor:
    vector = x[pos] @ tensors[f"W_{side}"][head] + tensors[f"b_{side}"][head]
    if config["use_post_qk_ln"]:
        mean = float(vector.square().mean())
        vector = tensors[f"ln_{side.lower()}.w"][head] * vector / math.sqrt(mean + config["eps"])
    if config["positional_embedding_type"] == "none":
        return vector
    turned, pairs = vector.tolist(), config["rotary_dim"] // 2
    for j in range(pairs):
        adjacent = config["rotary_adjacent_pairs"]
        one, two = (2 * j, 2 * j + 1) if adjacent else (j, j + pairs)
        angle = pos * raw_frequency(config, j, pairs)
        a, b = turned[one], turned[two]
        turned[one] = a * math.cos(angle) - b * math.sin(angle)
        turned[two] = b * math.cos(angle) + a * math.sin(angle)
    return torch.tensor(turned, dtype=torch.float64)


def raw_frequency(config: dict[str, Any], j: int, pairs: int) -> float:
    base = config["rotary_base"]
    if config.get("attn_type") == "local":
        base = config.get("rotary_base_local") or base
    frequency = 1 / base ** (j / pairs)
    if not config["use_NTK_by_parts_rope"]:
        return frequency
    factor, old = config["NTK_by_parts_factor"], config["old_context_len"]
    low, high = config["NTK_by_parts_low_freq_factor"], config["NTK_by_parts_high_freq_factor"]
    wavelength = 2 * math.pi / frequency
    if wavelength > old / low:
        return frequency / factor
    if wavelength < old / high:
        return frequency
    smooth = (old / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def raw_activation(
    config: dict[str, Any], tensors: dict[str, Tensor], pre: list[float], threshold: float
) -> dict[int, float]:
    """Which heads survive, with what their gate saw."""
    if config["act_fn"] == "topk":
        best = sorted(range(len(pre)), key=lambda i: -pre[i])[: config["top_k"]]
        return {i: pre[i] for i in best if pre[i] > 0}
    if config["act_fn"] == "jumprelu":
        levels = [math.exp(level) for level in tensors[THRESHOLD].tolist()]
        return {i: value for i, value in enumerate(pre) if value > levels[i]}
    return {i: value for i, value in enumerate(pre) if value > threshold}


CASES: dict[str, dict[str, Any]] = {
    **{
        f"{act_fn}, {'decoder-norm gate' if gate else 'no gate'}, {norm}": {
            "act_fn": act_fn,
            "sparsity_include_decoder_norm": gate,
            "norm_activation": norm,
        }
        for act_fn in ACTIVATIONS
        for gate in (False, True)
        for norm in ("inference", "dataset-wise")
    },
    "no positions": {"positional_embedding_type": "none"},
    "adjacent pairs": {"rotary_adjacent_pairs": True},
    "partial": {"rotary_dim": 4},
    "partial, adjacent": {"rotary_dim": 2, "rotary_adjacent_pairs": True},
    "Llama 3's frequencies": {"rotary_base": 100, **NTK},
    "a divisor": {"attn_scale": 1.3},
    "norms of queries and keys": NORMED,
    "norms, folded": {**NORMED, "norm_activation": "dataset-wise", "act_fn": "jumprelu"},
    "no decoder bias": {"use_decoder_bias": False},
    "no decoder bias, folded": {"use_decoder_bias": False, "norm_activation": "dataset-wise"},
    "a window": {"attn_type": "local", "window_size": 2},
    "a window and its base": {"attn_type": "local", "window_size": 3, "rotary_base_local": 7},
    "global with a local base": {"rotary_base_local": 7, "window_size": 2},
    "half of the query-key heads stored": {"stored": 2},
    "one query-key head stored, norms": {"stored": 1, **NORMED},
}


def case_of(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    changes = dict(CASES[name])
    n_stored = changes.pop("stored", N_HEADS)
    config = {**BASE, **changes}
    return config, their_tensors(config, n_stored=n_stored)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_does_what_their_code_does(tmp_path: Path, name: str) -> None:
    """And with the mean norms of training: what it does to scaled inputs, scaled back."""
    config, tensors = case_of(name)
    threshold = 0.3 if config["act_fn"] == "batchtopk" else None
    folder = their_folder(tmp_path, config, tensors)
    number, layer = load_openmoss_lorsa(folder, threshold=threshold, dtype=torch.float64)
    assert number == 5
    x, scales = inputs(5), (1.0, 1.0)
    if config["norm_activation"] == "dataset-wise":
        means = (torch.tensor(mean).item() for mean in (MEAN_IN, MEAN_OUT))
        scales = tuple(math.sqrt(D_MODEL) / mean for mean in means)
    wanted = raw_forward(config, tensors, scales[0] * x, threshold or 0.0) / scales[1]
    torch.testing.assert_close(layer.forward(x), wanted, **EXACT)
    assert 0 < len(layer.encode(x)) < 5 * N_FEATURES
    assert (wanted - tensors.get("b_D", torch.zeros(1)) / scales[1]).abs().max() > 0.1


def test_defaults_are_theirs(tmp_path: Path) -> None:
    """A config that says only what has no default."""
    required = ("d_model", "hook_point_in", "hook_point_out", "n_qk_heads", "d_qk_head")
    short = {name: BASE[name] for name in (*required, "sae_type", "rotary_dim", "n_ctx")}
    full = {
        **BASE,
        "act_fn": "relu",
        "norm_activation": "dataset-wise",
        "rotary_base": 10000,
        "rotary_adjacent_pairs": True,
    }
    tensors = their_tensors(full)
    given = load_openmoss_lorsa(their_folder(tmp_path / "a", short, tensors))
    wanted = load_openmoss_lorsa(their_folder(tmp_path / "b", full, tensors))
    assert differences(given[1], wanted[1]) == []
    heads = given[1].query_key
    assert heads.scale == D_HEAD**-0.5 and given[1].gate_scale is not None


def test_an_rms_norms_gain_is_undone(tmp_path: Path) -> None:
    """Their hook holds x / scale, our layers read gain · x / scale."""
    config, tensors = case_of("norms of queries and keys")
    folder = their_folder(tmp_path, config, tensors)
    gain = 1 + noise(torch.Generator().manual_seed(1), D_MODEL)
    _, layer = load_openmoss_lorsa(folder, gain=gain, dtype=torch.float64)
    x = inputs(5)
    wanted = raw_forward(config, tensors, x)
    torch.testing.assert_close(layer.forward(gain * x), wanted, **EXACT)
    _, half = load_openmoss_lorsa(folder, gain=gain, dtype=torch.bfloat16)
    kept = (half.read, half.write, half.query_key.query, half.query_key.key)
    assert {kept_type(matrix) for matrix in kept} == {torch.bfloat16}
    for wrong in (torch.ones(3), torch.zeros(D_MODEL), gain * float("nan")):
        with pytest.raises(ValueError, match="gain"):
            load_openmoss_lorsa(folder, gain=wrong)


def test_thresholds_of_log_zero_only_rectify(tmp_path: Path) -> None:
    config, tensors = case_of("jumprelu, no gate, inference")
    tensors[THRESHOLD] = torch.full_like(tensors[THRESHOLD], -torch.inf)
    _, layer = load_openmoss_lorsa(their_folder(tmp_path, config, tensors), dtype=torch.float64)
    rectified = dataclasses.replace(layer, activation=ReLU())
    assert torch.equal(layer.forward(inputs(5)), rectified.forward(inputs(5)))


# ------------------------------------------------------------------------------ what is refused


def spoil(name: str, value: object) -> Callable[[dict, dict], object]:
    return lambda _, tensors: tensors[name].view(-1)[:1].fill_(value)


def say(**entries: object) -> Callable[[dict, dict], object]:
    return lambda config, _: config.update(entries)


def cut(name: str) -> Callable[[dict, dict], object]:
    return lambda _, tensors: tensors.update({name: tensors[name][:-1].clone()})


MEAN = f"dataset_average_activation_norm.{HOOK_OUT}"
REFUSED: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "an SAE": (say(sae_type="sae"), "sae_type is 'sae'"),
    "residual stream": (say(hook_point_in="blocks.5.hook_resid_pre"), "hook_point_in is 'blocks"),
    "an MLP": (say(hook_point_out="blocks.5.hook_mlp_out"), "hook_point_out is"),
    "two layers": (say(hook_point_out="blocks.6.hook_attn_out"), "reads layer 5 and reproduces"),
    "no hook point": (lambda config, _: config.pop("hook_point_in"), "hook_point_in is None"),
    "hook point with a tail": (say(hook_point_in=HOOK_IN + "s"), "hook_point_in is"),
    "scale of each token": (say(norm_activation="token-wise"), "changes with the input"),
    "scale of each batch": (say(norm_activation="batch-wise"), "changes with the input"),
    "BatchTopK": (say(act_fn="batchtopk"), "without inference threshold.*Pass threshold="),
    "another activation": (say(act_fn="layertopk"), "act_fn is 'layertopk'"),
    "repeated coordinates": (say(rotary_scale=2), "rotary_scale is 2"),
    "other positions": (say(positional_embedding_type="alibi"), "is 'alibi'"),
    "LayerNorm of queries": (say(use_post_qk_ln=True, normalization_type="LN"), 'only "RMS"'),
    "a window without size": (say(attn_type="local"), "window_size None"),
    "a window of none": (say(attn_type="local", window_size=0), "window_size 0"),
    "another attention": (say(attn_type="dilated"), "attn_type is 'dilated'"),
    "division by zero": (say(attn_scale=0), "attn_scale is 0"),
    "division by a word": (say(attn_scale="auto"), "attn_scale is 'auto'"),
    "top none": (say(top_k=0), "top_k is 0"),
    "a switch in words": (say(use_decoder_bias="yes"), "use_decoder_bias is 'yes'"),
    "no width": (lambda config, _: config.pop("d_model"), "d_model is None"),
    "another width": (say(d_model=9), "W_Q has shape"),
    "another head width": (say(d_qk_head=5, rotary_dim=4), "W_Q has shape"),
    "odd rotation": (say(rotary_dim=3), "turns in pairs"),
    "rotation beyond the head": (say(rotary_dim=8), "rotary_dim is 8"),
    "no rotation": (lambda config, _: config.pop("rotary_dim"), "rotary_dim is None"),
    "bands that cross": (
        say(**{**NTK, "NTK_by_parts_high_freq_factor": 0.5}),
        "not below",
    ),
    "more heads stored": (say(n_qk_heads=2), "4 query-key heads for n_qk_heads 2"),
    "heads not shared": (say(n_qk_heads=16), "24 value-output heads cannot share 16"),
    "no bias": (lambda _, tensors: tensors.pop("b_D"), r"missing tensors \['b_D'\]"),
    "a bias too many": (say(use_decoder_bias=False), r"unexpected \['b_D'\]"),
    "gains too many": (
        lambda _, tensors: tensors.update({"ln_q.w": torch.ones(N_HEADS, D_HEAD)}),
        r"unexpected \['ln_q\.w'\]",
    ),
    "no thresholds": (say(act_fn="jumprelu"), "missing tensors .*log_jumprelu_threshold"),
    "a short value": (cut("W_V"), "W_O has shape"),
    "a short bias": (cut("b_V"), "b_V has shape"),
    "NaN": (spoil("W_O", float("nan")), "W_O holds NaN"),
    "no mean norm": (
        lambda config, tensors: (
            config.update(norm_activation="dataset-wise"),
            tensors.pop(MEAN),
        ),
        "hook_attn_out.*mean norm of both",
    ),
    "mean norm never set": (
        lambda config, tensors: (
            config.update(norm_activation="dataset-wise"),
            tensors.update({MEAN: torch.tensor(float("nan"))}),
        ),
        "says nan for",
    ),
    "mean norm of zero": (
        lambda config, tensors: (
            config.update(norm_activation="dataset-wise"),
            tensors.update({MEAN: torch.tensor(0.0)}),
        ),
        r"says 0\.0 for",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    config = dict(BASE)
    tensors = their_tensors(config)
    change(config, tensors)
    with pytest.raises(ValueError, match=message) as caught:
        load_openmoss_lorsa(their_folder(tmp_path / "layer", config, tensors))
    assert str(tmp_path / "layer") in str(caught.value)


def test_a_threshold_is_for_batchtopk_only(tmp_path: Path) -> None:
    folder = their_folder(tmp_path, BASE, their_tensors(BASE))
    with pytest.raises(ValueError, match=r"threshold= is for batchtopk.*'topk'"):
        load_openmoss_lorsa(folder, threshold=0.3)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing \(found: no such folder"):
        load_openmoss_lorsa(tmp_path / "nowhere")
    folder = their_folder(tmp_path / "layer", BASE, their_tensors(BASE))
    (folder / "sae_weights.safetensors").rename(folder / "sae_weights.pt")
    with pytest.raises(FileNotFoundError, match=r"found: config\.json, sae_weights\.pt"):
        load_openmoss_lorsa(folder)


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-1], lambda raw: raw[:30], lambda raw: raw[:0]]
)
def test_broken_files_are_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = their_folder(tmp_path, BASE, their_tensors(BASE)) / "sae_weights.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors: cannot be read"):
        load_openmoss_lorsa(tmp_path)


# --------------------------------------------------------------------------------------- writing


def a_layer(activation: str, gate: str, heads: QueryKey | None = None) -> Lorsa:
    """A layer behind no gate, the decoder norm, that norm as before a fold, or anything."""
    heads = heads or random_query_key(turns="half-split")
    layer = random_layer("lorsa", activation, gated=gate == "norm", query_key=heads)
    if gate == "norm before a fold":
        return layer.decoder_norm_gated().folded(0.4, 3.7)
    if gate == "minus the norm":
        return dataclasses.replace(layer, gate_scale=-layer.write.norm(dim=-1))
    if gate == "anything":
        scale = torch.linspace(-0.5, 2, N_FEATURES, dtype=torch.float64)
        scale[7] = 0.0
        return dataclasses.replace(layer, gate_scale=scale)
    return layer


def round_trip(layer: Lorsa, folder: Path, **settings: Any) -> tuple[dict, dict, Lorsa]:
    save_openmoss_lorsa(layer, folder, layer_number=5, n_ctx=N_CTX, dtype=torch.float64, **settings)
    config = json.loads((folder / "config.json").read_text())
    number, loaded = load_openmoss_lorsa(folder, dtype=torch.float64, gain=settings.get("gain"))
    assert number == 5
    return config, load_file(folder / "sae_weights.safetensors"), loaded


@pytest.mark.parametrize(
    "gate", ["none", "norm", "norm before a fold", "minus the norm", "anything"]
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_written_does_the_same_in_their_code(
    tmp_path: Path, activation: str, gate: str
) -> None:
    layer = a_layer(activation, gate)
    config, tensors, loaded = round_trip(layer, tmp_path)
    x = inputs(5)
    wanted = layer.forward(x)
    torch.testing.assert_close(raw_forward(config, tensors, x), wanted, **EXACT)
    torch.testing.assert_close(loaded.forward(x), wanted, **EXACT)
    assert torch.equal(loaded.encode(x).index, layer.encode(x).index)
    assert config["sparsity_include_decoder_norm"] == gate.startswith("norm")
    assert 0 < len(layer.encode(x)) < 5 * N_FEATURES


HEADS: dict[str, dict[str, Any]] = {
    **{f"{turns} rotation": {"turns": turns} for turns in ROTARIES},
    "norms, shared keys": {"norm": True, "n_key_heads": 2},
    "one key head, no biases": {"n_key_heads": 1, "bias": False},
    "a window longer than any prompt": {"window": N_CTX},
}


@pytest.mark.parametrize("name", HEADS)
def test_query_key_heads_are_written_as_they_are(tmp_path: Path, name: str) -> None:
    heads = random_query_key(**HEADS[name])
    if heads.query_norm is not None:
        heads = dataclasses.replace(
            heads, key_norm=dataclasses.replace(heads.key_norm, eps=heads.query_norm.eps)
        )
    layer = a_layer("jumprelu", "norm", heads)
    made_from = {"rotary_base": 100, "scaling": STRETCHED} if "scaled" in name else {}
    config, tensors, loaded = round_trip(layer, tmp_path, **made_from)
    x = inputs(5)
    torch.testing.assert_close(raw_forward(config, tensors, x), layer.forward(x), **EXACT)
    torch.testing.assert_close(loaded.forward(x), layer.forward(x), **EXACT)


def test_an_rms_norms_gain_is_taken_out_again(tmp_path: Path) -> None:
    gain = 1 + noise(torch.Generator().manual_seed(1), D_MODEL)
    layer = a_layer("topk", "norm")
    config, tensors, loaded = round_trip(layer, tmp_path, gain=gain)
    x = inputs(5)
    torch.testing.assert_close(raw_forward(config, tensors, x), layer.forward(gain * x), **EXACT)
    torch.testing.assert_close(loaded.forward(x), layer.forward(x), **EXACT)


@pytest.mark.parametrize("adjacent", [False, True])
def test_everything_their_strict_loading_asks_for_is_there(tmp_path: Path, adjacent: bool) -> None:
    """Names, shapes and types of their state dict, buffers included."""
    heads = random_query_key(turns="adjacent" if adjacent else "half-split", norm=True)
    heads = dataclasses.replace(
        heads, key_norm=dataclasses.replace(heads.key_norm, eps=heads.query_norm.eps)
    )
    save_openmoss_lorsa(a_layer("jumprelu", "norm", heads), tmp_path, layer_number=3, n_ctx=N_CTX)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    wanted = {
        "W_Q": (N_HEADS, D_MODEL, D_HEAD),
        "W_K": (N_HEADS, D_MODEL, D_HEAD),
        "b_Q": (N_HEADS, D_HEAD),
        "b_K": (N_HEADS, D_HEAD),
        "W_V": (N_FEATURES, D_MODEL),
        "W_O": (N_FEATURES, D_MODEL),
        "b_V": (N_FEATURES,),
        "b_D": (D_MODEL,),
        "ln_q.w": (N_HEADS, D_HEAD),
        "ln_k.w": (N_HEADS, D_HEAD),
        "mask": (N_CTX, N_CTX),
        "IGNORE": (),
        "rotary_sin": (N_CTX, D_HEAD),
        "rotary_cos": (N_CTX, D_HEAD),
        THRESHOLD: (N_FEATURES,),
    }
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == wanted
    assert torch.equal(tensors["mask"], torch.ones(N_CTX, N_CTX, dtype=torch.bool).tril())
    assert float(tensors["IGNORE"]) == -math.inf
    for column in range(D_HEAD):
        pair = column // 2 if adjacent else column % (D_HEAD // 2)
        angles = torch.arange(N_CTX) * raw_frequency(config, pair, D_HEAD // 2)
        torch.testing.assert_close(tensors["rotary_sin"][:, column], angles.sin())
        torch.testing.assert_close(tensors["rotary_cos"][:, column], angles.cos())
    assert config["hook_point_in"] == "blocks.3.ln1.hook_normalized"
    assert config["norm_activation"] == "inference"
    assert int(config["d_model"] * config["expansion_factor"]) == N_FEATURES
    assert set(BASE) - set(config) == {"skip_bos", "jumprelu_threshold_window"}


@given(n_features=st.integers(1, 10**6), d_model=st.integers(1, 10**4))
def test_the_expansion_factor_gives_the_number_of_features(n_features: int, d_model: int) -> None:
    assert int(d_model * _expansion(n_features, d_model)) == n_features


@given(
    width=st.integers(1, 64).map(lambda pairs: 2 * pairs),
    base=st.sampled_from([10_000, 500_000, 1_000_000, 150_000, 7, 123_457]),
    stretched=st.booleans(),
    rounded=st.booleans(),
)
def test_bases_are_found_from_frequencies(
    width: int, base: int, stretched: bool, rounded: bool
) -> None:
    """Also from frequencies that were kept in float32."""
    stretched = stretched and width >= 16  # in narrower heads the second frequency changes too
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192) if stretched else None
    dtype = torch.float32 if rounded else torch.float64
    turns = turns_of(width, base, scaling=scaling, dtype=dtype)
    found = _rotary_settings(turns, width, None, scaling)
    assert found["rotary_dim"] == width
    if width > 2:
        again = turns_of(width, found["rotary_base"], scaling=scaling, dtype=torch.float64)
        torch.testing.assert_close(
            again.inverse_frequency, turns.inverse_frequency.double(), rtol=1e-6, atol=0.0
        )


def with_heads(**changes: Any) -> Callable[[Lorsa], Lorsa]:
    return lambda layer: dataclasses.replace(
        layer, query_key=dataclasses.replace(layer.query_key, **changes)
    )


def with_frequencies(layer: Lorsa, **changes: Any) -> Lorsa:
    assert layer.query_key.rotary is not None
    return with_heads(rotary=dataclasses.replace(layer.query_key.rotary, **changes))(layer)


def test_layers_in_training_can_be_written(tmp_path: Path) -> None:
    layer = a_layer("jumprelu", "norm before a fold")
    trained = dataclasses.replace(layer, write=layer.write.clone().requires_grad_())
    loaded = round_trip(trained, tmp_path)[2]
    torch.testing.assert_close(loaded.forward(inputs(5)), layer.forward(inputs(5)), **EXACT)
    assert not loaded.write.requires_grad


UNWRITABLE: dict[str, tuple[Callable[[Lorsa], Lorsa], str]] = {
    "a window": (with_heads(window=3), r"sees 3 keys.*Give n_ctx=3"),
    "one norm": (
        with_heads(query_norm=random_query_key(norm=True).query_norm),
        "both or neither.*0.001 and None",
    ),
    "two epsilons": (
        with_heads(
            query_norm=random_query_key(norm=True).query_norm,
            key_norm=random_query_key(norm=True).key_norm,
        ),
        "one epsilon; here the norms are 0.001 and 0.01",
    ),
    "scaled frequencies unsaid": (
        with_heads(rotary=ROTARIES["scaled"]()),
        "does not give these frequencies",
    ),
    "odd frequencies": (
        lambda layer: with_frequencies(
            layer, inverse_frequency=torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
        ),
        "does not give these frequencies",
    ),
    "an amplitude": (lambda layer: with_frequencies(layer, amplitude=1.2), "amplitude 1.2"),
    "thresholds below zero": (
        lambda layer: dataclasses.replace(
            layer, activation=JumpReLU(torch.full_like(layer.read_bias, -0.1))
        ),
        "logarithm of thresholds, and the lowest here is -0.1",
    ),
    "NaN": (
        lambda layer: dataclasses.replace(layer, read=layer.read * float("nan")),
        "W_V holds NaN",
    ),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_they_have_no_words_for_is_not_written(tmp_path: Path, name: str) -> None:
    change, message = UNWRITABLE[name]
    layer = change(a_layer("topk", "norm"))
    with pytest.raises(ValueError, match=message):
        save_openmoss_lorsa(layer, tmp_path / "set", layer_number=0, n_ctx=N_CTX)
    assert not list((tmp_path / "set").glob("*"))


def test_thresholds_survive_to_rounding(tmp_path: Path) -> None:
    """BatchTopK, which they keep without threshold, is written as JumpReLU; zero stays zero."""
    for activation, kind in ((BatchTopK(0.0), JumpReLU), (BatchTopK(0.6), JumpReLU)):
        layer = dataclasses.replace(a_layer("relu", "none"), activation=activation)
        loaded = round_trip(layer, tmp_path)[2]
        assert isinstance(loaded.activation, kind)
        torch.testing.assert_close(
            loaded.activation.threshold, torch.full_like(layer.read_bias, activation.threshold)
        )
    assert isinstance(round_trip(a_layer("topk", "none"), tmp_path)[2].activation, TopK)
