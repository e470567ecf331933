"""One row of data per model family: where its parts live and how its weights are laid out.

Adding a family is adding a row to `FAMILIES` (docs/architectures.md shows how). Everything else in
the library knows only `Family` and `HeadWeights`.
"""

from dataclasses import replace

from torch import nn

from replacement.families import reading
from replacement.families.family import Family, HeadWeights, Refusal

_LLAMA = Family(
    layers="model.layers",
    attention_norm="input_layernorm",
    attention="self_attn",
    projection="o_proj",
    mlp_norm="post_attention_layernorm",
    mlp="mlp",
    final_norm="model.norm",
    unembedding="lm_head",
    heads=reading.llama_heads,
    neurons=reading.gated_neurons,
    activation_function="hidden_act",
    norm_centred=False,
    norm_eps="variance_epsilon",
)
_GEMMA = replace(_LLAMA, norm_eps="eps", gain_offset=1.0, activation_function="hidden_activation")
_GEMMA_2 = replace(
    _GEMMA,
    heads=reading.gemma2_heads,
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    refused=(
        Refusal(
            lambda config: bool(getattr(config, "use_bidirectional_attention", False)),
            "use_bidirectional_attention",
            "tokens that see later ones",
        ),
    ),
)
_GPT_2 = Family(
    layers="transformer.h",
    attention_norm="ln_1",
    attention="attn",
    projection="c_proj",
    mlp_norm="ln_2",
    mlp="mlp",
    final_norm="transformer.ln_f",
    unembedding="lm_head",
    heads=reading.gpt2_heads,
    neurons=reading.gpt2_neurons,
    activation_function="activation_function",
    position_embedding="transformer.wpe",
    refused=(
        Refusal(
            lambda config: bool(getattr(config, "add_cross_attention", False)),
            "add_cross_attention",
            "cross-attention to an encoder",
        ),
    ),
)

FAMILIES = {
    "GPT2LMHeadModel": _GPT_2,
    "GPTNeoForCausalLM": replace(
        _GPT_2,
        projection="attention.out_proj",
        heads=reading.gpt_neo_heads,
        neurons=reading.gpt_neo_neurons,
        refused=(),
    ),
    "GPTNeoXForCausalLM": Family(
        layers="gpt_neox.layers",
        attention_norm="input_layernorm",
        attention="attention",
        projection="dense",
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        final_norm="gpt_neox.final_layer_norm",
        unembedding="lm_head",
        heads=reading.gpt_neox_heads,
        neurons=reading.gpt_neox_neurons,
        activation_function="hidden_act",
        parallel=lambda config: config.use_parallel_residual,
    ),
    "GPTJForCausalLM": replace(
        _GPT_2,
        projection="out_proj",
        mlp_norm="ln_1",
        heads=reading.gptj_heads,
        neurons=reading.gptj_neurons,
        position_embedding=None,
        parallel=lambda _config: True,
        refused=(),
    ),
    "OPTForCausalLM": Family(
        layers="model.decoder.layers",
        attention_norm="self_attn_layer_norm",
        attention="self_attn",
        projection="out_proj",
        mlp_norm="final_layer_norm",
        mlp="fc2",
        final_norm="model.decoder.final_layer_norm",
        unembedding="lm_head",
        heads=reading.opt_heads,
        neurons=reading.opt_neurons,
        activation_function="activation_function",
        position_embedding="model.decoder.embed_positions",
        position_offset=2,
        refused=(
            Refusal(
                lambda config: not config.do_layer_norm_before,
                "do_layer_norm_before=False",
                "norms on the residual stream itself, as OPT-350m has",
            ),
            Refusal(
                lambda config: config.word_embed_proj_dim != config.hidden_size,
                "word_embed_proj_dim",
                "an unembedding of another width than the residual stream",
            ),
            Refusal(
                lambda config: bool(getattr(config, "_remove_final_layer_norm", False)),
                "_remove_final_layer_norm",
                "no norm before the unembedding",
            ),
        ),
    ),
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "GemmaForCausalLM": replace(_GEMMA, activation_function="hidden_act"),
    "Gemma2ForCausalLM": _GEMMA_2,
    "Gemma3ForCausalLM": replace(_GEMMA_2, heads=reading.gemma3_heads),
    "PhiForCausalLM": replace(
        _LLAMA,
        projection="dense",
        mlp_norm="input_layernorm",
        final_norm="model.final_layernorm",
        heads=reading.phi_heads,
        neurons=reading.phi_neurons,
        norm_centred=True,
        norm_eps="eps",
        parallel=lambda _config: True,
        refused=(
            Refusal(
                lambda config: bool(config.qk_layernorm),
                "qk_layernorm",
                "a centred norm on queries and keys",
            ),
        ),
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
    for refusal in family.refused:
        if refusal.applies(model.config):
            raise ValueError(
                f"this {architecture} has {refusal.name} ({refusal.reason}), which the held map "
                "does not cover. Load a model without it."
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


__all__ = ["FAMILIES", "Family", "HeadWeights", "Refusal", "family_of"]
