"""The held linear map of a run: every sublayer as nodes that read and write the residual stream.

With patterns, norm denominators and gates at the run's values each sublayer is affine. `Sublayer`
is the small interface attribution runs on: carry a vector back (`step`), and say what chosen nodes
read and wrote (`reads`, `writes`). Nothing here forms a Jacobian or uses autograd.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import einops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.run import LayerRun, Run
from replacement.weights import LayerWeights

Gate = Callable[[Float[Tensor, " node"]], Bool[Tensor, " node"]]
"""From the attributions of a sublayer's nodes to which of them are kept."""


class Step(NamedTuple):
    """One sublayer of a sweep."""

    attribution: Float[Tensor, " node"]
    keep: Bool[Tensor, " node"]
    gradient: Float[Tensor, "pos d_model"]
    """What the kept nodes add to the derivative at the residual stream they read."""
    constants: Float[Tensor, " pos"]
    """What the kept nodes carry of constants they read: encoder biases, norm bias, value bias."""


class Reads(NamedTuple):
    """How nodes read: `sum over pos of factor[n, pos] · (vector[n] · x[pos]) + constant[n]`."""

    vector: Float[Tensor, "node d_model"]
    factor: Float[Tensor, "node pos"]
    constant: Float[Tensor, " node"]


@dataclass(frozen=True)
class NodeRows:
    """What the nodes of a sublayer are called, one row a node."""

    kind: list[str]
    pos: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    activation: Float[Tensor, " node"]


class Sublayer(abc.ABC):
    """One attention or MLP of a held run."""

    layer: int
    name: str
    """ "attn" or "mlp"."""
    reads_at: int
    """Stage of the residual stream it reads."""
    writes_at: int
    """First stage that holds what it writes."""
    node_kind: str
    """Kind of its nodes (a skip apart)."""
    local: bool
    """True if every node reads its own position only."""
    n_nodes: int
    always: Bool[Tensor, " node"] | None
    """Nodes that no threshold stops (the skip of a transcoder)."""
    output: Float[Tensor, "pos d_model"]
    """All nodes together with the write bias."""
    write_bias: Float[Tensor, " d_model"] | None
    error: Float[Tensor, "pos d_model"]

    @abc.abstractmethod
    def step(self, gradient: Float[Tensor, "pos d_model"], gate: Gate) -> Step:
        """Carry the derivative at the output back to the input through the nodes `gate` keeps."""

    @abc.abstractmethod
    def reads(self, gradient: Float[Tensor, "pos d_model"], nodes: Int[Tensor, " chosen"]) -> Reads:
        """Return how `nodes` read, weighted by what they do to the target (u · gate)."""

    @abc.abstractmethod
    def writes(self, nodes: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen d_model"]:
        """Return the vectors that `nodes` wrote in the run."""

    @abc.abstractmethod
    def rows(self, nodes: Int[Tensor, " chosen"]) -> NodeRows:
        """Return what `nodes` are called."""

    @abc.abstractmethod
    def positions(self) -> Int[Tensor, " node"]:
        """Return the position of every node."""

    @abc.abstractmethod
    def find(self, kind: str, pos: int, index: int) -> int:
        """Return the number of a node among this sublayer's, -1 if it has no such node."""


class HeldAttention(Sublayer):
    """An attention layer as heads, one vector-valued node per position and head."""

    name, node_kind, local = "attn", "head", False
    always = None

    def __init__(self, layer: int, run: LayerRun, weights: LayerWeights) -> None:
        self.layer, self.reads_at, self.writes_at = layer, 2 * layer, 2 * layer + 1
        self.run, self.heads, self.norm = run, weights.heads, weights.attention_norm
        self.n_pos, self.n_heads = run.mixed.shape[:2]
        self.n_nodes = self.n_pos * self.n_heads
        self.output, self.error = run.attention_output, run.attention_error
        self.write_bias = self.heads.output_bias

    def _head_gradient(
        self, gradient: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "pos head d_head"]:
        return einops.rearrange(
            gradient @ self.heads.output.T,
            "pos (head d_head) -> pos head d_head",
            head=self.n_heads,
        )

    @cached_property
    def _constant_values(self) -> Float[Tensor, "head d_head"]:
        """The part of every value vector that no node wrote: norm bias through W_V, and b_V."""
        constant = self.norm.constant(self.heads.value.T)
        if self.heads.value_bias is not None:
            constant = constant + self.heads.value_bias
        return einops.rearrange(constant, "(head d_head) -> head d_head", head=self.n_heads)

    def step(self, gradient: Float[Tensor, "pos d_model"], gate: Gate) -> Step:
        reading = self._head_gradient(gradient)
        attribution = (reading * self.run.mixed).sum(-1).flatten()
        keep = gate(attribution)
        reading = reading * keep.view(self.n_pos, self.n_heads, 1)
        carried = einops.einsum(
            self.run.pattern, reading, "head query key, query head d_head -> key head d_head"
        )
        at_input = einops.rearrange(carried, "key head d_head -> key (head d_head)")
        pulled = self.norm.pull(at_input @ self.heads.value.T) / self.run.attention_scale[:, None]
        per_head = (reading * self._constant_values).sum(-1)
        constants = (per_head * self.run.pattern.sum(-1).T).sum(-1)
        return Step(attribution, keep, pulled, constants)

    def reads(self, gradient: Float[Tensor, "pos d_model"], nodes: Int[Tensor, " chosen"]) -> Reads:
        query, head = nodes // self.n_heads, nodes % self.n_heads
        value, output = self.heads.value_of_head, self.heads.output_of_head
        reading = gradient.new_empty(len(nodes), output.shape[1])
        vector = gradient.new_empty(len(nodes), gradient.shape[-1])
        for number in head.unique().tolist():
            here = head == number
            reading[here] = gradient[query[here]] @ output[number].T
            vector[here] = reading[here] @ value[number].T
        pattern = self.run.pattern[head, query]
        constant = (reading * self._constant_values[head]).sum(-1) * pattern.sum(-1)
        return Reads(self.norm.pull(vector), pattern / self.run.attention_scale, constant)

    def writes(self, nodes: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen d_model"]:
        pos, head = nodes // self.n_heads, nodes % self.n_heads
        mixed = self.run.mixed[pos, head]
        output = self.heads.output_of_head
        written = mixed.new_empty(len(nodes), output.shape[-1])
        for number in head.unique().tolist():
            written[head == number] = mixed[head == number] @ output[number]
        return written

    def rows(self, nodes: Int[Tensor, " chosen"]) -> NodeRows:
        activation = self.writes(nodes).norm(dim=-1)
        kinds = ["head"] * len(nodes)
        return NodeRows(kinds, nodes // self.n_heads, nodes % self.n_heads, activation)

    def positions(self) -> Int[Tensor, " node"]:
        places = torch.arange(self.n_pos, device=self.error.device)
        return places.repeat_interleave(self.n_heads)

    def find(self, kind: str, pos: int, index: int) -> int:
        exists = kind == "head" and 0 <= pos < self.n_pos and 0 <= index < self.n_heads
        return pos * self.n_heads + index if exists else -1


class HeldMLP(Sublayer):
    """An MLP as features (or neurons), followed by one skip node a position where it has a skip."""

    name, local = "mlp", True

    def __init__(self, layer: int, run: LayerRun, weights: LayerWeights) -> None:
        self.layer, self.reads_at, self.writes_at = layer, 2 * layer + 1, 2 * layer + 2
        self.run, self.features, self.norm = run, weights.mlp, weights.mlp_norm
        self.node_kind = self.features.kind
        self.n_pos, self.n_active = run.mlp_error.shape[0], len(run.active)
        self.output, self.error = run.mlp_output, run.mlp_error
        self.write_bias = self.features.write_bias
        self.n_nodes, self.always = self.n_active, None
        if run.skip_output is not None:
            self.n_nodes += self.n_pos
            self.always = torch.zeros(self.n_nodes, dtype=torch.bool, device=self.error.device)
            self.always[self.n_active :] = True

    def step(self, gradient: Float[Tensor, "pos d_model"], gate: Gate) -> Step:
        active, features = self.run.active, self.features
        downstream = active.dots(features.write, gradient)
        attribution = active.activation * downstream
        if self.run.skip_output is not None:
            attribution = torch.cat([attribution, (gradient * self.run.skip_output).sum(-1)])
        keep = gate(attribution)
        coefficient = downstream * active.gate * keep[: self.n_active]
        at_input = active.combine(features.read, coefficient)
        if features.skip is not None:
            at_input = at_input + gradient @ features.skip
        biases = active.combine(features.read_bias[:, None], coefficient).squeeze(-1)
        constants = biases + self.norm.constant(at_input)
        pulled = self.norm.pull(at_input) / self.run.mlp_scale[:, None]
        return Step(attribution, keep, pulled, constants)

    def reads(self, gradient: Float[Tensor, "pos d_model"], nodes: Int[Tensor, " chosen"]) -> Reads:
        active, features = self.run.active, self.features
        pos = self.positions()[nodes]
        at_features = nodes[nodes < self.n_active]
        index, where = active.index[at_features], active.pos[at_features]
        coefficient = (features.write[index] * gradient[where]).sum(-1) * active.gate[at_features]
        vector = gradient.new_zeros(len(nodes), gradient.shape[-1])
        vector[nodes < self.n_active] = coefficient[:, None] * features.read[index]
        bias = gradient.new_zeros(len(nodes))
        bias[nodes < self.n_active] = coefficient * features.read_bias[index]
        if features.skip is not None:
            vector[nodes >= self.n_active] = gradient[pos[nodes >= self.n_active]] @ features.skip
        factor = gradient.new_zeros(len(nodes), self.n_pos)
        factor[torch.arange(len(nodes), device=pos.device), pos] = 1 / self.run.mlp_scale[pos]
        return Reads(self.norm.pull(vector), factor, bias + self.norm.constant(vector))

    def writes(self, nodes: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen d_model"]:
        written = self.error.new_zeros(len(nodes), self.error.shape[-1])
        at_features = nodes[nodes < self.n_active]
        index = self.run.active.index[at_features]
        activation = self.run.active.activation[at_features]
        written[nodes < self.n_active] = activation[:, None] * self.features.write[index]
        if self.run.skip_output is not None:
            at_skips = nodes[nodes >= self.n_active] - self.n_active
            written[nodes >= self.n_active] = self.run.skip_output[at_skips]
        return written

    def positions(self) -> Int[Tensor, " node"]:
        if self.run.skip_output is None:
            return self.run.active.pos
        skips = torch.arange(self.n_pos, device=self.error.device)
        return torch.cat([self.run.active.pos, skips])

    def rows(self, nodes: Int[Tensor, " chosen"]) -> NodeRows:
        active, is_feature = self.run.active, nodes < self.n_active
        kinds = [self.features.kind if feature else "skip" for feature in is_feature.tolist()]
        index = torch.full_like(nodes, -1)
        index[is_feature] = active.index[nodes[is_feature]]
        activation = self.error.new_zeros(len(nodes))
        activation[is_feature] = active.activation[nodes[is_feature]]
        activation[~is_feature] = self.writes(nodes[~is_feature]).norm(dim=-1)
        return NodeRows(kinds, self.positions()[nodes], index, activation)

    def find(self, kind: str, pos: int, index: int) -> int:
        if not 0 <= pos < self.n_pos:
            return -1
        if kind == "skip" and self.run.skip_output is not None:
            return self.n_active + pos
        if kind != self.features.kind:
            return -1
        start, end = self.run.active.offsets[pos : pos + 2].tolist()
        place = torch.searchsorted(self.run.active.index[start:end], index)
        found = int(place) < end - start and int(self.run.active.index[start + place]) == index
        return start + int(place) if found else -1


def held_sublayers(run: Run) -> list[Sublayer]:
    """Return the sublayers of a run in the order they write."""
    sublayers: list[Sublayer] = []
    for number, (layer, block) in enumerate(zip(run.layers, run.weights.layers, strict=True)):
        sublayers.append(HeldAttention(number, layer, block))
        sublayers.append(HeldMLP(number, layer, block))
    return sublayers
