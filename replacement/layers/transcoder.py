"""Transcoders: wide sparse layers trained to reproduce an MLP (2406.11944), a skip optional."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from replacement.layers.activation import Activation
from replacement.layers.base import FeatureLayer


@dataclass(frozen=True)
class Transcoder(FeatureLayer):
    """One transcoder: `act(y @ read.T + read_bias) @ write + write_bias (+ y @ skip.T)`.

    >>> import torch
    >>> from replacement.layers import TopK
    >>> eye = torch.eye(3)
    >>> layer = Transcoder(eye, eye, torch.zeros(3), torch.zeros(3), TopK(1))
    >>> y = torch.tensor([[1.0, 5.0, 2.0]])
    >>> layer.decode(layer.encode(y), y).tolist()
    [[0.0, 5.0, 0.0]]
    """

    read: Float[Tensor, "feature d_model"]
    write: Float[Tensor, "feature d_model"]
    read_bias: Float[Tensor, " feature"]
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    skip: Float[Tensor, "d_model d_model"] | None = None
    gate_scale: Float[Tensor, " feature"] | None = None
    after_post_norm: bool = False
    reads_stream: bool = False
    kind = "feature"
    exact = False
