"""An MLP as features or neurons, its skip beside them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held.features import HeldFeatures
from replacement.held.passing import Cone, Passage, Scratch
from replacement.held.sublayer import Gate, Gradients, Joint, NodeRows, Reads, Step
from replacement.layer_run import LayerRun, MLPRun
from replacement.layers import Active, FeatureLayer, HalvedActive, HalvedNeurons
from replacement.norms import Norm
from replacement.weights import LayerWeights


class SkipPassage(Passage):
    """The skip of a transcoder: a linear map at every position, norms folded in."""

    spreads = False

    def __init__(
        self, skip: Float[Tensor, "d_model d_model"], run: MLPRun, norm: Norm, joint: Joint
    ) -> None:
        written = skip.T if joint.norm is None else joint.norm.unscaled(skip.T)
        self.matrix = norm.pull(written.T).contiguous()
        self.factor = 1 / run.scale
        if joint.norm is not None and joint.scale is not None:
            self.factor = self.factor / joint.scale
        constant = skip @ norm.bias if norm.bias is not None else torch.zeros_like(skip[0])
        where = torch.arange(len(run.scale), device=skip.device)
        self.constant = joint.forward(constant.expand_as(run.error), where)

    def back(
        self,
        gradient: Float[Tensor, "row d_model"],
        cones: Sequence[Cone],
        onto: Float[Tensor, "row d_model"],
        scratch: Scratch,
    ) -> None:
        carried = scratch.take("carried", *gradient.shape)
        torch.mm(gradient, self.matrix, out=carried)
        end = 0
        for n_targets, n_pos in cones:
            start, end = end, end + n_targets * n_pos
            part = carried[start:end].view(n_targets, n_pos, -1)
            part *= self.factor[:n_pos, None]
        onto += carried

    def first(
        self,
        gradient: Float[Tensor, "target d_model"],
        cones: Sequence[Cone],
        onto: Float[Tensor, "row d_model"],
    ) -> None:
        places = [n_pos - 1 for n_targets, n_pos in cones for _ in range(n_targets)]
        onto += (gradient @ self.matrix) * self.factor[places, None]

    def ahead(
        self, written: Float[Tensor, "row d_model"], pos: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_model"]:
        """Return what vectors written at positions add there: `back`, transposed."""
        return (written @ self.matrix.T) * self.factor[pos, None]


class HeldMLP(HeldFeatures):
    """An MLP as features (or neurons), followed by one skip node a position where it has a skip.

    Features of a cross-layer transcoder write to later MLPs' outputs too, each through its joint.
    """

    name, local = "mlp", True

    def __init__(
        self, layer: int, runs: Sequence[LayerRun], weights: Sequence[LayerWeights]
    ) -> None:
        """`runs`, `weights`: of all layers."""
        run, block = runs[layer].mlp, weights[layer]
        reached = range(layer, layer + block.mlp.n_targets)
        joints = [
            Joint(weights[other].mlp_writes_through, runs[other].mlp.post_scale)
            for other in reached
        ]
        super().__init__(layer, run, run.active, block.mlp, joints)
        self.reads_at = 2 * layer if block.parallel else 2 * layer + 1
        self.write_stages = tuple(2 * other + 2 for other in reached)
        self.run, self.scale, self.norm = run, run.scale, block.mlp_reads_through
        self._with_skip(run.skip_output)

    def _with_skip(self, skip_output: Float[Tensor, "pos d_model"] | None) -> None:
        """Add a skip node a position where there is a skip."""
        self.skip_output = skip_output
        if skip_output is not None:
            self.n_nodes += self.n_pos
            self.always = torch.zeros(self.n_nodes, dtype=torch.bool, device=self.error.device)
            self.always[self.n_active :] = True

    def step(self, gradients: Gradients, gate: Gate) -> Step:
        if self.skip_output is None:
            return super().step(gradients, gate)
        assert self.features.skip is not None
        at_output = self.joints[0].back(gradients[0])
        skipped = (at_output * self.skip_output).sum(-1)
        whole: list[Tensor] = []

        def of_features(attribution: Float[Tensor, " active"]) -> Tensor:
            whole.append(torch.cat([attribution, skipped]))
            whole.append(gate(whole[0]))
            return whole[1][: self.n_active]

        step = super().step(gradients, of_features)
        passed = whole[1][self.n_active :, None]
        around = (at_output * passed) @ self.features.skip
        carried = step.gradient + self._pulled(around)
        constants = step.constants + self._constant(around)
        return Step(whole[0], whole[1], carried, constants)

    def _pulled(self, at_input: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """The derivative at the stream from that at what features read."""
        return self.norm.pull(at_input) / self.scale[:, None]

    def _constant(self, at_input: Float[Tensor, "node d_model"]) -> Float[Tensor, " node"]:
        """What vectors that read as features do get that no node wrote."""
        return self.norm.constant(at_input)

    def _carry(
        self, coefficient: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        at_input = self.active.combine(self.features.read, coefficient)
        biases = self.active.combine(self.features.read_bias[:, None], coefficient).squeeze(-1)
        return self._pulled(at_input), biases + self._constant(at_input)

    def reads(self, gradients: Gradients, nodes: Int[Tensor, " chosen"]) -> Reads:
        is_feature, pos = nodes < self.n_active, self.positions()[nodes]
        vector = gradients[0].new_empty(len(nodes), self.error.shape[-1])
        bias = vector.new_zeros(len(nodes))
        vector[is_feature], bias[is_feature] = self._of_features(gradients, nodes[is_feature])
        if self.features.skip is not None:
            around = self.joints[0].back(gradients[0])[pos[~is_feature]]
            vector[~is_feature] = around @ self.features.skip
        return self._local(vector, pos, bias)

    def _of_features(
        self, gradients: Gradients, nodes: Int[Tensor, " chosen"]
    ) -> tuple[Float[Tensor, "chosen d_model"], Float[Tensor, " chosen"]]:
        """What chosen features read of the normed stream, and from no node."""
        index, coefficient = self.active.index[nodes], self.coefficients(gradients, nodes)
        read = coefficient[:, None] * self.features.read[index]
        return read, coefficient * self.features.read_bias[index]

    def _reads(
        self,
        coefficient: Float[Tensor, " node"],
        pos: Int[Tensor, " node"],
        index: Int[Tensor, " node"],
    ) -> Reads:
        vector = coefficient[:, None] * self.features.read[index]
        return self._local(vector, pos, coefficient * self.features.read_bias[index])

    def _local(
        self,
        vector: Float[Tensor, "node d_model"],
        pos: Int[Tensor, " node"],
        bias: Float[Tensor, " node"],
    ) -> Reads:
        """Reads at one position each."""
        factor = vector.new_zeros(len(vector), 1, self.n_pos)
        rows = torch.arange(len(vector), device=pos.device)
        factor[rows, 0, pos] = 1 / self.scale[pos]
        return Reads(self.norm.pull(vector)[:, None], factor, bias + self._constant(vector))

    def writes(self, nodes: Int[Tensor, " chosen"], stage: int) -> Float[Tensor, "chosen d_model"]:
        is_feature = nodes < self.n_active
        if self.skip_output is None or bool(is_feature.all()):
            return super().writes(nodes, stage)
        written = self.error.new_zeros(len(nodes), self.error.shape[-1])
        written[is_feature] = super().writes(nodes[is_feature], stage)
        if stage == self.writes_at:  # a skip goes around its own layer only
            places = nodes[~is_feature] - self.n_active
            written[~is_feature] = self.joints[0].forward(self.skip_output[places], places)
        return written

    def passage(self) -> SkipPassage | None:
        if self.features.skip is None:
            return None
        return SkipPassage(self.features.skip, self.run, self.norm, self.joints[0])

    def positions(self) -> Int[Tensor, " node"]:
        if self.skip_output is None:
            return self.active.pos
        skips = torch.arange(self.n_pos, device=self.error.device)
        return torch.cat([self.active.pos, skips])

    def rows(self, nodes: Int[Tensor, " chosen"]) -> NodeRows:
        if self.skip_output is None:
            return super().rows(nodes)
        is_feature = nodes < self.n_active
        kinds = [self.node_kind if feature else "skip" for feature in is_feature.tolist()]
        index = torch.full_like(nodes, -1)
        index[is_feature] = self.active.index[nodes[is_feature]]
        activation = self.error.new_zeros(len(nodes))
        activation[is_feature] = self.active.activation[nodes[is_feature]]
        activation[~is_feature] = self.writes(nodes[~is_feature], self.writes_at).norm(dim=-1)
        return NodeRows(kinds, self.positions()[nodes], index, activation)

    def find(self, kind: str, pos: int, index: int) -> int:
        if kind == "skip" and self.skip_output is not None and 0 <= pos < self.n_pos:
            return self.n_active + pos
        return super().find(kind, pos, index)


class HeldHalves(HeldMLP):
    """A gated MLP as neurons that read through both branches, half of the product through each."""

    def _carry_kept(
        self, downstream: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        active, features = halved(self.active, self.features)
        carried, constants = super()._carry_kept(downstream)
        coefficient = downstream * active.other_gate
        at_input = active.combine(features.gate_read, coefficient)
        biases = active.combine(features.gate_bias[:, None], coefficient).squeeze(-1)
        constants = constants + biases + self.norm.constant(at_input)
        return carried + self._pulled(at_input), constants

    def _of_features(
        self, gradients: Gradients, nodes: Int[Tensor, " chosen"]
    ) -> tuple[Float[Tensor, "chosen d_model"], Float[Tensor, " chosen"]]:
        features, index = halved(self.active, self.features)[1], self.active.index[nodes]
        read, bias = super()._of_features(gradients, nodes)
        other = self.other_coefficients(gradients, nodes)
        read = read + other[:, None] * features.gate_read[index]
        return read, bias + other * features.gate_bias[index]

    def other_coefficients(
        self, gradients: Gradients, nodes: Int[Tensor, " chosen"]
    ) -> Float[Tensor, " chosen"]:
        """Return u · gate of chosen neurons as they read through the other branch."""
        active, _ = halved(self.active, self.features)
        return self._downstream(gradients, nodes) * active.other_gate[nodes]


def halved(active: Active, features: FeatureLayer) -> tuple[HalvedActive, HalvedNeurons]:
    """Return both as what they are in an MLP whose products are halved."""
    assert isinstance(active, HalvedActive) and isinstance(features, HalvedNeurons)
    return active, features
