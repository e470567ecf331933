"""The small functions in which model families differ: how a block's weights are laid out."""

import dataclasses
from typing import Any

from torch import Tensor, nn

from replacement.families.family import HeadWeights
from replacement.layers import (
    FeatureLayer,
    GatedNeurons,
    HeadNorm,
    Neurons,
    QueryKey,
    Rotary,
    neuron_activation,
    rotary,
)


def _weight(linear: Any) -> Tensor:
    """A linear layer's weight as [input, output]."""
    return linear.weight.detach().T


def _bias(linear: Any) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach()


def _by_head(weight: Tensor, n_heads: int) -> Tensor:
    """[d_model, heads side by side] as [head, d_model, d_head]."""
    return weight.unflatten(1, (n_heads, -1)).movedim(1, 0)


def _bias_by_head(bias: Tensor | None, n_heads: int) -> Tensor | None:
    return None if bias is None else bias.unflatten(0, (n_heads, -1))


def separate_heads(
    attention: Any,
    *,
    d_head: int,
    output: str,
    scale: float,
    rotary: Rotary | None = None,
    norms: tuple[str, str, float] | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> HeadWeights:
    """Return the weights of attention with linear layers q_proj, k_proj, v_proj and `output`.

    `norms`: names of the q and k norm modules, and what is added to their weights.
    """
    query, key, value, out = (
        getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", output)
    )
    n_heads, n_key_heads = (part.weight.shape[0] // d_head for part in (query, key))
    query_norm = key_norm = None
    if norms is not None:
        query_norm = _head_norm(getattr(attention, norms[0]), n_heads, norms[2])
        key_norm = _head_norm(getattr(attention, norms[1]), n_key_heads, norms[2])
    return HeadWeights(
        query_key=QueryKey(
            query=_by_head(_weight(query), n_heads),
            key=_by_head(_weight(key), n_key_heads),
            query_bias=_bias_by_head(_bias(query), n_heads),
            key_bias=_bias_by_head(_bias(key), n_key_heads),
            scale=scale,
            rotary=rotary,
            query_norm=query_norm,
            key_norm=key_norm,
            window=window,
            soft_cap=soft_cap,
        ),
        value=_weight(value),
        value_bias=_bias(value),
        output=_weight(out),
        output_bias=_bias(out),
        n_heads=n_heads,
        n_value_heads=n_key_heads,
    )


def _head_norm(norm: Any, n_heads: int, offset: float) -> HeadNorm:
    gain = norm.weight.detach() + offset if offset else norm.weight.detach()
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    return HeadNorm(gain.expand(n_heads, -1), float(eps))


def gpt2_heads(block: Any, _model: nn.Module) -> HeadWeights:
    """GPT-2 keeps query, key and value in one Conv1D, stored [input, output]."""
    attention = block.attn
    packed, output, n_heads = attention.c_attn, attention.c_proj, attention.num_heads
    query, key, value = packed.weight.detach().chunk(3, dim=1)
    query_bias, key_bias, value_bias = packed.bias.detach().chunk(3)
    return HeadWeights(
        query_key=QueryKey(
            query=_by_head(query, n_heads),
            key=_by_head(key, n_heads),
            query_bias=_bias_by_head(query_bias, n_heads),
            key_bias=_bias_by_head(key_bias, n_heads),
            scale=_gpt2_scale(attention),
        ),
        value=value,
        value_bias=value_bias,
        output=output.weight.detach(),
        output_bias=output.bias.detach(),
        n_heads=n_heads,
        n_value_heads=n_heads,
    )


def _gpt2_scale(attention: Any) -> float:
    """GPT-2's two switches: no 1/√d_head, and a further division by the number of the layer."""
    scale = attention.head_dim**-0.5 if attention.scale_attn_weights else 1.0
    return scale / (attention.layer_idx + 1) if attention.scale_attn_by_inverse_layer_idx else scale


def gpt_neo_heads(block: Any, _model: nn.Module) -> HeadWeights:
    """GPT-Neo scales no score, and every other layer sees a window."""
    attention = block.attn.attention
    local = attention.attention_type == "local"
    return separate_heads(
        attention,
        d_head=attention.head_dim,
        output="out_proj",
        scale=1.0,
        window=attention.config.window_size if local else None,
    )


def gpt_neox_heads(block: Any, model: Any) -> HeadWeights:
    """GPT-NeoX packs query, key and value head by head into one linear layer."""
    attention = block.attention
    d_head, packed = attention.head_size, attention.query_key_value
    n_heads = packed.weight.shape[0] // (3 * d_head)
    parts = _by_head(_weight(packed), n_heads).split(d_head, dim=-1)
    biases: tuple[Any, ...] = (None, None, None)
    if packed.bias is not None:
        biases = packed.bias.detach().unflatten(0, (n_heads, -1)).split(d_head, dim=-1)
    return HeadWeights(
        query_key=QueryKey(
            query=parts[0],
            key=parts[1],
            query_bias=biases[0],
            key_bias=biases[1],
            scale=attention.scaling,
            rotary=model_rotary(model.gpt_neox.rotary_emb),
        ),
        value=parts[2].movedim(0, 1).flatten(1),
        value_bias=None if biases[2] is None else biases[2].flatten(),
        output=_weight(attention.dense),
        output_bias=_bias(attention.dense),
        n_heads=n_heads,
        n_value_heads=n_heads,
    )


def model_rotary(module: Any, prefix: str = "") -> Rotary:
    """Return a model's own rotary embedding, its frequencies as it scaled them."""
    return Rotary(
        getattr(module, f"{prefix}inv_freq").detach(),
        amplitude=float(getattr(module, f"{prefix}attention_scaling")),
    )


def gptj_heads(block: Any, _model: nn.Module) -> HeadWeights:
    """GPT-J turns adjacent pairs of the first `rotary_dim` coordinates."""
    attention = block.attn
    width = attention.rotary_dim or attention.embed_dim
    weight = attention.q_proj.weight
    turned = rotary(width, adjacent=True, dtype=weight.dtype, device=weight.device)
    turned = dataclasses.replace(turned, table=attention.embed_positions)
    return separate_heads(
        attention,
        d_head=attention.head_dim,
        output="out_proj",
        scale=attention.head_dim**-0.5,
        rotary=turned,
    )


def opt_heads(block: Any, _model: nn.Module) -> HeadWeights:
    """OPT: separate layers, learned positions."""
    attention = block.self_attn
    return separate_heads(
        attention, d_head=attention.head_dim, output="out_proj", scale=attention.scaling
    )


def llama_heads(block: Any, model: Any) -> HeadWeights:
    """Llama, Mistral, Qwen2, Qwen3, Gemma: rotary, grouped keys, with q/k norm where they are."""
    attention = block.self_attn
    normed = hasattr(attention, "q_norm")
    return separate_heads(
        attention,
        d_head=attention.head_dim,
        output="o_proj",
        scale=attention.scaling,
        rotary=model_rotary(model.model.rotary_emb),
        norms=("q_norm", "k_norm", 0.0) if normed else None,
        window=_window(attention),
    )


def _window(attention: Any) -> int | None:
    """How many keys are seen: said by the layer where layers differ, else by the config."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(attention.config, "sliding_window", None)


def gemma2_heads(block: Any, model: Any) -> HeadWeights:
    """Gemma-2: soft-capped scores, alternating windows."""
    attention = block.self_attn
    return separate_heads(
        attention,
        d_head=attention.head_dim,
        output="o_proj",
        scale=attention.scaling,
        rotary=model_rotary(model.model.rotary_emb),
        window=attention.sliding_window,
        soft_cap=attention.attn_logit_softcapping,
    )


def gemma3_heads(block: Any, model: Any) -> HeadWeights:
    """Gemma-3: q/k norm with gain 1 + weight, other frequencies in layers with a window."""
    attention = block.self_attn
    return separate_heads(
        attention,
        d_head=attention.head_dim,
        output="o_proj",
        scale=attention.scaling,
        rotary=model_rotary(model.model.rotary_emb, f"{attention.layer_type}_"),
        norms=("q_norm", "k_norm", 1.0),
        window=attention.sliding_window,
    )


def phi_heads(block: Any, model: Any) -> HeadWeights:
    """Phi: rotary of some coordinates, biases everywhere."""
    attention = block.self_attn
    return separate_heads(
        attention,
        d_head=attention.head_dim,
        output="dense",
        scale=attention.scaling,
        rotary=model_rotary(model.model.rotary_emb),
    )


def gpt2_neurons(block: Any, activation: str) -> FeatureLayer:
    """GPT-2's layers are Conv1D, stored [input, output]."""
    reads, writes = block.mlp.c_fc, block.mlp.c_proj
    return Neurons(
        read=reads.weight.detach().T,
        read_bias=reads.bias.detach(),
        write=writes.weight.detach(),
        write_bias=writes.bias.detach(),
        activation=neuron_activation(activation),
    )


def _neurons(reads: Any, writes: Any, activation: str) -> FeatureLayer:
    return Neurons(
        read=reads.weight.detach(),
        read_bias=_or_zero(reads),
        write=_weight(writes),
        write_bias=_or_zero(writes),
        activation=neuron_activation(activation),
    )


def _or_zero(linear: Any) -> Tensor:
    """The bias, zeros where there is none."""
    bias = _bias(linear)
    return linear.weight.new_zeros(linear.weight.shape[0]) if bias is None else bias


def gpt_neo_neurons(block: Any, activation: str) -> FeatureLayer:
    """The neurons of `mlp.c_fc` and `mlp.c_proj`."""
    return _neurons(block.mlp.c_fc, block.mlp.c_proj, activation)


def gpt_neox_neurons(block: Any, activation: str) -> FeatureLayer:
    """The neurons of `mlp.dense_h_to_4h` and `mlp.dense_4h_to_h`."""
    return _neurons(block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h, activation)


def gptj_neurons(block: Any, activation: str) -> FeatureLayer:
    """The neurons of `mlp.fc_in` and `mlp.fc_out`."""
    return _neurons(block.mlp.fc_in, block.mlp.fc_out, activation)


def opt_neurons(block: Any, activation: str) -> FeatureLayer:
    """OPT's MLP is two layers of the block itself."""
    return _neurons(block.fc1, block.fc2, activation)


def phi_neurons(block: Any, activation: str) -> FeatureLayer:
    """The neurons of `mlp.fc1` and `mlp.fc2`."""
    return _neurons(block.mlp.fc1, block.mlp.fc2, activation)


def gated_neurons(block: Any, activation: str) -> FeatureLayer:
    """The neurons of a gated MLP: `down_proj(act(gate_proj(y)) * up_proj(y))`."""
    mlp = block.mlp
    return GatedNeurons(
        read=mlp.up_proj.weight.detach(),
        read_bias=_or_zero(mlp.up_proj),
        gate_read=mlp.gate_proj.weight.detach(),
        gate_bias=_or_zero(mlp.gate_proj),
        write=_weight(mlp.down_proj),
        write_bias=_or_zero(mlp.down_proj),
        activation=neuron_activation(activation),
    )
