"""What a model family is: where its parts live, and how its weights are laid out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import einops
from jaxtyping import Float
from torch import Tensor, nn

from replacement.layers import FeatureLayer, QueryKey


@dataclass(frozen=True)
class HeadWeights:
    """The weights of one attention layer's heads; value and output weights heads side by side.

    With fewer value heads than heads, consecutive heads share one (grouped values).
    """

    query_key: QueryKey
    value: Float[Tensor, "d_model value_head_times_d_head"]
    value_bias: Float[Tensor, " value_head_times_d_head"] | None
    output: Float[Tensor, "head_times_d_head d_model"]
    output_bias: Float[Tensor, " d_model"] | None
    n_heads: int
    n_value_heads: int

    @property
    def group(self) -> int:
        """How many heads share one value head."""
        return self.n_heads // self.n_value_heads

    def values(
        self, y: Float[Tensor, "*batch pos d_model"]
    ) -> Float[Tensor, "*batch pos value_head d_head"]:
        """Return the value vectors of normed inputs."""
        values = y @ self.value
        if self.value_bias is not None:
            values = values + self.value_bias
        return values.unflatten(-1, (self.n_value_heads, -1))

    def mix(
        self,
        pattern: Float[Tensor, "*#batch head query key"],
        y: Float[Tensor, "*#batch key d_model"],
    ) -> Float[Tensor, "*#batch query head d_head"]:
        """Return every head's pattern-weighted values, from normed inputs."""
        return einops.einsum(
            pattern,
            self.values(y).repeat_interleave(self.group, dim=-2),
            "... head query key, ... key head d_head -> ... query head d_head",
        )

    def write(
        self, mixed: Float[Tensor, "*batch pos head d_head"]
    ) -> Float[Tensor, "*batch pos d_model"]:
        """Return what the heads write together, output bias included."""
        written = mixed.flatten(-2) @ self.output
        return written if self.output_bias is None else written + self.output_bias

    @property
    def value_of_head(self) -> Float[Tensor, "value_head d_model d_head"]:
        """A view of the value weights, one matrix a value head (`head // group` of a head)."""
        return self.value.unflatten(1, (self.n_value_heads, -1)).movedim(1, 0)

    @property
    def output_of_head(self) -> Float[Tensor, "head d_head d_model"]:
        """A view of the output weights, one matrix a head."""
        return self.output.unflatten(0, (self.n_heads, -1))


class Refusal(NamedTuple):
    """A setting of a model's config that changes the architecture beyond what its row says."""

    applies: Callable[[Any], bool]
    name: str
    reason: str


@dataclass(frozen=True)
class Family:
    """Names (paths of submodules, from a block where it is a part of one) and what differs."""

    layers: str
    attention_norm: str
    attention: str
    projection: str
    """From attention: what multiplies with W_O, so that it reads what the heads mixed."""
    mlp_norm: str
    mlp: str
    """The module whose output the MLP adds (before a norm after it)."""
    final_norm: str
    unembedding: str
    heads: Callable[[Any, nn.Module], HeadWeights]
    """From a block and the model."""
    neurons: Callable[[Any, str], FeatureLayer]
    """From a block and the name of the activation."""
    activation_function: str
    """Name of the config entry that names the MLP's activation."""
    position_embedding: str | None = None
    position_offset: int = 0
    """Row of the position embedding that the first token gets."""
    attention_post_norm: str | None = None
    """A norm between attention and the residual stream."""
    mlp_post_norm: str | None = None
    norm_centred: bool = True
    """True for LayerNorm, False for RMSNorm."""
    norm_eps: str = "eps"
    """Name of the norm module's attribute that holds epsilon."""
    gain_offset: float = 0.0
    """What is added to a norm's weight (Gemma: 1)."""
    parallel: Callable[[Any], bool] = lambda _config: False
    """From the config: whether the MLP reads the stream that attention reads."""
    refused: tuple[Refusal, ...] = ()
