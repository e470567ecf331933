"""Cross-layer transcoders: features of one MLP that write to its output and to later MLPs'."""

import dataclasses
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from replacement.layers.activation import Activation
from replacement.layers.base import FeatureLayer


@dataclass(frozen=True)
class CrossLayerTranscoder(FeatureLayer):
    """One layer of a cross-layer transcoder (Ameisen et al. 2025, "Circuit Tracing").

    Features read this MLP's input; `write` holds, side by side, what each adds to the output of
    this MLP and of those after it. An MLP's output is rebuilt by its own layer and all before it.
    `write_bias` and `skip` belong to this MLP alone.

    >>> import torch
    >>> from replacement.layers import TopK
    >>> eye = torch.eye(3)
    >>> layer = CrossLayerTranscoder(
    ...     eye, torch.cat([eye, 10 * eye], dim=1), torch.zeros(3), torch.zeros(3), TopK(1)
    ... )
    >>> layer.spread(layer.encode(torch.tensor([[1.0, 5.0, 2.0]]))).tolist()
    [[[0.0, 5.0, 0.0]], [[0.0, 50.0, 0.0]]]
    """

    read: Float[Tensor, "feature d_model"]
    write: Float[Tensor, "feature target_times_d_model"]
    read_bias: Float[Tensor, " feature"]
    write_bias: Float[Tensor, " d_model"]
    activation: Activation
    skip: Float[Tensor, "d_model d_model"] | None = None
    gate_scale: Float[Tensor, " feature"] | None = None
    after_post_norm: bool = False
    reads_stream: bool = False
    kind = "feature"
    exact = False

    @property
    def n_targets(self) -> int:
        return self.write.shape[1] // self.read.shape[1]

    def in_units(
        self, input_scale: int | float, output_scales: Float[Tensor, " target"]
    ) -> "CrossLayerTranscoder":
        """Return the layer in the model's units, as `folded`, with a scale for each output.

        `output_scales`: what the targets of training were multiplied with, this MLP's first.
        """
        folded = self.folded(input_scale, float(output_scales[0]))
        later = output_scales[0] / output_scales.repeat_interleave(self.read.shape[1])
        if bool((later == 1).all()):
            return folded
        return dataclasses.replace(folded, write=folded.write * later.to(folded.write.dtype))
