"""Normalisation as a linear map: the run's denominator is held, centring and gain are exact."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """`y = gain / scale * (x - mean x) + bias`; centring only for LayerNorm."""

    gain: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    eps: float
    centred: bool

    def centre(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return `x` less its mean over `d_model`, or `x` where the norm has no centring."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return the denominator `sqrt(mean square of the centred x + eps)`."""
        return torch.sqrt(self.centre(x).square().mean(-1) + self.eps)

    def apply(
        self, x: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*positions"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Return the normed `x` with its denominator held at `scale`."""
        normed = self.held(x, scale)
        return normed if self.bias is None else normed + self.bias

    def pull(self, reads: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return vectors that read the stream (times 1/scale) as `reads` read the output."""
        if self.gain is None:
            return self.centre(reads)
        if not self.centred:
            return reads * self.gain
        mean = (reads @ self.gain).div_(-len(self.gain))
        return torch.addcmul(mean[..., None], reads, self.gain)

    def unscaled(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return what summands of the input become before the denominator: `pull` transposed."""
        centred = self.centre(vectors)
        return centred if self.gain is None else centred * self.gain

    def held(
        self, vectors: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*positions"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Return what the norm makes of summands of its input: all but its own bias."""
        return self.unscaled(vectors) / scale[..., None]

    def constant(self, reads: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return what `reads` get from the norm's bias: the part no node wrote."""
        return reads.new_zeros(reads.shape[:-1]) if self.bias is None else reads @ self.bias


class NoNorm(Norm):
    """What reads the residual stream as it is: a scale of 1, and nothing changed."""

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Return 1 at every position."""
        return x.new_ones(x.shape[:-1])


NO_NORM = NoNorm(gain=None, bias=None, eps=0.0, centred=False)
