"""Reading Lorsa as OpenMOSS publishes it, one folder a layer.

A layer is read as their code would run it: with `norm_activation` "inference" as it stands, with
"dataset-wise" brought to the model's units.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.checkpoints.files import check_tensors, read_json, read_tensors
from replacement.checkpoints.openmoss.settings import (
    BUFFERS,
    CONFIG,
    HEADS,
    HOOKS,
    MEAN_NORM,
    NORMS,
    QUERY_KEYS,
    THRESHOLD,
    WEIGHTS,
    checked,
    layer_number,
)
from replacement.layers import (
    Activation,
    BatchTopK,
    HeadNorm,
    JumpReLU,
    Llama3Scaling,
    Lorsa,
    QueryKey,
    ReLU,
    Rotary,
    TopK,
    rotary,
)
from replacement.precision import kept_in, matrices_kept_in


def load_openmoss_lorsa(
    folder: str | Path,
    *,
    gain: Float[Tensor, " d_model"] | None = None,
    threshold: int | float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[int, Lorsa]:
    """Return which layer's attention a folder is for, and the Lorsa in the model's units.

    Parameters
    ----------
    folder
        Holds the `config.json` and `sae_weights.safetensors` of one layer.
    gain
        For a model with RMS norms (Llama, Qwen, Gemma), the factors of this layer's attention norm
        (Gemma: one plus its weight): TransformerLens' hook holds what such a norm returns *before*
        them, our layers read what it returns after. Leave it out for LayerNorm, whose hook holds
        the gain and bias, and for models whose gains were folded into the weights.
    threshold
        BatchTopK only, whose files lack it: the running mean of the smallest kept value.

    Raises
    ------
    FileNotFoundError, ValueError
        For a missing file, and for anything that our layers cannot hold or that is not certain.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            held = "no such folder"
            if folder.is_dir():
                held = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(
                f"{folder / name}: missing (found: {held}). Give the folder of one layer with "
                f"{CONFIG} and {WEIGHTS}; weights in another form (.pt, .dcp) are not read."
            )
    path = folder / CONFIG
    config = checked(path, read_json(path))
    tensors = read_tensors(folder / WEIGHTS, device)
    scales = _scales(path, config, tensors)
    parts = _weights(folder / WEIGHTS, config, tensors, dtype)
    try:
        layer = Lorsa(
            query_key=_query_key(config, parts),
            read=parts["W_V"],
            write=parts["W_O"],
            read_bias=parts["b_V"],
            write_bias=parts["b_D"],
            activation=_activation(config, parts, threshold),
        )
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    if config["sparsity_include_decoder_norm"]:
        layer = layer.decoder_norm_gated()
    layer = layer.folded(*scales)
    if gain is not None:
        layer = reading(layer, 1 / _sound(gain, layer))
    return layer_number(path, config), matrices_kept_in(layer, dtype)


def reading(layer: Lorsa, factor: Float[Tensor, " d_model"]) -> Lorsa:
    """Return a layer that does with `y` what `layer` does with `factor * y`."""
    factor = factor.to(layer.read)
    heads = layer.query_key
    return dataclasses.replace(
        layer,
        read=layer.read * factor,
        query_key=dataclasses.replace(
            heads, query=heads.query * factor[:, None], key=heads.key * factor[:, None]
        ),
    )


def _sound(gain: Tensor, layer: Lorsa) -> Tensor:
    if gain.shape != layer.write_bias.shape:
        raise ValueError(
            f"load_openmoss_lorsa(gain=…): {gain.shape[0]} factors for {len(layer.write_bias)} "
            "coordinates of the layer. Give those of the same model's norm."
        )
    if not torch.isfinite(gain).all() or (gain == 0).any():
        raise ValueError(
            "load_openmoss_lorsa(gain=…): a gain of 0 (or NaN) hides a coordinate that the layer "
            "was trained on, so it cannot be undone. Give the factors of the norm, without zeros."
        )
    return gain


def _scales(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[float, float]:
    """What inputs and targets were multiplied by in training, if the weights are still for that."""
    layer_number(path, config)
    if config["norm_activation"] == "inference":
        return 1.0, 1.0
    scales = []
    for hook in HOOKS:
        name = MEAN_NORM + config[hook]
        mean = float(tensors[name]) if name in tensors and tensors[name].numel() == 1 else math.nan
        if not 0 < mean < math.inf:
            raise ValueError(
                f"{path}: norm_activation is dataset-wise, but {WEIGHTS} says {mean} for {name}. "
                "The mean norm of both hook points is needed to bring the layer to the model's "
                "units. Save it again with fold_activation_scale=True."
            )
        scales.append(math.sqrt(config["d_model"]) / mean)
    return scales[0], scales[1]


def _weights(
    path: Path, config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The checked weights: one query-key head each as configured, thresholds out of their log."""
    required = {**QUERY_KEYS, **HEADS}
    if config["use_decoder_bias"]:
        required["b_D"] = "d_model"
    if config["use_post_qk_ln"]:
        required |= NORMS
    if config["act_fn"] == "jumprelu":
        required[THRESHOLD] = "head"
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in BUFFERS and not name.startswith(MEAN_NORM)
    }
    if THRESHOLD in kept:  # log 0, a feature that is only rectified, is -inf
        kept[THRESHOLD] = kept_in(kept[THRESHOLD], dtype).exp()
    sizes = {name: config[name] for name in ("d_model", "d_qk_head")}
    check_tensors(path, kept, required, {}, sizes)
    repeats, rest = divmod(config["n_qk_heads"], kept["W_Q"].shape[0])
    if rest:
        raise ValueError(
            f"{path}: {kept['W_Q'].shape[0]} query-key heads for n_qk_heads "
            f"{config['n_qk_heads']} in {CONFIG}; it must be a multiple. Correct n_qk_heads."
        )
    converted = {name: kept_in(tensor, dtype) for name, tensor in kept.items()}
    for name in (*QUERY_KEYS, *(NORMS if config["use_post_qk_ln"] else ())):
        converted[name] = converted[name].repeat_interleave(repeats, dim=0)
    converted.setdefault("b_D", torch.zeros_like(converted["W_O"][0]))
    return converted


def _query_key(config: dict[str, Any], parts: dict[str, Tensor]) -> QueryKey:
    norms = [
        HeadNorm(parts[name], float(config["eps"])) if name in parts else None for name in NORMS
    ]
    divisor = config["attn_scale"]
    return QueryKey(
        query=parts["W_Q"],
        key=parts["W_K"],
        query_bias=parts["b_Q"],
        key_bias=parts["b_K"],
        scale=config["d_qk_head"] ** -0.5 if divisor is None else 1 / divisor,
        rotary=_rotary(config, parts["W_Q"].device),
        query_norm=norms[0],
        key_norm=norms[1],
        window=config["window_size"] if config["attn_type"] == "local" else None,
    )


def _rotary(config: dict[str, Any], device: torch.device) -> Rotary | None:
    if config["positional_embedding_type"] == "none":
        return None
    scaling = None
    if config["use_NTK_by_parts_rope"] and config["NTK_by_parts_factor"] != 1:
        low, high = (config[f"NTK_by_parts_{end}_freq_factor"] for end in ("low", "high"))
        if not low < high:
            raise ValueError(
                f"NTK_by_parts_low_freq_factor {low} is not below NTK_by_parts_high_freq_factor "
                f"{high}, so the frequencies between are undefined. Correct them."
            )
        scaling = Llama3Scaling(config["NTK_by_parts_factor"], low, high, config["old_context_len"])
    base = config["rotary_base"]
    if config["attn_type"] == "local" and config["rotary_base_local"] is not None:
        base = config["rotary_base_local"]
    width = config.get("rotary_dim")
    if not isinstance(width, int) or not 0 < width <= config["d_qk_head"]:
        raise ValueError(
            f"rotary_dim is {width!r}; 2 to d_qk_head = {config['d_qk_head']} coordinates of a "
            "head turn."
        )
    turns = rotary(
        width,
        base,
        adjacent=config["rotary_adjacent_pairs"],
        scaling=scaling,
        dtype=torch.float64,
    )
    return dataclasses.replace(turns, inverse_frequency=turns.inverse_frequency.to(device))


def _activation(
    config: dict[str, Any], parts: dict[str, Tensor], threshold: int | float | None
) -> Activation:
    name = config["act_fn"]
    if threshold is not None and name != "batchtopk":
        raise ValueError(f"threshold= is for batchtopk; this layer's act_fn is {name!r}.")
    if name == "relu":
        return ReLU()
    if name == "topk":
        return TopK(config["top_k"])
    if name == "jumprelu":
        return JumpReLU(parts[THRESHOLD])
    if name == "batchtopk" and threshold is not None:
        return BatchTopK(float(threshold))
    if name == "batchtopk":
        raise ValueError(
            "act_fn is batchtopk, which is stored without inference threshold, and pooling over a "
            "prompt would let later tokens change earlier gates. Pass threshold=, the running "
            "mean of the smallest value kept in training, to replacement.checkpoints.read_layers, "
            "and give load the layers it returns."
        )
    raise ValueError(f"act_fn is {name!r}; known: relu, topk, jumprelu, batchtopk.")
