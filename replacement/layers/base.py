"""The one interface behind which a sublayer is read as features: read and write vectors, gates."""

import dataclasses
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.layers.activation import Activation
from replacement.layers.active import Active, active_from_gates

This = TypeVar("This", bound="FeatureLayer")


class FeatureLayer:
    """A sublayer read as features: `a = gate · (read · y + read_bias)` writes `a · write`.

    `y` is what the features read: the normed input of an MLP, gain and bias included (or, with
    `reads_stream`, the residual stream before that norm), or, for an attention-output SAE, what
    attention wrote. The output is `sum_f a_f write_f + write_bias
    (+ skip @ y)`; what it misses of the sublayer is the error. `Lorsa` mixes `read_f · y` over
    positions first. Final classes list these fields; the arithmetic is the same for all.
    """

    kind: str
    """Kind of its nodes: "feature", "neuron" or "lorsa"."""
    read: Float[Tensor, "feature d_model"]
    write: Float[Tensor, "feature target_times_d_model"]
    """What features write; one vector, or one for each of the `n_targets` sublayers written to."""
    read_bias: Float[Tensor, " feature"]
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    exact: bool
    """True if the layer is the sublayer itself, so that it has no error."""
    gate_scale: Float[Tensor, " feature"] | None
    """What pre-activations are multiplied with where the gate looks at them, None for 1.

    Behind a decoder-norm gate it is the norm of the write vectors as trained. Kept apart from them,
    so that no fold and no change of units touches a threshold.
    """
    after_post_norm: bool = False
    """In blocks with a norm after the sublayer: True if trained on what comes out of that norm."""
    reads_stream: bool = False
    """True if features read the residual stream itself, before the norm in front of the MLP."""
    skip: Float[Tensor, "d_model d_model"] | None
    """Linear path around the features, applied as `y @ skip.T`; None where there is none."""

    @property
    def n_features(self) -> int:
        return self.read.shape[0]

    @property
    def n_targets(self) -> int:
        """How many sublayers features write to: their own, and perhaps those after it."""
        return 1

    def write_to(self, target: int) -> Float[Tensor, "feature d_model"]:
        """Return what features write to one of their `n_targets` sublayers, 0 being their own."""
        width = self.read.shape[1]
        return self.write[:, target * width : (target + 1) * width]

    def gate(self, pre: Float[Tensor, "pos feature"]) -> Float[Tensor, "pos feature"]:
        """Return the gates of pre-activations, which are held in attribution."""
        return self.activation.gate(pre if self.gate_scale is None else pre * self.gate_scale)

    def encode(self, y: Float[Tensor, "pos d_model"]) -> Active:
        """Return the features active on the inputs `y`."""
        pre = y @ self.read.T + self.read_bias
        return active_from_gates(pre, self.gate(pre), dense=self.activation.dense)

    def pre_activation(
        self, y: Float[Tensor, "*batch d_model"], index: int
    ) -> Float[Tensor, "*batch"]:
        """Return `read · y + read_bias` of one feature, active or not."""
        return y @ self.read[index] + self.read_bias[index]

    def decode(
        self, active: Active, y: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "pos d_model"]:
        """Return the layer's reconstruction of the sublayer's output.

        Of a cross-layer transcoder, without what the layers before add to it.
        """
        return self.spread(active)[0] + self.around(y)

    def spread(self, active: Active) -> Float[Tensor, "target pos d_model"]:
        """Return what the features write to each sublayer, their own first."""
        written = active.combine(self.write, active.activation)
        return written.unflatten(-1, (self.n_targets, -1)).movedim(-2, 0)

    def around(self, y: Float[Tensor, "pos d_model"]) -> Float[Tensor, "*pos d_model"]:
        """Return what the layer adds to its own sublayer beside the features: bias and skip."""
        return self.write_bias if self.skip is None else self.write_bias + y @ self.skip.T

    def forward(self, y: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the reconstruction from inputs of any leading axes."""
        flat = y.reshape(-1, y.shape[-1])
        return self.decode(self.encode(flat), flat).view(y.shape)

    def decoder_norm_gated(self: This) -> This:
        """Return the layer with a gate that looks at `pre · ‖write‖`, what it would write."""
        return self._with(gate_scale=self.write.norm(dim=-1))

    def folded(self: This, input_scale: int | float, output_scale: int | float) -> This:
        """Return the layer in the model's units, if it was trained on inputs times `input_scale`
        and targets times `output_scale`.

        `folded.forward(y) = layer.forward(input_scale · y) / output_scale`, with the same features
        active for any activation. Activations keep the scale of training.
        """
        if input_scale == output_scale == 1:
            return self
        changes = {
            "read": self.read * input_scale,
            "write": self.write / output_scale,
            "write_bias": self.write_bias / output_scale,
        }
        if self.skip is not None:
            changes["skip"] = self.skip * (input_scale / output_scale)
        return self._with(**changes)

    def unit_decoder(self: This) -> This:
        """Return the same function with write vectors of norm 1: activations are what is written.

        The norm of a cross-layer feature is that of its vectors side by side.
        Features that write nothing are left as they are.
        """
        norm = self.write.norm(dim=-1)
        norm = torch.where(norm > 0, norm, 1.0)
        seen = 1 / norm if self.gate_scale is None else self.gate_scale / norm
        return self._with(
            read=self.read * norm[:, None],
            read_bias=self.read_bias * norm,
            write=self.write / norm[:, None],
            gate_scale=seen,
        )

    def _with(self: This, **changes: Tensor) -> This:
        """A copy with some fields changed."""
        made: Any = self
        return dataclasses.replace(made, **changes)
