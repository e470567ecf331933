"""Sublayers read as features: one scalar node per active feature, its gate held."""

import abc
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held.sublayer import Gate, Gradients, Joint, NodeRows, Reads, Step, Sublayer
from replacement.layer_run import AttentionRun, MLPRun, StreamRun
from replacement.layers import Active, FeatureLayer


class FeatureNodes(Sublayer):
    """What all sublayers of features share, of one run or of two; how they read differs."""

    always = None

    def __init__(
        self,
        layer: int,
        active: Active,
        features: FeatureLayer,
        joints: Sequence[Joint],
        output: Float[Tensor, "pos d_model"],
        error: Float[Tensor, "pos d_model"],
    ) -> None:
        """`joints`: how what the features write joins the stream, one for each stage."""
        self.layer, self.active, self.features = layer, active, features
        self.node_kind, self.dense = features.kind, active.dense
        self.n_pos = active.n_pos
        self.n_nodes = self.n_active = len(active)
        self.output, self.error = output, error
        self.joints = joints
        self.write_bias = joints[0].bias(features.write_bias, error)

    def step(self, gradients: Gradients, gate: Gate) -> Step:
        downstream = self.active.dots(self.features.write, self._at_outputs(gradients))
        attribution = self.active.activation * downstream
        keep = gate(attribution)
        return Step(attribution, keep, *self._carry_kept(downstream * keep))

    @abc.abstractmethod
    def _carry_kept(
        self, downstream: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        """The gradient at the stream and the constants read, from u of the features kept."""

    def _at_outputs(self, gradients: Gradients) -> Float[Tensor, "pos target_times_d_model"]:
        """The derivative at what the features write, all sublayers they write to side by side."""
        parts = [joint.back(one) for joint, one in zip(self.joints, gradients, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _downstream(
        self, gradients: Gradients, nodes: Int[Tensor, " chosen"]
    ) -> Float[Tensor, " chosen"]:
        """u of chosen features."""
        rows, at_output = self.features.write[self.active.index[nodes]], self._at_outputs(gradients)
        return (rows * at_output[self.active.pos[nodes]]).sum(-1)

    def writes(self, nodes: Int[Tensor, " chosen"], stage: int) -> Float[Tensor, "chosen d_model"]:
        which, pos = self.write_stages.index(stage), self.active.pos[nodes]
        written = self.features.write_to(which).index_select(0, self.active.index[nodes])
        written *= self.active.activation[nodes, None]
        return self.joints[which].forward(written, pos)

    def positions(self) -> Int[Tensor, " node"]:
        return self.active.pos

    def rows(self, nodes: Int[Tensor, " chosen"]) -> NodeRows:
        active = self.active
        kinds = [self.node_kind] * len(nodes)
        return NodeRows(kinds, active.pos[nodes], active.index[nodes], active.activation[nodes])

    def find(self, kind: str, pos: int, index: int) -> int:
        if not 0 <= pos < self.n_pos or kind != self.node_kind:
            return -1
        start, end = self.active.offsets[pos : pos + 2].tolist()
        place = torch.searchsorted(self.active.index[start:end], index)
        found = int(place) < end - start and int(self.active.index[start + place]) == index
        return start + int(place) if found else -1


class HeldFeatures(FeatureNodes):
    """Features of one run, whose gates are held."""

    def __init__(
        self,
        layer: int,
        run: AttentionRun | MLPRun | StreamRun,
        active: Active,
        features: FeatureLayer,
        joints: Sequence[Joint],
    ) -> None:
        """`joints`: how what the features write joins the stream, one for each stage."""
        super().__init__(layer, active, features, joints, run.output, run.error)

    def _carry_kept(
        self, downstream: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        return self._carry(downstream * self.active.gate)

    @abc.abstractmethod
    def _carry(
        self,
        coefficient: Float[Tensor, " active"],
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        """The gradient at the stream and the constants read, from u · gate of every feature."""

    @abc.abstractmethod
    def _reads(
        self,
        coefficient: Float[Tensor, " node"],
        pos: Int[Tensor, " node"],
        index: Int[Tensor, " node"],
    ) -> Reads:
        """How features at positions read, active or not, times `coefficient`."""

    def reads(self, gradients: Gradients, nodes: Int[Tensor, " chosen"]) -> Reads:
        coefficient = self.coefficients(gradients, nodes)
        return self._reads(coefficient, self.active.pos[nodes], self.active.index[nodes])

    def reads_of(self, pos: Int[Tensor, " node"], index: Int[Tensor, " node"]) -> Reads:
        """Return how features read at positions, active or not: their pre-activations."""
        return self._reads(self.error.new_ones(len(pos)), pos, index)

    def coefficients(
        self, gradients: Gradients, nodes: Int[Tensor, " chosen"]
    ) -> Float[Tensor, " chosen"]:
        """Return u · gate of chosen features."""
        return self._downstream(gradients, nodes) * self.active.gate[nodes]
