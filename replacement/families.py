"""One row of data per model family: where its parts live and how its weights are laid out.

Adding a family is adding a row to `FAMILIES` (docs/architectures.md shows how). Everything else in
the library knows only `Family`, `HeadWeights` and `MLPWeights`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import einops
from jaxtyping import Float
from torch import Tensor, nn

from replacement.layers import Neurons, QueryKey, neuron_activation


@dataclass(frozen=True)
class HeadWeights:
    """The weights of one attention layer's heads; value and output weights heads side by side."""

    query_key: QueryKey
    value: Float[Tensor, "d_model head_times_d_head"]
    value_bias: Float[Tensor, " head_times_d_head"] | None
    output: Float[Tensor, "head_times_d_head d_model"]
    output_bias: Float[Tensor, " d_model"] | None
    n_heads: int

    def mix(
        self,
        pattern: Float[Tensor, "head query key"],
        y: Float[Tensor, "*batch key d_model"],
    ) -> Float[Tensor, "*batch query head d_head"]:
        """Return every head's pattern-weighted values, from normed inputs."""
        values = y @ self.value
        if self.value_bias is not None:
            values = values + self.value_bias
        return einops.einsum(
            pattern,
            values.unflatten(-1, (self.n_heads, -1)),
            "head query key, ... key head d_head -> ... query head d_head",
        )

    def write(
        self, mixed: Float[Tensor, "*batch pos head d_head"]
    ) -> Float[Tensor, "*batch pos d_model"]:
        """Return what the heads write together, output bias included."""
        written = mixed.flatten(-2) @ self.output
        return written if self.output_bias is None else written + self.output_bias

    @property
    def value_of_head(self) -> Float[Tensor, "head d_model d_head"]:
        """A view of the value weights, one matrix a head."""
        return self.value.unflatten(1, (self.n_heads, -1)).movedim(1, 0)

    @property
    def output_of_head(self) -> Float[Tensor, "head d_head d_model"]:
        """A view of the output weights, one matrix a head."""
        return self.output.unflatten(0, (self.n_heads, -1))


@dataclass(frozen=True)
class Family:
    """Names (paths of submodules) and small functions that differ between model families."""

    layers: str
    token_embedding: str
    position_embedding: str | None
    attention_norm: str
    attention: str
    mlp_norm: str
    mlp: str
    final_norm: str
    unembedding: str
    norm_centred: bool
    norm_eps: str
    """Name of the norm module's attribute that holds epsilon."""
    head_weights: Callable[[Any], HeadWeights]
    neurons: Callable[[Any, str], Neurons]
    activation_function: str
    """Name of the config entry that names the MLP's activation."""
    refused: tuple[tuple[str, str], ...] = ()
    """Config switches that change the architecture beyond this row, each with its reason."""


def _gpt2_heads(attention: Any) -> HeadWeights:
    """GPT-2 keeps query, key and value in one Conv1D, stored [input, output]."""
    packed, output = attention.c_attn, attention.c_proj
    n_heads = attention.num_heads
    query, key, value = packed.weight.detach().chunk(3, dim=1)
    query_bias, key_bias, value_bias = packed.bias.detach().chunk(3)
    return HeadWeights(
        query_key=QueryKey(
            query=query.unflatten(1, (n_heads, -1)).movedim(1, 0),
            key=key.unflatten(1, (n_heads, -1)).movedim(1, 0),
            query_bias=query_bias.unflatten(0, (n_heads, -1)),
            key_bias=key_bias.unflatten(0, (n_heads, -1)),
            scale=_gpt2_scale(attention),
        ),
        value=value,
        value_bias=value_bias,
        output=output.weight.detach(),
        output_bias=output.bias.detach(),
        n_heads=n_heads,
    )


def _gpt2_scale(attention: Any) -> float:
    """GPT-2's two switches: no 1/√d_head, and a further division by the number of the layer."""
    scale = attention.head_dim**-0.5 if attention.scale_attn_weights else 1.0
    return scale / (attention.layer_idx + 1) if attention.scale_attn_by_inverse_layer_idx else scale


def _gpt2_neurons(mlp: Any, activation: str) -> Neurons:
    reads, writes = mlp.c_fc, mlp.c_proj
    return Neurons(
        read=reads.weight.detach().T,
        read_bias=reads.bias.detach(),
        write=writes.weight.detach(),
        write_bias=writes.bias.detach(),
        activation=neuron_activation(activation),
    )


FAMILIES = {
    "GPT2LMHeadModel": Family(
        layers="transformer.h",
        token_embedding="transformer.wte",
        position_embedding="transformer.wpe",
        attention_norm="ln_1",
        attention="attn",
        mlp_norm="ln_2",
        mlp="mlp",
        final_norm="transformer.ln_f",
        unembedding="lm_head",
        norm_centred=True,
        norm_eps="eps",
        head_weights=_gpt2_heads,
        neurons=_gpt2_neurons,
        activation_function="activation_function",
        refused=(("add_cross_attention", "cross-attention to an encoder"),),
    ),
}

# Blocks that no row of data can describe, by what gives them away, and why.
UNSUPPORTED_NAMES = {
    "experts": "a mixture of experts: which expert runs is not a held scale, pattern or gate",
    "router": "a mixture of experts: which expert runs is not a held scale, pattern or gate",
    "sinks": "attention sinks: learned logits that take part in the softmax without a key",
}
UNSUPPORTED_ARCHITECTURES = {
    "OpenAIGPTLMHeadModel": "a norm on the residual stream itself, so that no sublayer adds to it",
}


def family_of(model: nn.Module) -> Family:
    """Return the row of `FAMILIES` for a Hugging Face model.

    Raises ValueError where the architecture has no row or a block is of an unsupported kind,
    naming the known architectures and how to add one.
    """
    architecture = type(model).__name__
    reason = UNSUPPORTED_ARCHITECTURES.get(architecture) or _unsupported_block(model)
    if reason:
        raise ValueError(
            f"{architecture} cannot be made linear by holding a run: it has {reason}. "
            f"Architectures that fit: {', '.join(FAMILIES)}."
        )
    if architecture not in FAMILIES:
        raise ValueError(
            f"no entry for the architecture {architecture}. Known: {', '.join(FAMILIES)}. "
            "To add one: docs/architectures.md (one row)."
        )
    family = FAMILIES[architecture]
    for switch, reason in family.refused:
        if getattr(model.config, switch, False):
            raise ValueError(
                f"this {architecture} has {switch}=True ({reason}), which the held map does not "
                f"cover. Load a model whose config has {switch}=False."
            )
    return family


def _unsupported_block(model: nn.Module) -> str | None:
    names = [name for name, _ in model.named_modules()]
    names += [name for name, _ in model.named_parameters()]
    for name in names:
        for part in name.split("."):
            if part in UNSUPPORTED_NAMES:
                return f"{UNSUPPORTED_NAMES[part]} ({name})"
    return None
