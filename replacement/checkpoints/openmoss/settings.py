"""The layout of a Lorsa folder of OpenMOSS: names, axes, and settings with their defaults.

`config.json` and `sae_weights.safetensors` hold one layer. Beside the tensors named below the
latter holds the mean norms `dataset_average_activation_norm.<hook point>` that training divided by,
and buffers (mask, rotary tables) that the settings already say.
"""

import math
import re
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
HOOKS = {
    "hook_point_in": "blocks.{}.ln1.hook_normalized",
    "hook_point_out": "blocks.{}.hook_attn_out",
}
"""The normed input of attention and what attention adds, in TransformerLens' names."""
THRESHOLD = "activation_function.log_jumprelu_threshold"
MEAN_NORM = "dataset_average_activation_norm."
BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
QUERY_KEYS = {
    "W_Q": "qk_head d_model d_qk_head",
    "W_K": "qk_head d_model d_qk_head",
    "b_Q": "qk_head d_qk_head",
    "b_K": "qk_head d_qk_head",
}
NORMS = {"ln_q.w": "qk_head d_qk_head", "ln_k.w": "qk_head d_qk_head"}
HEADS = {"W_V": "head d_model", "W_O": "head d_model", "b_V": "head"}
DEFAULTS: dict[str, Any] = {
    "sae_type": "lorsa",
    "act_fn": "relu",
    "top_k": 50,
    "sparsity_include_decoder_norm": True,
    "use_decoder_bias": True,
    "norm_activation": "dataset-wise",
    "positional_embedding_type": "rotary",
    "rotary_base": 10000,
    "rotary_base_local": None,
    "rotary_adjacent_pairs": True,
    "rotary_scale": 1,
    "use_NTK_by_parts_rope": False,
    "NTK_by_parts_factor": 1.0,
    "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 1.0,
    "old_context_len": 2048,
    "attn_scale": None,
    "attn_type": "global",
    "window_size": None,
    "use_post_qk_ln": False,
    "normalization_type": None,
    "eps": 1e-6,
}
"""What their code takes where a config does not say."""
NUMBERS = (
    "d_model",
    "n_qk_heads",
    "d_qk_head",
    "top_k",
    "rotary_base",
    "NTK_by_parts_factor",
    "NTK_by_parts_low_freq_factor",
    "NTK_by_parts_high_freq_factor",
    "old_context_len",
    "attn_scale",
    "eps",
)
"""Settings above 0; `attn_scale`, which scores are divided by, may be null for √d_qk_head."""


def checked(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with defaults filled in.

    Raises ValueError where one is of another kind, or says what our layers cannot hold.
    """
    config = {**DEFAULTS, **config}
    if config["sae_type"] != "lorsa":
        raise ValueError(
            f"{path}: sae_type is {config['sae_type']!r}; only lorsa is read here, one attention "
            "layer a folder."
        )
    for name, value in DEFAULTS.items():
        kinds = {bool: bool, str: str}.get(type(value))
        if kinds is not None and not isinstance(config[name], kinds):
            raise ValueError(
                f"{path}: {name} is {config[name]!r}; a {type(value).__name__} is expected, such "
                f"as {value!r}."
            )
    for name in NUMBERS:
        if not _positive(config.get(name)) and not (name == "attn_scale" and config[name] is None):
            raise ValueError(f"{path}: {name} is {config.get(name)!r}; it is a number above 0.")
    for name, allowed, reason in (
        ("norm_activation", ("inference", "dataset-wise"), "a scale that changes with the input"),
        ("positional_embedding_type", ("rotary", "none"), "an unknown position embedding"),
        ("rotary_scale", (1,), "coordinates repeated before rotation"),
        ("attn_type", ("global", "local"), "an unknown kind of attention"),
    ):
        if config[name] not in allowed:
            raise ValueError(
                f"{path}: {name} is {config[name]!r} ({reason}), which our layers cannot hold. "
                f"Known: {', '.join(map(repr, allowed))}."
            )
    if config["use_post_qk_ln"] and config["normalization_type"] != "RMS":
        raise ValueError(
            f"{path}: use_post_qk_ln with normalization_type {config['normalization_type']!r}; "
            'only "RMS" is defined for queries and keys.'
        )
    window = config["window_size"]
    if config["attn_type"] == "local" and not (isinstance(window, int) and window > 0):
        raise ValueError(
            f"{path}: attn_type is local, but window_size {window!r}. Give the number of keys that "
            "a query sees."
        )
    return config


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def layer_number(path: Path, config: dict[str, Any]) -> int:
    """Which layer's normed input and attention output the two hook points are."""
    numbers = []
    for name, pattern in HOOKS.items():
        found = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), str(config.get(name)))
        if found is None:
            raise ValueError(
                f"{path}: {name} is {config.get(name)!r}; a Lorsa that stands in for attention "
                f"has {pattern.format('L')!r} there."
            )
        numbers.append(int(found[1]))
    if numbers[0] != numbers[1]:
        raise ValueError(
            f"{path}: reads layer {numbers[0]} and reproduces layer {numbers[1]}; it must be one "
            "layer's attention. Correct the hook points."
        )
    return numbers[0]
