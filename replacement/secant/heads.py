"""Attention between two runs as heads, or as features of its output: values, queries and keys move.

`Δ(pattern · value) = p̃·Δv + ṽ·Δp`. A head's difference comes by three ways, v, q and k, each an
edge of its own.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.families import HeadWeights
from replacement.held import FeatureNodes, Gate, Gradients, HeadNodes, Joint, Step
from replacement.layers import AttentionSAE
from replacement.secant.looking import SecantLook, secant_look
from replacement.secant.mlp import Change
from replacement.secant.norms import SecantNorm
from replacement.secant.rule import SecantRule, mixed

Pair = tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]]


@dataclass(frozen=True, eq=False)
class SecantHeads:
    """What readers of heads' outputs read of the difference of the layer's input."""

    weights: HeadWeights
    entrance: SecantNorm
    look: SecantLook
    pattern: Float[Tensor, "head query key"]
    """p̃."""
    value: Float[Tensor, "key head d_head"]
    """ṽ, one row a head."""
    made: tuple[Float[Tensor, "query head d_head"], Float[Tensor, "query head d_head"]]
    """What every head mixed in each run."""

    @cached_property
    def mixed(self) -> Float[Tensor, "query head d_head"]:
        """Δ of what every head mixes."""
        return self.made[0] - self.made[1]

    def carry(self, reading: Float[Tensor, "query head d_head"]) -> Float[Tensor, "pos d_model"]:
        """Return the derivative at the stream from that at what the heads mix."""
        by_head = reading.transpose(0, 1)  # head query d_head
        at_values = self.pattern.transpose(1, 2) @ by_head  # head key d_head
        if self.weights.group > 1:
            at_values = at_values.unflatten(0, (-1, self.weights.group)).sum(1)
        at_input = at_values.transpose(0, 1).flatten(1) @ self.weights.value.T
        at_patterns = by_head @ self.value.permute(1, 2, 0)  # head query key
        at_input = at_input + self.look.back(self.look.at_scores(at_patterns))
        return self.entrance.back(at_input)


def secant_heads(
    weights: HeadWeights, entrance: SecantNorm, normed: Pair, rule: SecantRule
) -> SecantHeads:
    """Return the secant of a layer's heads between two runs' normed inputs."""
    look = secant_look(weights.query_key, *normed, rule)
    values = [weights.values(y).repeat_interleave(weights.group, dim=-2) for y in normed]
    made = [weights.mix(pattern, y) for pattern, y in zip(look.pattern, normed, strict=True)]
    return SecantHeads(
        weights,
        entrance,
        look,
        mixed(*look.pattern, rule.pattern_value),
        mixed(values[0], values[1], 1 - rule.pattern_value),
        (made[0], made[1]),
    )


@dataclass(frozen=True, eq=False)
class HeadReader:
    """How nodes at queries read through heads, by way of v, q and k."""

    heads: SecantHeads
    query: Int[Tensor, " node"]
    reading: Float[Tensor, "node head d_head"]
    """What each node reads of what each head mixes."""
    constant: Float[Tensor, " node"]

    def products(
        self, vectors: Float[Tensor, "writer d_model"], pos: Int[Tensor, " writer"]
    ) -> dict[str, Float[Tensor, "node writer"]]:
        """Return what nodes get of each difference written at its position, by its way."""
        heads, look = self.heads, self.heads.look
        normed = heads.entrance.forward(vectors, pos)
        values = (normed @ heads.weights.value).unflatten(-1, (heads.weights.n_value_heads, -1))
        asked, offered = look.query.forward(normed, pos), look.key.forward(normed, pos)
        found = {way: self.reading.new_zeros(len(self.query), len(pos)) for way in "vqk"}
        here = self.query[:, None] == pos
        for head in self.reading.any(-1).any(0).nonzero().flatten().tolist():
            reading, key_head = self.reading[:, head], head // look.group
            by_value = reading @ values[:, head // heads.weights.group].T
            found["v"] += by_value * heads.pattern[head, self.query][:, pos]
            at_scores = look.at_scores_of(head, self.query, reading @ heads.value[:, head].T)
            at_query = at_scores @ look.key.mean[key_head]
            found["q"] += (at_query @ asked[head].T) * here
            by_key = look.query.mean[head, self.query] @ offered[key_head].T
            found["k"] += by_key * at_scores[:, pos]
        return found


class SecantHeadNodes(HeadNodes):
    """An attention layer between two runs, one vector-valued node per position and head."""

    constants_are = "switch"
    looks = True

    def __init__(
        self,
        layer: int,
        heads: SecantHeads,
        joint: Joint,
        written: tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]],
    ) -> None:
        """`written`: Δoutput and Δerror."""
        super().__init__(layer, heads.weights, heads.mixed, joint, *written)
        self.heads, self.write_bias = heads, None

    @property
    def look(self) -> SecantLook:
        return self.heads.look

    @property
    def entrance(self) -> SecantNorm:
        return self.heads.entrance

    def _reading(self, gradients: Gradients) -> Float[Tensor, "pos head d_head"]:
        at_output = self.joint.back(gradients[0]) @ self.heads.weights.output.T
        return at_output.unflatten(-1, (self.n_heads, -1))

    def step(self, gradients: Gradients, gate: Gate) -> Step:
        reading = self._reading(gradients)
        attribution = (reading * self.heads.mixed).sum(-1).flatten()
        keep = gate(attribution)
        carried = self.heads.carry(reading * keep.view(self.n_pos, self.n_heads, 1))
        return Step(attribution, keep, carried, carried.new_zeros(self.n_pos))

    def reads(self, gradients: Gradients, nodes: Int[Tensor, " chosen"]) -> HeadReader:
        query, head = nodes // self.n_heads, nodes % self.n_heads
        reading = self.error.new_zeros(len(nodes), self.n_heads, self.heads.mixed.shape[-1])
        rows = torch.arange(len(nodes), device=nodes.device)
        reading[rows, head] = self._reading(gradients)[query, head]
        return HeadReader(self.heads, query, reading, reading.new_zeros(len(nodes)))


class SecantAttentionSAE(FeatureNodes):
    """An attention layer between two runs as features of its output."""

    name, local = "attn", False
    constants_are = "switch"
    looks = True

    def __init__(
        self,
        layer: int,
        sae: AttentionSAE,
        change: Change,
        heads: SecantHeads,
        joint: Joint,
        written: tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]],
    ) -> None:
        """`written`: Δoutput and Δerror."""
        super().__init__(layer, change.active, sae, [joint], *written)
        self.reads_at, self.write_stages = 2 * layer, (2 * layer + 1,)
        self.change, self.heads = change, heads

    def _reading(
        self, at_output: Float[Tensor, "node d_model"]
    ) -> Float[Tensor, "node head d_head"]:
        weights = self.heads.weights
        return (at_output @ weights.output.T).unflatten(-1, (weights.n_heads, -1))

    def _carry_kept(
        self, downstream: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        at_output = self.active.combine(self.features.read, downstream * self.active.gate)
        switched = self.active.sum_by_pos(downstream * self.change.switched)
        return self.heads.carry(self._reading(at_output)), switched

    def reads(self, gradients: Gradients, nodes: Int[Tensor, " chosen"]) -> HeadReader:
        index, pos = self.active.index[nodes], self.active.pos[nodes]
        passed = (self.features.write[index] * self._at_outputs(gradients)[pos]).sum(-1)
        at_output = (passed * self.active.gate[nodes])[:, None] * self.features.read[index]
        switched = passed * self.change.switched[nodes]
        return HeadReader(self.heads, pos, self._reading(at_output), switched)

    @property
    def look(self) -> SecantLook:
        return self.heads.look

    @property
    def entrance(self) -> SecantNorm:
        return self.heads.entrance

    def pre_activation(self, pos: int, index: int) -> Float[Tensor, "pos d_model"]:
        """Return how the difference of a feature's pre-activation reads that of the stream."""
        at_output = torch.zeros_like(self.error)
        at_output[pos] = self.features.read[index]
        return self.heads.carry(self._reading(at_output))
