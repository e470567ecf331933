"""Random replacement layers for the tests: tiny, seeded, no weight left at zero.

Every bias and gain is random too, so that one that is forgotten somewhere shows.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from replacement.layers import (
    Activation,
    AttentionSAE,
    BatchTopK,
    CrossLayerTranscoder,
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

KINDS = ("relu", "jumprelu", "topk", "batchtopk")
"""Activations; " gated" behind one of them is a decoder-norm gate."""
D_QK = 4
N_QUERY_KEY, GROUP = 4, 3
"""More query-key heads than any random model has heads, so that the two are not mixed up."""

Layer = TypeVar("Layer", bound=FeatureLayer)
Sae = TypeVar("Sae", AttentionSAE, ResidualSAE)


def random_activation(
    kind: str, n_features: int, source: torch.Generator, dtype: torch.dtype
) -> Activation:
    """Return an activation that keeps some features of random inputs and drops some.

    `kind`: one of `KINDS`; " gated" behind it is the layer's matter (`gated`).
    """
    thresholds = 0.5 * torch.rand(n_features, generator=source)
    made: dict[str, Callable[[], Activation]] = {
        "relu": ReLU,
        "jumprelu": lambda: JumpReLU(thresholds.to(dtype)),
        "topk": lambda: TopK(3),
        "batchtopk": lambda: BatchTopK(0.4),
    }
    return made[kind.removesuffix(" gated")]()


def gated(layer: Layer, kind: str) -> Layer:
    """Return the layer with a decoder-norm gate where the name of its activation says so."""
    return layer.decoder_norm_gated() if kind.endswith(" gated") else layer


def random_transcoder(
    kind: str,
    d_model: int = 8,
    n_features: int = 20,
    *,
    skip: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Transcoder:
    """Return a transcoder with random weights and biases (it reproduces no MLP: large errors)."""
    source = torch.Generator().manual_seed(1000 + seed)

    def noise(*shape: int) -> Tensor:
        return (0.5 * torch.randn(shape, generator=source)).to(dtype)

    transcoder = Transcoder(
        read=noise(n_features, d_model),
        write=noise(n_features, d_model),
        read_bias=noise(n_features),
        write_bias=noise(d_model),
        activation=random_activation(kind, n_features, source, dtype),
        skip=noise(d_model, d_model) if skip else None,
    )
    return gated(transcoder, kind)


def random_cross_layer(
    kind: str,
    d_model: int = 8,
    n_features: int = 20,
    *,
    n_targets: int = 2,
    skip: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> CrossLayerTranscoder:
    """Return one layer of a cross-layer transcoder with random weights and biases."""
    own = random_transcoder(kind, d_model, n_features, skip=skip, seed=seed, dtype=dtype)
    source = torch.Generator().manual_seed(6000 + seed)
    later = 0.5 * torch.randn(n_features, (n_targets - 1) * d_model, generator=source)
    layer = CrossLayerTranscoder(
        own.read,
        torch.cat([own.write, later.to(dtype)], dim=1),
        own.read_bias,
        own.write_bias,
        own.activation,
        own.skip,
    )
    return gated(layer, kind)


def random_mlp(
    name: str, d_model: int, *, n_later: int, skip: bool, seed: int, dtype: torch.dtype
) -> FeatureLayer | None:
    """Return what an MLP with `n_later` ones above it is read through.

    `name`: "neurons", or one of `KINDS`, before it "cross " for a cross-layer transcoder and
    "stream " for one that reads the stream before the norm.
    """
    if name == "neurons":
        return None
    kind = name.removeprefix("stream ").removeprefix("cross ")
    if "cross " in name:
        layer = random_cross_layer(
            kind, d_model, n_targets=n_later + 1, skip=skip, seed=seed, dtype=dtype
        )
    else:
        layer = random_transcoder(kind, d_model, skip=skip, seed=seed, dtype=dtype)
    return dataclasses.replace(layer, reads_stream=name.startswith("stream "))


@dataclass(frozen=True)
class LorsaKind:
    """What a random Lorsa is made of."""

    activation: str = "relu"
    key_heads: int = N_QUERY_KEY
    turned: str = ""
    """ "half", "adjacent", "partial" or "llama3" for rotary embeddings."""
    normed: bool = False
    """With q/k norm."""
    window: int | None = None
    biased: bool = True
    """With query and key biases."""


LORSAS = {
    "lorsa": LorsaKind(),
    "lorsa rotary": LorsaKind("topk gated", turned="half", normed=True),
    "lorsa window": LorsaKind("jumprelu gated", turned="adjacent", window=2),
    "lorsa grouped": LorsaKind("batchtopk gated", key_heads=2, turned="partial", normed=True),
    "lorsa llama3": LorsaKind("jumprelu", key_heads=1, turned="llama3", biased=False, window=3),
    "lorsa topk": LorsaKind("topk", key_heads=2, normed=True, window=2),
}
SAES = {"sae": "jumprelu", "sae topk": "topk gated"}
"""Attention-output autoencoders by name, and their activations."""
ATTENTIONS = (*LORSAS, *SAES)


def random_rotary(turned: str) -> Rotary | None:
    """Return a rotation whose frequencies differ enough to show within a few positions."""
    match turned:
        case "":
            return None
        case "half":
            return rotary(D_QK, 10.0, dtype=torch.float64)
        case "adjacent":
            return Rotary(rotary(D_QK, 7.0, dtype=torch.float64).inverse_frequency, True, 1.1)
        case "partial":
            return rotary(D_QK // 2, 5.0, dtype=torch.float64)
        case "llama3":
            stretched = Llama3Scaling(factor=4, low=1, high=3, old_context=16)
            return rotary(D_QK, 20.0, scaling=stretched, dtype=torch.float64)
    raise ValueError(turned)


def random_lorsa(
    kind: LorsaKind,
    d_model: int = 8,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Lorsa:
    """Return a Lorsa layer with random weights and biases (it reproduces no attention layer)."""
    source = torch.Generator().manual_seed(4000 + seed)

    def noise(*shape: int) -> Tensor:
        return (0.5 * torch.randn(shape, generator=source)).to(dtype)

    def norm(heads: int) -> HeadNorm | None:
        return HeadNorm(1 + noise(heads, D_QK), eps=1e-3) if kind.normed else None

    turned = random_rotary(kind.turned)
    if turned is not None:
        turned = Rotary(turned.inverse_frequency.to(dtype), turned.adjacent, turned.amplitude)
    query_key = QueryKey(
        query=noise(N_QUERY_KEY, d_model, D_QK),
        key=noise(kind.key_heads, d_model, D_QK),
        query_bias=noise(N_QUERY_KEY, D_QK) if kind.biased else None,
        key_bias=noise(kind.key_heads, D_QK) if kind.biased else None,
        scale=0.37,
        rotary=turned,
        query_norm=norm(N_QUERY_KEY),
        key_norm=norm(kind.key_heads),
        window=kind.window,
    )
    count = N_QUERY_KEY * GROUP
    lorsa = Lorsa(
        query_key=query_key,
        read=noise(count, d_model),
        write=noise(count, d_model),
        read_bias=noise(count),
        write_bias=noise(d_model),
        activation=random_activation(kind.activation, count, source, dtype),
    )
    return gated(lorsa, kind.activation)


def random_sae(
    activation: str,
    d_model: int = 8,
    n_features: int = 14,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    make: type[Sae] = AttentionSAE,
) -> Sae:
    """Return an autoencoder with random weights and biases, of attention's output by default."""
    source = torch.Generator().manual_seed(5000 + seed)

    def noise(*shape: int) -> Tensor:
        return (0.5 * torch.randn(shape, generator=source)).to(dtype)

    sae = make(
        read=noise(n_features, d_model),
        write=noise(n_features, d_model),
        read_bias=noise(n_features),
        write_bias=noise(d_model),
        activation=random_activation(activation, n_features, source, dtype),
    )
    return gated(sae, activation)


def random_attention(
    name: str, d_model: int, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Lorsa | AttentionSAE | None:
    """Return what an attention layer is read through, by a name of `ATTENTIONS` or "heads"."""
    if name == "heads":
        return None
    if name in SAES:
        return random_sae(SAES[name], d_model, seed=seed, dtype=dtype)
    return random_lorsa(LORSAS[name], d_model, seed=seed, dtype=dtype)
