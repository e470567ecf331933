"""MLPs between two runs: one node per feature that is active in either, gates not held."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held import FeatureNodes, Gradients, HeldMLP, Joint, Reads
from replacement.layers import Active, FeatureLayer, GatedNeurons, ReLU, Smooth
from replacement.layers.active import active_from_gates
from replacement.secant.norms import SecantNorm
from replacement.secant.rule import SecantRule, mixed
from replacement.secant.slopes import slope

Two = tuple[Float[Tensor, "pos feature"], Float[Tensor, "pos feature"]]
"""Of the clean run, and of the other."""
Inputs = tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]]


class Change(NamedTuple):
    """Features of two runs: Δa = rate · Δpre (+ gate_rate · Δg) + switched."""

    active: Active
    """Features active in either run; `activation` is Δa, `gate` the rate."""
    switched: Float[Tensor, " node"]
    """What switching on or off made of Δa: the mean pre-activation times Δgate."""
    gate_rate: Float[Tensor, " node"] | None = None
    """Of a gated MLP: how Δa follows the branch that gates."""


def change_of(layer: FeatureLayer, pre: Two) -> Change:
    """Return how features changed, from their pre-activations in the clean and the other run."""
    gates = layer.gate(pre[0]), layer.gate(pre[1])
    on = ((gates[0] != 0) | (gates[1] != 0)).to(pre[0].dtype)
    found = active_from_gates(torch.ones_like(on), on, dense=layer.activation.dense)
    worth, rate, switched = (part[found.pos, found.index] for part in _parts(layer, pre, gates))
    return Change(replace(found, activation=worth, gate=rate), switched)


def change_of_active(layer: FeatureLayer, normed: Inputs, active: tuple[Active, Active]) -> Change:
    """Return the same from what the features read, and which of them were active in each run.

    Only pre-activations of features that were active in either are computed.
    """
    width = active[0].n_features
    keys = [one.pos * width + one.index for one in active]
    either = torch.cat(keys).unique()
    pos, index = either // width, either % width
    bounds = torch.arange(active[0].n_pos + 1, device=pos.device)
    nothing = normed[0].new_zeros(len(either))
    found = Active(index, torch.searchsorted(pos, bounds), nothing, nothing, width, dense=False)
    pre = [found.dots(layer.read, y) + layer.read_bias[index] for y in normed]
    gates = [
        nothing.index_put((torch.searchsorted(either, key),), one.gate)
        for key, one in zip(keys, active, strict=True)
    ]
    worth, rate, switched = _parts(layer, (pre[0], pre[1]), (gates[0], gates[1]))
    return Change(replace(found, activation=worth, gate=rate), switched)


def _parts(
    layer: FeatureLayer, pre: tuple[Tensor, Tensor], gates: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Δa, its rate and what switching made of it.

    An elementwise activation has a slope; one that switches is a gate times the pre-activation,
    split by the product rule with means.
    """
    worth = gates[0] * pre[0] - gates[1] * pre[1]
    if isinstance(layer.activation, ReLU | Smooth):
        return worth, slope(layer.activation, *pre), torch.zeros_like(worth)
    switched = mixed(pre[0], pre[1], 0.5) * (gates[0] - gates[1])
    return worth, mixed(gates[0], gates[1], 0.5), switched


def gated_change_of(layer: GatedNeurons, pre: Two, branch: Two, rule: SecantRule) -> Change:
    """Return how the neurons of a gated MLP changed; `branch`: what its activation acts on."""
    gates = [layer.activation.gate(one) * one for one in branch]
    worth = (gates[0] * pre[0] - gates[1] * pre[1]).flatten()
    rate = mixed(gates[0], gates[1], rule.gated).flatten()
    lean = mixed(pre[0], pre[1], 1 - rule.gated) * slope(layer.activation, *branch)
    on = torch.ones_like(pre[0])
    found = active_from_gates(on, on, dense=True)
    active = Active(found.index, found.offsets, worth, rate, found.n_features, True)
    return Change(active, torch.zeros_like(worth), lean.flatten())


def largest_rate(change: Change) -> float:
    """Return the largest |rate| at which a feature passes a difference on."""
    return float(change.active.gate.abs().max()) if len(change.active) else 0.0


class SecantMLP(HeldMLP):
    """An MLP between two runs; its nodes read the difference of the normed stream."""

    constants_are = "switch"

    def __init__(
        self,
        layer: int,
        features: FeatureLayer,
        change: Change,
        entrance: SecantNorm,
        joints: Sequence[Joint],
        stages: tuple[int, tuple[int, ...]],
        written: tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]],
        skip_output: Float[Tensor, "pos d_model"] | None,
    ) -> None:
        """`stages`: read and written ones; `written`: Δoutput and Δerror."""
        FeatureNodes.__init__(self, layer, change.active, features, joints, *written)
        self.reads_at, self.write_stages = stages
        self.change, self.entrance = change, entrance
        self._with_skip(skip_output)

    def _carry_kept(
        self, downstream: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        active, features = self.active, self.features
        at_input = active.combine(features.read, downstream * active.gate)
        if self.change.gate_rate is not None:
            assert isinstance(features, GatedNeurons)
            at_input += active.combine(features.gate_read, downstream * self.change.gate_rate)
        return self._pulled(at_input), active.sum_by_pos(downstream * self.change.switched)

    def _pulled(self, at_input: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        return self.entrance.back(at_input)

    def _constant(self, at_input: Float[Tensor, "node d_model"]) -> Float[Tensor, " node"]:
        return at_input.new_zeros(len(at_input))  # biases make no difference

    def _of_features(
        self, gradients: Gradients, nodes: Int[Tensor, " chosen"]
    ) -> tuple[Float[Tensor, "chosen d_model"], Float[Tensor, " chosen"]]:
        active, features, index = self.active, self.features, self.active.index[nodes]
        passed = self._downstream(gradients, nodes)
        read = (passed * active.gate[nodes])[:, None] * features.read[index]
        if self.change.gate_rate is not None:
            assert isinstance(features, GatedNeurons)
            rate = passed * self.change.gate_rate[nodes]
            read = read + rate[:, None] * features.gate_read[index]
        return read, passed * self.change.switched[nodes]

    def _local(
        self,
        vector: Float[Tensor, "node d_model"],
        pos: Int[Tensor, " node"],
        bias: Float[Tensor, " node"],
    ) -> Reads:
        factor = vector.new_zeros(len(vector), 1, self.n_pos)
        factor[torch.arange(len(vector), device=pos.device), 0, pos] = 1
        return Reads(self.entrance.back_at(vector, pos)[:, None], factor, bias, "mlp")
