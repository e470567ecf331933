"""The residual stream of one stage as features, which take its place."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held.features import HeldFeatures
from replacement.held.sublayer import Joint, Reads
from replacement.layer_run import StreamRun
from replacement.layers import ResidualSAE

NAMES = ("resid", "mid")
"""What such features are called: of the stream entering a layer, and entering its MLP."""


class HeldStream(HeldFeatures):
    """Features of a residual SAE: they read the stream as it is, and replace it."""

    local, replaces = True, True

    def __init__(self, stage: int, run: StreamRun, sae: ResidualSAE) -> None:
        super().__init__(stage // 2, run, run.active, sae, [Joint(None, None)])
        self.name = NAMES[stage % 2]
        self.reads_at, self.write_stages = stage, (stage,)

    def _carry(
        self, coefficient: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        biases = self.features.read_bias[self.active.index] * coefficient
        return self.active.combine(self.features.read, coefficient), self.active.sum_by_pos(biases)

    def _reads(
        self,
        coefficient: Float[Tensor, " node"],
        pos: Int[Tensor, " node"],
        index: Int[Tensor, " node"],
    ) -> Reads:
        vector = coefficient[:, None] * self.features.read[index]
        own = torch.nn.functional.one_hot(pos, self.n_pos).to(vector)
        return Reads(vector[:, None], own[:, None], coefficient * self.features.read_bias[index])
