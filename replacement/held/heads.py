"""Attention as the model's own heads, their patterns held."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.families.family import HeadWeights
from replacement.held.passing import Cone, LowRank, Passage, Scratch
from replacement.held.sublayer import Gate, Gradients, Joint, NodeRows, Reads, Step, Sublayer
from replacement.layer_run import AttentionRun
from replacement.norms import Norm
from replacement.weights import LayerWeights


class HeldPatterns:
    """What vectors that read heads' outputs read of the layer's input, patterns held."""

    def __init__(self, run: AttentionRun, heads: HeadWeights, norm: Norm) -> None:
        self.run, self.heads, self.norm = run, heads, norm

    def reading(
        self, gradient: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch head d_head"]:
        """Return what a gradient at attention's output reads of every head's mixed values."""
        return (gradient @ self.heads.output.T).unflatten(-1, (self.heads.n_heads, -1))

    @cached_property
    def constant_values(self) -> Float[Tensor, "head d_head"]:
        """The part of every value vector that no node wrote: norm bias through W_V, and b_V."""
        constant = self.norm.constant(self.heads.value.T)
        if self.heads.value_bias is not None:
            constant = constant + self.heads.value_bias
        by_value_head = constant.unflatten(0, (self.heads.n_value_heads, -1))
        return by_value_head.repeat_interleave(self.heads.group, dim=0)

    def carry(
        self, reading: Float[Tensor, "pos head d_head"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        """Return the gradient at the residual stream, and what is read of constants, by query."""
        carried = einops.einsum(
            self.run.pattern, reading, "head query key, query head d_head -> key head d_head"
        )
        if self.heads.group > 1:
            carried = carried.unflatten(1, (self.heads.n_value_heads, -1)).sum(2)
        at_input = einops.rearrange(carried, "key head d_head -> key (head d_head)")
        pulled = self.norm.pull(at_input @ self.heads.value.T) / self.run.scale[:, None]
        per_head = (reading * self.constant_values).sum(-1)
        return pulled, (per_head * self.run.pattern.sum(-1).T).sum(-1)

    def value_vectors(
        self, reading: Float[Tensor, "node d_head"], head: int
    ) -> Float[Tensor, "node d_model"]:
        """Return how readings of one head's mixed values read attention's input."""
        return reading @ self.heads.value_of_head[head // self.heads.group].T


def times_of_head(
    rows: Float[Tensor, "node read"],
    head: Int[Tensor, " node"],
    tables: Float[Tensor, "head read made"],
) -> Float[Tensor, "node made"]:
    """Return every row times the table of its head."""
    order, counts = head.argsort(stable=True), head.bincount(minlength=len(tables)).tolist()
    made = rows.new_empty(len(rows), tables.shape[-1])
    parts = zip(rows[order].split(counts), tables, made.split(counts), strict=True)
    for some, table, into in parts:
        if len(some):
            torch.mm(some, table, out=into)
    return torch.empty_like(made).index_copy_(0, order, made)


def _mix(
    weight: Float[Tensor, "value_head group query key"],
    read: Float[Tensor, "target query value_head group d_head"],
    into: Float[Tensor, "target key value_head d_head"],
    scratch: Scratch,
) -> None:
    """Put what is read of heads' outputs, times their weights, into what is read of their values.

    Target by target, since no head's part of one has to be copied for a product.
    """
    _, n_keys, n_values, width = into.shape
    by_key = weight.permute(0, 3, 1, 2).flatten(2)
    made = scratch.take("mixed by head", n_values, n_keys, width)
    for one, there in zip(read, into, strict=True):
        torch.bmm(by_key, one.permute(1, 2, 0, 3).flatten(1, 2), out=made)
        there.copy_(made.transpose(0, 1))


class HeadPassage(Passage):
    """Attention as the model's own heads: `Σ_h A[h, query, key] · W_O^h W_V^h`, norms folded in."""

    spreads = True

    def __init__(self, held: HeldPatterns, joint: Joint) -> None:
        self.run, heads = held.run, held.heads
        self.n_value_heads, self.group = heads.n_value_heads, heads.group
        self.heads, self.norm, self.post_norm = heads, held.norm, joint.norm
        self.post_scale = None if joint.norm is None else joint.scale
        mixed = self.run.pattern.sum(-1).T[:, :, None] * held.constant_values
        where = torch.arange(len(mixed), device=mixed.device)
        self.constant = joint.forward(mixed.flatten(1) @ heads.output, where)

    @property
    def reading(self) -> Float[Tensor, "d_model mixed"]:
        """W_O, with the gain of a norm behind it: made anew each time, since a copy for every layer
        weighs more than all that a batch takes."""
        heads, norm = self.heads, self.post_norm
        return (heads.output if norm is None else norm.unscaled(heads.output)).T

    @property
    def value(self) -> Float[Tensor, "values d_model"]:
        """W_V, with the gain and centring of the norm in front."""
        return self.norm.pull(self.heads.value.T)

    def pattern(self, n_pos: int) -> Float[Tensor, "value_head group query key"]:
        """Return the first positions' pattern over the denominators of the norms around it."""
        factor = self.run.pattern[:, :n_pos, :n_pos] / self.run.scale[:n_pos]
        if self.post_scale is not None:
            factor = factor / self.post_scale[:n_pos, None]
        return factor.unflatten(0, (self.n_value_heads, self.group))

    def back(
        self,
        gradient: Float[Tensor, "row d_model"] | LowRank,
        cones: Sequence[Cone],
        onto: Float[Tensor, "row d_model"],
        scratch: Scratch,
    ) -> None:
        onto.addmm_(self.at_values(gradient, cones, scratch), self.value)

    def at_values(
        self,
        gradient: Float[Tensor, "row d_model"] | LowRank,
        cones: Sequence[Cone],
        scratch: Scratch,
    ) -> Float[Tensor, "row values"]:
        """Return what cotangents read of the values at every key; of few vectors only these are
        multiplied with W_O."""
        pattern = self.pattern(max(n_pos for _, n_pos in cones))
        sizes = [n_targets * n_pos for n_targets, n_pos in cones]
        weights = [pattern[..., :n_pos, :n_pos] for _, n_pos in cones]
        if isinstance(gradient, LowRank):
            weights = [part @ one for part, one in zip(gradient.factors, weights, strict=True)]
            reads = (gradient.vector @ self.reading).split([one.n_targets for one in cones])
        else:
            reading = scratch.take("reading", len(gradient), self.heads.output.shape[0])
            parts = torch.mm(gradient, self.reading, out=reading).split(sizes)
            reads = [part.view(*cone, -1) for part, cone in zip(parts, cones, strict=True)]
        mixed = scratch.take("mixed", sum(sizes), self.heads.value.shape[1])
        places = zip(cones, weights, reads, mixed.split(sizes), strict=True)
        for cone, weight, read, into in places:
            by_head = read.unflatten(-1, (self.n_value_heads, self.group, -1))
            _mix(weight, by_head, into.view(*cone, self.n_value_heads, -1), scratch)
        return mixed

    def first(
        self,
        gradient: Float[Tensor, "target d_model"],
        cones: Sequence[Cone],
        onto: Float[Tensor, "row d_model"],
    ) -> LowRank:
        n_targets, width = gradient.shape
        read = (gradient @ self.reading).view(n_targets, self.n_value_heads, self.group, -1)
        by_head = read.permute(1, 2, 0, 3).flatten(1, 2)
        value = self.value.unflatten(0, (self.n_value_heads, -1))
        vectors = torch.bmm(by_head, value).view(self.n_value_heads, self.group, n_targets, width)
        vectors = vectors.permute(2, 0, 1, 3).flatten(1, 2)  # [target, head, d_model]
        pattern = self.pattern(max(n_pos for _, n_pos in cones))
        target, end, factors = 0, 0, []
        for count, n_pos in cones:
            start, end = end, end + count * n_pos
            factor = pattern[:, :, n_pos - 1, :n_pos].flatten(0, 1)
            into = onto[start:end].view(count, n_pos, width)
            into.baddbmm_(factor.T.expand(count, -1, -1), vectors[target : target + count])
            target += count
            own = factor.new_zeros(1, n_pos)
            own[0, -1] = 1
            factors.append(torch.cat([own, factor]))
        return LowRank(torch.cat([gradient[:, None], vectors], dim=1), factors)

    def mixed(
        self, gradient: Float[Tensor, "target pos d_model"]
    ) -> Float[Tensor, "target pos head d_head"]:
        """Return what a cotangent reads of every head's values at every key."""
        read = (gradient @ self.reading).unflatten(-1, (self.n_value_heads, self.group, -1))
        pattern = self.pattern(gradient.shape[1])
        return torch.einsum("vgqk,bqvgd->bkvgd", pattern, read).flatten(2, 3)

    def values(self, written: Float[Tensor, "row d_model"]) -> Float[Tensor, "row head d_head"]:
        """Return the values that written vectors become, less the denominator."""
        values = (written @ self.value.T).unflatten(-1, (self.n_value_heads, -1))
        return values.repeat_interleave(self.group, dim=1)

    def ahead(
        self, written: Float[Tensor, "row d_model"], pos: Int[Tensor, " row"]
    ) -> Iterator[Float[Tensor, "seen d_model"]]:
        """Yield, query by query, what vectors written up to there add there: `back`, transposed.

        `pos` is sorted, so that a query sees the first ones.
        """
        values, output = self.values(written), self.reading.T
        pattern = self.pattern(len(self.run.scale)).flatten(0, 1)
        ends = torch.searchsorted(
            pos, torch.arange(pattern.shape[1], device=pos.device), right=True
        )
        for query, end in enumerate(ends.tolist()):
            factor = pattern[:, query, pos[:end]].T[..., None]
            yield (factor * values[:end]).flatten(1) @ output


class HeadNodes(Sublayer):
    """Heads as vector-valued nodes, one per position and head, of one run or of two."""

    name, node_kind, local, dense = "attn", "head", False, False
    always = None

    def __init__(
        self,
        layer: int,
        weights: HeadWeights,
        mixed: Float[Tensor, "pos head d_head"],
        joint: Joint,
        output: Float[Tensor, "pos d_model"],
        error: Float[Tensor, "pos d_model"],
    ) -> None:
        """`mixed`: what every head adds before W_O."""
        self.layer, self.reads_at, self.write_stages = layer, 2 * layer, (2 * layer + 1,)
        self.head_weights, self.mixed, self.joint = weights, mixed, joint
        self.n_pos, self.n_heads = mixed.shape[:2]
        self.n_nodes = self.n_pos * self.n_heads
        self.output, self.error = output, error

    def writes(self, nodes: Int[Tensor, " chosen"], stage: int) -> Float[Tensor, "chosen d_model"]:
        assert stage == self.writes_at, "heads write to one stage"
        pos, head = nodes // self.n_heads, nodes % self.n_heads
        written = times_of_head(self.mixed[pos, head], head, self.head_weights.output_of_head)
        return self.joint.forward(written, pos)

    def rows(self, nodes: Int[Tensor, " chosen"]) -> NodeRows:
        activation = self.writes(nodes, self.writes_at).norm(dim=-1)
        kinds = ["head"] * len(nodes)
        return NodeRows(kinds, nodes // self.n_heads, nodes % self.n_heads, activation)

    def positions(self) -> Int[Tensor, " node"]:
        places = torch.arange(self.n_pos, device=self.error.device)
        return places.repeat_interleave(self.n_heads)

    def find(self, kind: str, pos: int, index: int) -> int:
        exists = kind == "head" and 0 <= pos < self.n_pos and 0 <= index < self.n_heads
        return pos * self.n_heads + index if exists else -1


class HeldHeads(HeadNodes):
    """An attention layer as heads, one vector-valued node per position and head."""

    def __init__(self, layer: int, run: AttentionRun, weights: LayerWeights) -> None:
        assert run.mixed is not None, "heads are nodes, so their values were recorded"
        joint = Joint(weights.attention_writes_through, run.post_scale)
        super().__init__(layer, weights.heads, run.mixed, joint, run.output, run.error)
        self.run, self.held = run, HeldPatterns(run, weights.heads, weights.attention_norm)
        self.write_bias = joint.bias(weights.heads.output_bias, run.error)

    def step(self, gradients: Gradients, gate: Gate) -> Step:
        reading = self.held.reading(self.joint.back(gradients[0]))
        attribution = (reading * self.mixed).sum(-1).flatten()
        keep = gate(attribution)
        carried, constants = self.held.carry(reading * keep.view(self.n_pos, self.n_heads, 1))
        return Step(attribution, keep, carried, constants)

    def reads(self, gradients: Gradients, nodes: Int[Tensor, " chosen"]) -> Reads:
        query, head = nodes // self.n_heads, nodes % self.n_heads
        weights, gradient = self.head_weights, self.joint.back(gradients[0])
        reading = times_of_head(gradient[query], head, weights.output_of_head.mT)
        of_values = weights.value_of_head.mT
        vector = self.held.norm.pull(times_of_head(reading, head // weights.group, of_values))
        pattern = self.run.pattern[head, query]
        constant = (reading * self.held.constant_values[head]).sum(-1) * pattern.sum(-1)
        return Reads(vector[:, None], (pattern / self.run.scale)[:, None], constant)

    def passage(self) -> HeadPassage:
        return HeadPassage(self.held, self.joint)
