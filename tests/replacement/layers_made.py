"""Random layers of every class for the tests of layers and of their folders.

Every option is random too: no bias is zero, no gain is one, and write vectors have norms from 0.2
to 5, so that a gate, a bias or a scale that is forgotten somewhere shows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from replacement.layers import (
    Activation,
    AttentionSAE,
    BatchTopK,
    FeatureLayer,
    HeadNorm,
    JumpReLU,
    Llama3Scaling,
    Lorsa,
    QueryKey,
    ReLU,
    ResidualSAE,
    Rotary,
    TopK,
    Transcoder,
    rotary,
)

ACTIVATIONS = ("relu", "topk", "jumprelu", "batchtopk")
CLASSES = ("transcoder", "transcoder with skip", "sae", "residual sae", "lorsa")
D_MODEL, D_HEAD, N_HEADS, N_FEATURES = 8, 6, 4, 24
STRETCHED = Llama3Scaling(factor=4.0, low=1.0, high=4.0, old_context=64)
"""Leaves the first of three frequencies of base 100, mixes the second, stretches the third."""
ROTARIES: dict[str, Callable[[], Rotary | None]] = {
    "no": lambda: None,
    "half-split": lambda: rotary(D_HEAD, 100.0, dtype=torch.float64),
    "adjacent": lambda: rotary(D_HEAD, 100.0, adjacent=True, dtype=torch.float64),
    "partial": lambda: rotary(4, 50.0, dtype=torch.float64),
    "scaled": lambda: rotary(D_HEAD, 100.0, scaling=STRETCHED, dtype=torch.float64),
}


def noise(source: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers of deviation one half."""
    return (0.5 * torch.randn(shape, generator=source, dtype=torch.float64)).to(dtype)


def made_activation(name: str, source: torch.Generator, dtype: torch.dtype) -> Activation:
    """Return an activation that keeps some features of random inputs and drops some."""
    thresholds = 0.3 + 0.9 * torch.rand(N_FEATURES, generator=source, dtype=torch.float64)
    made: dict[str, Callable[[], Activation]] = {
        "relu": ReLU,
        "topk": lambda: TopK(5),
        "jumprelu": lambda: JumpReLU(thresholds.to(dtype)),
        "batchtopk": lambda: BatchTopK(0.6),
    }
    return made[name]()


def random_query_key(
    *,
    turns: str = "half-split",
    norm: bool = False,
    window: int | None = None,
    n_key_heads: int = N_HEADS,
    bias: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> QueryKey:
    """Return query-key heads with random weights; `turns` is one of `ROTARIES`."""
    source = torch.Generator().manual_seed(4000 + seed)

    def gains(heads: int, eps: float) -> HeadNorm:
        return HeadNorm(1 + noise(source, heads, D_HEAD, dtype=dtype), eps)

    return QueryKey(
        query=noise(source, N_HEADS, D_MODEL, D_HEAD, dtype=dtype),
        key=noise(source, n_key_heads, D_MODEL, D_HEAD, dtype=dtype),
        query_bias=noise(source, N_HEADS, D_HEAD, dtype=dtype) if bias else None,
        key_bias=noise(source, n_key_heads, D_HEAD, dtype=dtype) if bias else None,
        scale=0.7,
        rotary=ROTARIES[turns](),
        query_norm=gains(N_HEADS, 1e-3) if norm else None,
        key_norm=gains(n_key_heads, 1e-2) if norm else None,
        window=window,
    )


def random_layer(
    kind: str,
    activation: str = "relu",
    *,
    gated: bool = False,
    query_key: QueryKey | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Any:
    """Return a layer of one of `CLASSES`; `gated`: behind a decoder-norm gate."""
    source = torch.Generator().manual_seed(5000 + seed)
    write = noise(source, N_FEATURES, D_MODEL)
    norms = torch.logspace(-0.7, 0.7, N_FEATURES, dtype=torch.float64)
    norms = norms[torch.randperm(N_FEATURES, generator=source)]
    parts: dict[str, Any] = {
        "read": noise(source, N_FEATURES, D_MODEL, dtype=dtype),
        "write": (write * (norms / write.norm(dim=-1))[:, None]).to(dtype),
        "read_bias": noise(source, N_FEATURES, dtype=dtype),
        "write_bias": noise(source, D_MODEL, dtype=dtype),
        "activation": made_activation(activation, source, dtype),
    }
    layer: FeatureLayer
    if kind == "lorsa":
        heads = query_key or random_query_key(norm=True, window=4, seed=seed, dtype=dtype)
        layer = Lorsa(heads, **parts)
    elif kind == "sae":
        layer = AttentionSAE(**parts)
    elif kind == "residual sae":
        layer = ResidualSAE(**parts)
    elif kind == "transcoder with skip":
        layer = Transcoder(**parts, skip=noise(source, D_MODEL, D_MODEL, dtype=dtype))
    else:
        layer = Transcoder(**parts)
    return layer.decoder_norm_gated() if gated else layer


def inputs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random inputs [*shape, d_model]."""
    source = torch.Generator().manual_seed(6000 + seed)
    return (1.5 * torch.randn(*shape, D_MODEL, generator=source, dtype=torch.float64)).to(dtype)


def differences(one: object, other: object, path: str = "") -> list[str]:
    """Return where two values differ: bit by bit, dtype by dtype, field by field."""
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [path]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for place, pair in pairs for found in differences(*pair, f"{path}[{place}]")]
    if dataclasses.is_dataclass(one):
        fields = [field.name for field in dataclasses.fields(one)]
        return [
            found
            for name in fields
            for found in differences(getattr(one, name), getattr(other, name), f"{path}.{name}")
        ]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]
