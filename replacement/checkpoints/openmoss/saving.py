"""Writing Lorsa in OpenMOSS' layout, in the model's units (`norm_activation` "inference").

Their gate is either the pre-activation itself or that times the norm of the write vector. A layer
whose gate looks at something else gets other units: read vectors times its `gate_scale`, write
vectors divided by it, which changes no output and makes the gate look at the pre-activation.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from replacement.checkpoints.files import replaced_whole, stored
from replacement.checkpoints.openmoss.loading import reading
from replacement.checkpoints.openmoss.settings import (
    CONFIG,
    DEFAULTS,
    HOOKS,
    THRESHOLD,
    WEIGHTS,
)
from replacement.layers import (
    BatchTopK,
    JumpReLU,
    Llama3Scaling,
    Lorsa,
    QueryKey,
    ReLU,
    Rotary,
    TopK,
    rotary,
)


@torch.no_grad()
def save_openmoss_lorsa(
    layer: Lorsa,
    folder: str | Path,
    *,
    layer_number: int,
    n_ctx: int = 2048,
    gain: Float[Tensor, " d_model"] | None = None,
    rotary_base: int | None = None,
    scaling: Llama3Scaling | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write one Lorsa to `folder` as OpenMOSS' code reads it: all or nothing.

    Parameters
    ----------
    layer, layer_number
        The Lorsa, and whose attention it stands in for.
    n_ctx
        Longest prompt that their code will run.
    gain
        Factors of the model's attention norm where that is an RMS norm; see `load_openmoss_lorsa`.
    rotary_base, scaling
        What the rotary frequencies were made from; the layer holds only the result. The base is
        read off the second frequency unless given, which is right where scaling left that one.
    dtype
        Of the weights.

    Raises
    ------
    ValueError
        For what their layout has no words for: a window shorter than `n_ctx`, other rotary
        frequencies, thresholds below 0, a norm of queries or keys only.
    """
    if gain is not None:
        layer = reading(layer, gain)
    layer, normed = _gated(layer)
    heads = layer.query_key
    if heads.window is not None and heads.window < n_ctx:
        raise ValueError(
            f"save_openmoss_lorsa: the layer sees {heads.window} keys, and their code leaves "
            f"windows out without a word. Give n_ctx={heads.window}, so that none is needed."
        )
    if heads.soft_cap is not None:
        raise ValueError(
            "save_openmoss_lorsa: the layer soft-caps its scores, which their layout has no words "
            "for. Keep it with save_lorsa."
        )
    activation, thresholds = _activation(layer)
    config: dict[str, Any] = {
        **{name: value for name, value in DEFAULTS.items() if not name.endswith("_local")},
        **{name: pattern.format(layer_number) for name, pattern in HOOKS.items()},
        "d_model": layer.read.shape[1],
        "expansion_factor": _expansion(layer.n_features, layer.read.shape[1]),
        "n_qk_heads": heads.n_heads,
        "d_qk_head": heads.query.shape[2],
        "n_ctx": n_ctx,
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": normed,
        "attn_scale": 1 / heads.scale,
        **activation,
        **_rotary_settings(heads.rotary, heads.query.shape[2], rotary_base, scaling),
        **_norm_settings(heads),
    }
    tensors = {
        **_head_tensors(heads),
        "W_V": layer.read,
        "W_O": layer.write,
        "b_V": layer.read_bias,
        "b_D": layer.write_bias,
    }
    weights = {
        name: stored("save_openmoss_lorsa", name, tensor, dtype) for name, tensor in tensors.items()
    }
    if thresholds is not None:  # log 0, a feature that is only rectified, is -inf
        weights[THRESHOLD] = thresholds.log().to(dtype)
    weights |= _buffers(heads.rotary, n_ctx, dtype)
    with replaced_whole(Path(folder), last=CONFIG) as unfinished:
        save_file(weights, unfinished / WEIGHTS)
        (unfinished / CONFIG).write_text(json.dumps(config, indent=4) + "\n")


def _gated(layer: Lorsa) -> tuple[Lorsa, bool]:
    """The same function with a gate that they have, and whether it is the decoder-norm gate."""
    scale, norm = layer.gate_scale, layer.write.norm(dim=-1)
    if scale is None:
        return layer, False
    if (norm > 0).all() and (scale > 0).all():
        ratio = scale / norm
        common = float(ratio.mean())
        if bool(((ratio / common - 1).abs() < 16 * torch.finfo(norm.dtype).eps).all()):
            activation = layer.activation
            if isinstance(activation, JumpReLU):
                activation = JumpReLU(activation.threshold / common)
            if isinstance(activation, BatchTopK):
                activation = BatchTopK(activation.threshold / common)
            return dataclasses.replace(layer, activation=activation, gate_scale=None), True
    unit = torch.where(scale == 0, 1.0, scale)  # behind a scale of 0 nothing is ever active
    return dataclasses.replace(
        layer,
        read=layer.read * scale[:, None],
        read_bias=layer.read_bias * scale,
        write=layer.write / unit[:, None],
        gate_scale=None,
    ), False


def _activation(layer: Lorsa) -> tuple[dict[str, Any], Tensor | None]:
    match layer.activation:
        case ReLU():
            return {"act_fn": "relu"}, None
        case TopK(k):
            return {"act_fn": "topk", "top_k": k}, None
        case JumpReLU(thresholds):
            pass
        case BatchTopK(common):  # which they store without threshold
            thresholds = torch.full_like(layer.read_bias, common)
        case other:
            raise ValueError(
                f"save_openmoss_lorsa: they have no activation like {other!r}; known: ReLU, TopK, "
                "JumpReLU, BatchTopK (written as JumpReLU)."
            )
    if not (thresholds >= 0).all():
        raise ValueError(
            "save_openmoss_lorsa: they keep the logarithm of thresholds, and the lowest here is "
            f"{float(thresholds.min()):.3g}. Thresholds must be 0 or more."
        )
    return {"act_fn": "jumprelu"}, thresholds


def _expansion(n_features: int, d_model: int) -> float:
    """The factor from which int(d_model * factor) is the number of features again."""
    factor = n_features / d_model
    return factor if int(d_model * factor) == n_features else math.nextafter(factor, math.inf)


def _head_tensors(heads: QueryKey) -> dict[str, Tensor]:
    """Queries and keys of every head; they know no shared keys, and biases are always there."""
    repeats = heads.n_heads // heads.key.shape[0]
    no_bias = heads.query.new_zeros(heads.n_heads, heads.query.shape[2])
    tensors = {
        "W_Q": heads.query,
        "W_K": heads.key.repeat_interleave(repeats, dim=0),
        "b_Q": no_bias if heads.query_bias is None else heads.query_bias,
        "b_K": no_bias,
    }
    if heads.key_bias is not None:
        tensors["b_K"] = heads.key_bias.repeat_interleave(repeats, dim=0)
    if heads.query_norm is not None and heads.key_norm is not None:
        tensors["ln_q.w"] = heads.query_norm.gain
        tensors["ln_k.w"] = heads.key_norm.gain.repeat_interleave(repeats, dim=0)
    return tensors


def _norm_settings(heads: QueryKey) -> dict[str, Any]:
    norms = [norm for norm in (heads.query_norm, heads.key_norm) if norm is not None]
    if not norms:
        return {"use_post_qk_ln": False}
    if len(norms) == 1 or norms[0].eps != norms[1].eps:
        raise ValueError(
            "save_openmoss_lorsa: they norm queries and keys both or neither, with one epsilon; "
            f"here the norms are {heads.query_norm and heads.query_norm.eps} and "
            f"{heads.key_norm and heads.key_norm.eps}. Give both norms one epsilon."
        )
    return {"use_post_qk_ln": True, "normalization_type": "RMS", "eps": norms[0].eps}


def _rotary_settings(
    turns: Rotary | None, d_head: int, base: int | None, scaling: Llama3Scaling | None
) -> dict[str, Any]:
    """The settings from which the layer's frequencies come out again."""
    if turns is None:
        return {"positional_embedding_type": "none", "rotary_dim": d_head}
    frequencies = turns.inverse_frequency.double().cpu()
    if base is None:  # theirs is a whole number; 5 digits of it are certain
        second = float(frequencies[1] ** -len(frequencies)) if len(frequencies) > 1 else 10000.0
        tried = (round(float(f"{second:.5g}")), round(second))
    else:
        tried = (base,)
    for base in tried:
        made = rotary(turns.width, max(base, 1), scaling=scaling, dtype=torch.float64)
        same = torch.allclose(made.inverse_frequency, frequencies, rtol=1e-6, atol=0)
        if same and turns.amplitude == 1:
            break
    else:
        raise ValueError(
            f"save_openmoss_lorsa: rotary_base {base} with scaling {scaling} does not give these "
            f"frequencies with amplitude {turns.amplitude}. Pass rotary_base= and scaling= as they "
            "were made; frequencies of another kind and amplitudes other than 1 they do not have."
        )
    settings = {
        "rotary_dim": turns.width,
        "rotary_base": base,
        "rotary_adjacent_pairs": turns.adjacent,
    }
    if scaling is None:
        return settings
    return settings | {
        "use_NTK_by_parts_rope": True,
        "NTK_by_parts_factor": scaling.factor,
        "NTK_by_parts_low_freq_factor": scaling.low,
        "NTK_by_parts_high_freq_factor": scaling.high,
        "old_context_len": scaling.old_context,
    }


def _buffers(turns: Rotary | None, n_ctx: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What their modules register as buffers, so that strict loading finds it."""
    buffers = {
        "mask": torch.ones(n_ctx, n_ctx, dtype=torch.bool).tril(),
        "IGNORE": torch.tensor(-torch.inf),
    }
    if turns is not None:
        frequencies = turns.inverse_frequency.double().cpu()
        angles = torch.arange(n_ctx, dtype=torch.float64)[:, None] * frequencies
        angles = angles.repeat_interleave(2, dim=1) if turns.adjacent else angles.repeat(1, 2)
        buffers["rotary_sin"], buffers["rotary_cos"] = (
            angles.sin().to(dtype),
            angles.cos().to(dtype),
        )
    return buffers
