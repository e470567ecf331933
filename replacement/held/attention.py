"""Attention as features: Lorsa heads, or an autoencoder's features of attention's output."""

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held.features import HeldFeatures
from replacement.held.heads import HeldPatterns
from replacement.held.sublayer import Joint, Reads
from replacement.layer_run import AttentionRun
from replacement.layers import AttentionSAE, Lorsa
from replacement.weights import LayerWeights


class HeldLorsa(HeldFeatures):
    """An attention layer as Lorsa heads: a head reads every key before it, weighted by a pattern.

    Its norm bias passes by the pattern's recorded row sum; its own bias is added after mixing.
    """

    name, local = "attn", False

    def __init__(self, layer: int, run: AttentionRun, lorsa: Lorsa, weights: LayerWeights) -> None:
        assert run.active is not None, "Lorsa heads are nodes, so they were recorded"
        joint = Joint(weights.attention_writes_through, run.post_scale)
        super().__init__(layer, run, run.active, lorsa, [joint])
        self.reads_at, self.write_stages = 2 * layer, (2 * layer + 1,)
        self.run, self.lorsa, self.norm = run, lorsa, weights.attention_norm

    def _carry(
        self, coefficient: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        active, lorsa = self.active, self.lorsa
        used = active.index.unique()
        at_query = coefficient.new_zeros(self.n_pos, lorsa.n_features)
        at_query[active.pos, active.index] = coefficient
        by_head = at_query.view(self.n_pos, -1, lorsa.group).movedim(1, 0)
        at_key = (self.run.pattern.transpose(1, 2) @ by_head).movedim(0, 1).flatten(1)[:, used]
        at_input = at_key @ lorsa.read[used]
        biases = active.sum_by_pos(coefficient * self._constant(active.pos, active.index))
        return self.norm.pull(at_input) / self.run.scale[:, None], biases

    @cached_property
    def _of_norm(self) -> Float[Tensor, " feature"]:
        """What every head gets from the norm's bias, times the row sum of its pattern."""
        return self.norm.constant(self.lorsa.read)

    def _constant(
        self, pos: Int[Tensor, " node"], index: Int[Tensor, " node"]
    ) -> Float[Tensor, " node"]:
        """What heads read that no node wrote."""
        row_sum = self.run.pattern.sum(-1)[self.lorsa.pattern_of(index), pos]
        return self._of_norm[index] * row_sum + self.lorsa.read_bias[index]

    def _reads(
        self,
        coefficient: Float[Tensor, " node"],
        pos: Int[Tensor, " node"],
        index: Int[Tensor, " node"],
    ) -> Reads:
        vector = coefficient[:, None] * self.lorsa.read[index]
        pattern = self.run.pattern[self.lorsa.pattern_of(index), pos]
        constant = coefficient * self._constant(pos, index)
        return Reads(self.norm.pull(vector)[:, None], (pattern / self.run.scale)[:, None], constant)


class HeldAttentionSAE(HeldFeatures):
    """An attention layer as features of its output, which read it through the model's heads."""

    name, local = "attn", False

    def __init__(
        self, layer: int, run: AttentionRun, sae: AttentionSAE, weights: LayerWeights
    ) -> None:
        assert run.active is not None, "features are nodes, so they were recorded"
        joint = Joint(weights.attention_writes_through, run.post_scale)
        super().__init__(layer, run, run.active, sae, [joint])
        self.reads_at, self.write_stages = 2 * layer, (2 * layer + 1,)
        self.run, self.heads = run, weights.heads
        self.held = HeldPatterns(run, weights.heads, weights.attention_norm)

    def _carry(
        self, coefficient: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        at_output = self.active.combine(self.features.read, coefficient)
        carried, constants = self.held.carry(self.held.reading(at_output))
        biases = self.active.combine(self.features.read_bias[:, None], coefficient).squeeze(-1)
        if self.heads.output_bias is not None:
            biases = biases + at_output @ self.heads.output_bias
        return carried, constants + biases

    def _reads(
        self,
        coefficient: Float[Tensor, " node"],
        pos: Int[Tensor, " node"],
        index: Int[Tensor, " node"],
    ) -> Reads:
        at_output = coefficient[:, None] * self.features.read[index]
        reading = self.held.reading(at_output)
        heads = range(self.heads.n_heads)
        vectors = [self.held.value_vectors(reading[:, head], head) for head in heads]
        vector = self.held.norm.pull(torch.stack(vectors, dim=1))
        pattern = self.run.pattern[:, pos].movedim(0, 1)
        constant = coefficient * self.features.read_bias[index]
        constant = constant + ((reading * self.held.constant_values).sum(-1) * pattern.sum(-1)).sum(
            -1
        )
        if self.heads.output_bias is not None:
            constant = constant + at_output @ self.heads.output_bias
        return Reads(vector, pattern / self.run.scale, constant)
