"""The one interface behind which an MLP is read as features: read vectors, write vectors, gates."""

from jaxtyping import Float
from torch import Tensor

from replacement.layers.activation import Activation
from replacement.layers.active import Active, active_from_gates


class FeatureLayer:
    """An MLP read as features: `a_f = gate_f · (read_f · y + read_bias_f)` writes `a_f · write_f`.

    `y` is the normed input of the MLP, gain and bias included. The layer's output is
    `sum_f a_f write_f + write_bias (+ skip @ y)`; what it misses of the MLP is the error.
    Final classes list these fields; the arithmetic is the same for all.
    """

    kind: str
    """Kind of its nodes: "feature" or "neuron"."""
    read: Float[Tensor, "feature d_model"]
    write: Float[Tensor, "feature d_model"]
    read_bias: Float[Tensor, " feature"]
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    exact: bool
    """True if the layer is the MLP itself, so that it has no error."""
    skip: Float[Tensor, "d_model d_model"] | None
    """Linear path around the features, applied as `y @ skip.T`; None where there is none."""

    @property
    def n_features(self) -> int:
        return self.read.shape[0]

    def encode(self, y: Float[Tensor, "pos d_model"]) -> Active:
        """Return the features active on the normed inputs `y`."""
        pre = y @ self.read.T + self.read_bias
        return active_from_gates(pre, self.activation.gate(pre), dense=self.activation.dense)

    def pre_activation(
        self, y: Float[Tensor, "*batch d_model"], index: int
    ) -> Float[Tensor, "*batch"]:
        """Return `read · y + read_bias` of one feature, active or not."""
        return y @ self.read[index] + self.read_bias[index]

    def decode(
        self, active: Active, y: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "pos d_model"]:
        """Return the layer's reconstruction of the MLP output."""
        output = active.combine(self.write, active.activation) + self.write_bias
        return output if self.skip is None else output + y @ self.skip.T
