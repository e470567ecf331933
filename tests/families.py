"""A tiny random model of every family, two shapes each, for tests and for the table in the docs."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

D_VOCAB = 13
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
PLAIN: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA: dict[str, Any] = {
    **PLAIN,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
GROUPED: dict[str, Any] = {**LLAMA, "num_key_value_heads": 2}
ONE_EACH: dict[str, Any] = {**LLAMA, "num_key_value_heads": 4, "num_hidden_layers": 3}
GPT_2: dict[str, Any] = {**PLAIN, "n_positions": 16, "n_layer": 2}
NEOX: dict[str, Any] = {
    **PLAIN,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
OPT: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "num_hidden_layers": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
NEO: dict[str, Any] = {**PLAIN, "max_position_embeddings": 16, "resid_dropout": 0.0}
GEMMA: dict[str, Any] = {"head_dim": 4}
CAPPED = {**GEMMA, "query_pre_attn_scalar": 6, "sliding_window": 3}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "GPT-2": lambda: GPT2Config(n_embd=8, n_head=2, n_inner=12, **GPT_2),
    "GPT-2, scores scaled by layer": lambda: GPT2Config(
        n_embd=6,
        n_head=3,
        n_inner=10,
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        activation_function="relu",
        **GPT_2,
    ),
    "GPT-Neo": lambda: GPTNeoConfig(
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=3,
        intermediate_size=12,
        **NEO,
    ),
    "GPT-Neo, local first": lambda: GPTNeoConfig(
        hidden_size=6,
        num_layers=3,
        num_heads=1,
        attention_types=[[["local", "global", "local"], 1]],
        window_size=2,
        **NEO,
    ),
    "GPT-NeoX": lambda: GPTNeoXConfig(rotary_pct=0.5, **NEOX),
    "GPT-NeoX, not parallel": lambda: GPTNeoXConfig(
        rotary_pct=0.25, use_parallel_residual=False, attention_bias=False, **NEOX
    ),
    "GPT-J": lambda: GPTJConfig(n_embd=16, n_head=2, n_inner=12, rotary_dim=4, **GPT_2),
    "GPT-J, all turned": lambda: GPTJConfig(n_embd=8, n_head=2, n_inner=9, rotary_dim=4, **GPT_2),
    "OPT": lambda: OPTConfig(
        hidden_size=8, ffn_dim=12, num_attention_heads=2, word_embed_proj_dim=8, **OPT
    ),
    "OPT, no biases": lambda: OPTConfig(
        hidden_size=6,
        ffn_dim=10,
        num_attention_heads=3,
        word_embed_proj_dim=6,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        **OPT,
    ),
    "Llama, grouped keys": lambda: LlamaConfig(**GROUPED),
    "Llama 3": lambda: LlamaConfig(
        rope_parameters=LLAMA_3, attention_bias=True, mlp_bias=True, **ONE_EACH
    ),
    "Mistral, window": lambda: MistralConfig(sliding_window=3, **GROUPED),
    "Mistral": lambda: MistralConfig(sliding_window=None, **ONE_EACH),
    "Qwen2, grouped keys": lambda: Qwen2Config(**GROUPED),
    "Qwen2, windows in some layers": lambda: Qwen2Config(
        use_sliding_window=True, sliding_window=3, max_window_layers=1, **ONE_EACH
    ),
    "Qwen3, grouped keys": lambda: Qwen3Config(head_dim=4, **GROUPED),
    "Qwen3": lambda: Qwen3Config(head_dim=6, **ONE_EACH),
    "Gemma, grouped keys": lambda: GemmaConfig(**GEMMA, **GROUPED),
    "Gemma": lambda: GemmaConfig(head_dim=2, **ONE_EACH),
    "Gemma-2, grouped keys": lambda: Gemma2Config(
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **CAPPED, **GROUPED
    ),
    "Gemma-2, no caps": lambda: Gemma2Config(
        attn_logit_softcapping=None, final_logit_softcapping=None, **CAPPED, **ONE_EACH
    ),
    "Gemma-3, grouped keys": lambda: Gemma3TextConfig(
        layer_types=["sliding_attention", "full_attention"], **CAPPED, **GROUPED
    ),
    "Gemma-3": lambda: Gemma3TextConfig(
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        **CAPPED,
        **ONE_EACH,
    ),
    "Phi": lambda: PhiConfig(
        partial_rotary_factor=0.5, **{**GROUPED, "hidden_size": 16, "num_key_value_heads": 4}
    ),
    "Phi, grouped keys": lambda: PhiConfig(
        partial_rotary_factor=1.0, **{**GROUPED, "num_hidden_layers": 1}
    ),
}
"""Two shapes a family: grouped keys in one of them where the family has them."""


@lru_cache(maxsize=64)
def tiny(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return the tiny model of that name, no weight at zero or one, in evaluation mode."""
    config = CONFIGS[name]()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    source = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            is_gain = parameter.ndim == 1 and path.endswith("weight")
            offset = 1.0 if is_gain and "gemma" not in config.model_type else 0.0
            parameter.copy_(offset + (0.3 if parameter.ndim == 1 else 0.5) * noise)
    return model.to(dtype).eval()
