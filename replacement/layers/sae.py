"""Sparse autoencoders: attention's output (2406.17759) or the residual stream as features."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from replacement.layers.activation import Activation
from replacement.layers.base import FeatureLayer


@dataclass(frozen=True)
class AttentionSAE(FeatureLayer):
    """A sparse autoencoder of one attention layer's output (after W_O and its bias).

    `act(x @ read.T + read_bias) @ write + write_bias` reproduces `x`, the sum of all heads. Its
    features say what attention wrote, and read it through the heads, whose patterns are held; where
    heads look is not explained by it (`Lorsa` reads the layer's input instead).

    >>> import torch
    >>> from replacement.layers import TopK
    >>> eye = torch.eye(3)
    >>> layer = AttentionSAE(eye, eye, torch.zeros(3), torch.zeros(3), TopK(1))
    >>> layer.forward(torch.tensor([[1.0, 5.0, 2.0]])).tolist()
    [[0.0, 5.0, 0.0]]
    """

    read: Float[Tensor, "feature d_model"]
    write: Float[Tensor, "feature d_model"]
    read_bias: Float[Tensor, " feature"]
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    gate_scale: Float[Tensor, " feature"] | None = None
    after_post_norm: bool = False
    skip = None
    kind = "feature"
    exact = False


@dataclass(frozen=True)
class ResidualSAE(FeatureLayer):
    """A sparse autoencoder of the residual stream at one stage, before any norm.

    `act(x @ read.T + read_bias) @ write + write_bias` reproduces the stream `x` and replaces it:
    what comes after is read off the features, and what they miss of `x` is the error. Which stage
    it belongs to, the model's list of them says (`ReplacementModel`).

    >>> import torch
    >>> from replacement.layers import TopK
    >>> eye = torch.eye(3)
    >>> layer = ResidualSAE(eye, eye, torch.zeros(3), torch.zeros(3), TopK(1))
    >>> layer.forward(torch.tensor([[1.0, 5.0, 2.0]])).tolist()
    [[0.0, 5.0, 0.0]]
    """

    read: Float[Tensor, "feature d_model"]
    write: Float[Tensor, "feature d_model"]
    read_bias: Float[Tensor, " feature"]
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    gate_scale: Float[Tensor, " feature"] | None = None
    skip = None
    kind = "feature"
    exact = False
