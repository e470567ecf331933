"""Lorsa: an attention layer as many rank-one heads, few of them active (He et al. 2504.20938).

Query-key heads are shared: of `feature` value-output heads each consecutive group of
`feature / head` reads one pattern.

    p_i[t] = sum over s of A_h(i)[t, s] · (read_i · y[s]) + read_bias_i      h(i) = i // group
    z_i = gate_i · p_i        output = sum over i of z_i · write_i + write_bias

`y` is the layer's normed input. A value-output head is a node of kind "lorsa", a scalar.
"""

import dataclasses
from dataclasses import dataclass

import einops
from jaxtyping import Float, Int
from torch import Tensor

from replacement.layers.activation import Activation
from replacement.layers.active import Active, active_from_gates
from replacement.layers.base import FeatureLayer
from replacement.layers.query_key import QueryKey


@dataclass(frozen=True)
class Lorsa(FeatureLayer):
    """One attention layer as Lorsa heads.

    Raises ValueError unless the number of query-key heads divides that of value-output heads.
    """

    query_key: QueryKey
    read: Float[Tensor, "feature d_model"]
    """w_V: what a head reads at the keys."""
    write: Float[Tensor, "feature d_model"]
    """w_O: what it writes at the query."""
    read_bias: Float[Tensor, " feature"]
    """b_V; a pattern's row sums to 1, so it is added after mixing."""
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    gate_scale: Float[Tensor, " feature"] | None = None
    after_post_norm: bool = False
    skip = None
    kind = "lorsa"
    exact = False

    def __post_init__(self) -> None:
        if self.n_features % self.query_key.n_heads:
            raise ValueError(
                f"Lorsa: {self.n_features} value-output heads cannot share "
                f"{self.query_key.n_heads} query-key heads equally; give a multiple."
            )

    @property
    def group(self) -> int:
        """How many value-output heads share one query-key head."""
        return self.n_features // self.query_key.n_heads

    def pattern_of(self, index: Int[Tensor, " node"]) -> Int[Tensor, " node"]:
        """Return the query-key head of value-output heads."""
        return index // self.group

    def mixed(
        self,
        y: Float[Tensor, "*batch pos d_model"],
        pattern: Float[Tensor, "*#batch head query key"] | None = None,
    ) -> Float[Tensor, "*batch pos feature"]:
        """Return every pre-activation: with a pattern explicitly, without by the fused kernel."""
        values = einops.rearrange(
            y @ self.read.T, "... key (head group) -> ... head key group", group=self.group
        )
        if pattern is None:
            flat = y.reshape(-1, *y.shape[-2:])
            mixed = self.query_key.mixed(flat, values.reshape(-1, *values.shape[-3:]))
            mixed = mixed.view(values.shape)
        else:
            mixed = pattern @ values
        joined = einops.rearrange(mixed, "... head query group -> ... query (head group)")
        return joined + self.read_bias

    def encode(
        self,
        y: Float[Tensor, "pos d_model"],
        pattern: Float[Tensor, "head query key"] | None = None,
    ) -> Active:
        """Return the heads active on one prompt's normed inputs."""
        pre = self.mixed(y, pattern)
        return active_from_gates(pre, self.gate(pre), dense=self.activation.dense)

    def forward(
        self, y: Float[Tensor, "*batch d_model"], *, fused: bool = True
    ) -> Float[Tensor, "*batch d_model"]:
        """Return the reconstruction of attention's output from unpadded or right-padded prompts.

        The axis before the last is `pos`. Without `fused` it is what `encode` with an explicit
        pattern gives, to the last bit: the fused kernel rounds otherwise, which can turn a tie.
        """
        pattern = None if fused else self.query_key.pattern(y)
        pre = self.mixed(y, pattern).reshape(-1, self.n_features)
        active = active_from_gates(pre, self.gate(pre), dense=self.activation.dense)
        output = active.combine(self.write, active.activation) + self.write_bias
        return output.view(y.shape)

    def folded(self, input_scale: int | float, output_scale: int | float) -> "Lorsa":
        """Return the layer in the model's units; queries and keys read the scaled input too."""
        if input_scale == output_scale == 1:
            return self
        return dataclasses.replace(
            self,
            query_key=dataclasses.replace(
                self.query_key,
                query=self.query_key.query * input_scale,
                key=self.query_key.key * input_scale,
            ),
            read=self.read * input_scale,
            write=self.write / output_scale,
            write_bias=self.write_bias / output_scale,
        )
