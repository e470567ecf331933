"""The small interface attribution runs on: carry a vector back, say what nodes read and wrote."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.held.passing import Passage
from replacement.norms import Norm

Gradients = Sequence[Float[Tensor, "pos d_model"]]
"""The derivative of the target at every stage that a sublayer writes to."""
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


@dataclass(frozen=True)
class Joint:
    """How what a sublayer writes joins the residual stream: as it is, or through a held norm."""

    norm: Norm | None
    scale: Float[Tensor, " pos"] | None

    def back(self, gradient: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """Return the derivative at what the sublayer wrote, from that at the stream."""
        if self.norm is None or self.scale is None:
            return gradient
        return self.norm.pull(gradient) / self.scale[:, None]

    def forward(
        self, written: Float[Tensor, "node d_model"], pos: Int[Tensor, " node"]
    ) -> Float[Tensor, "node d_model"]:
        """Return what written vectors add to the stream at their positions."""
        if self.norm is None or self.scale is None:
            return written
        return self.norm.held(written, self.scale[pos])

    def bias(
        self, bias: Float[Tensor, " d_model"] | None, like: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "pos d_model"] | None:
        """Return what a constant write adds at every position, the norm's own bias included."""
        every = None if bias is None else bias.expand_as(like)
        if self.norm is None or self.scale is None:
            return every
        if every is not None:
            every = self.norm.held(every, self.scale)
        if self.norm.bias is None:
            return every
        own = self.norm.bias.expand_as(like)
        return own if every is None else every + own


class Reads(NamedTuple):
    """How nodes read: `sum over part, pos of factor · (vector[part] · x[pos]) + constant`.

    One part, except where a node reads through several heads.
    """

    vector: Float[Tensor, "node part d_model"]
    factor: Float[Tensor, "node part pos"]
    constant: Float[Tensor, " node"]
    via: str = "residual"

    def products(
        self, vectors: Float[Tensor, "writer d_model"], pos: Int[Tensor, " writer"]
    ) -> dict[str, Float[Tensor, "node writer"]]:
        """Return what nodes get of each vector at its position, by what carries it."""
        vector, factor = self.vector.unbind(1), self.factor.unbind(1)
        total = (vector[0] @ vectors.T).mul_(factor[0][:, pos])
        for part, weight in zip(vector[1:], factor[1:], strict=True):
            total += (part @ vectors.T).mul_(weight[:, pos])
        return {self.via: total}


@runtime_checkable
class Reader(Protocol):
    """What flow edges are made of: how nodes read whatever was written."""

    @property
    def constant(self) -> Float[Tensor, " node"]:
        """What nodes read that no node wrote."""
        ...

    def products(
        self, vectors: Float[Tensor, "writer d_model"], pos: Int[Tensor, " writer"]
    ) -> dict[str, Float[Tensor, "node writer"]]:
        """Return what nodes get of each vector at its position, by what carries it."""
        ...


@dataclass(frozen=True)
class NodeRows:
    """What the nodes of a sublayer are called, one row a node."""

    kind: list[str]
    pos: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    activation: Float[Tensor, " node"]


class Sublayer(abc.ABC):
    """One attention or MLP of a held run, or the residual stream of one stage read as features."""

    layer: int
    name: str
    """ "attn", "mlp", or of the stream "resid" (entering the layer) or "mid" (entering its MLP)."""
    reads_at: int
    """Stage of the residual stream it reads."""
    write_stages: tuple[int, ...]
    """Stages that hold what its nodes write: its own, and for cross-layer features later ones."""
    replaces: bool = False
    """True if the stream behind it is what it wrote, not that added to the stream before."""
    node_kind: str
    """Kind of its nodes (a skip apart)."""
    local: bool
    """True if every node reads its own position only."""
    dense: bool
    """True where every node is active at every position."""
    n_nodes: int
    looks: bool = False
    """True where patterns move too: what is written comes by queries, keys and values."""
    constants_are: Literal["bias", "switch"] = "bias"
    """What the constants are that its nodes read: of one run biases, of two what was switched."""
    always: Bool[Tensor, " node"] | None
    """Nodes that no threshold stops (the skip of a transcoder)."""
    output: Float[Tensor, "pos d_model"]
    """All nodes together with the write bias."""
    write_bias: Float[Tensor, "pos d_model"] | None
    """What it adds at every position whatever is active."""
    error: Float[Tensor, "pos d_model"]

    @property
    def writes_at(self) -> int:
        """First stage that holds what it writes."""
        return self.write_stages[0]

    @property
    def before(self) -> int:
        """The stage whose stream it adds to, or replaces."""
        return self.writes_at if self.replaces else self.writes_at - 1

    @abc.abstractmethod
    def step(self, gradients: Gradients, gate: Gate) -> Step:
        """Carry the derivative at what was written back to the input through the nodes kept."""

    @abc.abstractmethod
    def reads(self, gradients: Gradients, nodes: Int[Tensor, " chosen"]) -> Reader:
        """Return how `nodes` read, weighted by what they do to the target (u · gate)."""

    @abc.abstractmethod
    def writes(self, nodes: Int[Tensor, " chosen"], stage: int) -> Float[Tensor, "chosen d_model"]:
        """Return the vectors that `nodes` added in the run at one of the `write_stages`."""

    def written(
        self, nodes: Int[Tensor, " chosen"], stages: Sequence[int]
    ) -> Float[Tensor, "chosen d_model"]:
        """Return all that `nodes` added to the residual stream at some of the `write_stages`."""
        parts = [self.writes(nodes, stage) for stage in stages]
        return torch.stack(parts).sum(0) if len(parts) != 1 else parts[0]

    def passage(self) -> Passage | None:
        """Return what it carries of cotangents without stopping at a node; None for nothing."""
        return None

    @abc.abstractmethod
    def rows(self, nodes: Int[Tensor, " chosen"]) -> NodeRows:
        """Return what `nodes` are called."""

    @abc.abstractmethod
    def positions(self) -> Int[Tensor, " node"]:
        """Return the position of every node."""

    @abc.abstractmethod
    def find(self, kind: str, pos: int, index: int) -> int:
        """Return the number of a node among this sublayer's, -1 if it has no such node."""
