"""Hierarchical attribution: one pass down the held graph, from the target to the tokens.

`G[pos]`, the derivative of the target with respect to the residual stream, starts where the target
reads and goes down the sublayers. Every node `s` gets its attribution `a_s · (G[pos_s] · write_s)`:
all it contributes along every path that is left. Nodes that the gate stops become leaves, booked as
`pruned`; the others pass on what they read (Ge et al. 2024, 2405.13868, section 4.3, with the gate
on |attribution| by default). The sum of all leaves is the target: identity 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.held import Gate, Gradients, Step, Sublayer
from replacement.target import Target

GateRule = Literal["absolute", "signed"]


@dataclass(frozen=True, eq=False)
class Leaves:
    """Where a swept target comes from in the end; all of it together is the target."""

    token: Float[Tensor, " pos"]
    position: Float[Tensor, " pos"]
    error: Float[Tensor, "sublayer pos"]
    bias: Float[Tensor, "sublayer pos"]
    """Write biases of the sublayer, and the constants its kept nodes read."""
    pruned: Float[Tensor, "sublayer pos"]
    switch: Float[Tensor, "sublayer pos"]
    """Of a contrast: what features that switched on or off made of the difference."""
    target_bias: float

    def total(self) -> float:
        """Return the sum of all leaves."""
        return (
            sum(float(part.sum(dtype=torch.float64)) for part in self._parts()) + self.target_bias
        )

    def magnitude(self) -> float:
        """Return the sum of |leaf|, the scale that deviations are measured against."""
        return sum(float(part.abs().sum()) for part in self._parts()) + abs(self.target_bias)

    def _parts(self) -> tuple[Tensor, ...]:
        return (self.token, self.position, self.error, self.bias, self.pruned, self.switch)


@dataclass(frozen=True, eq=False)
class Sweep:
    """The result of one sweep: attributions, who was kept, and the derivative at every stage."""

    attribution: list[Float[Tensor, " _"]]
    """Per sublayer, in order; every node, kept or not."""
    keep: list[Bool[Tensor, " _"]]
    gradients: list[Gradients]
    """Per sublayer: the derivative of the target at every stage that it writes to."""
    leaves: Leaves
    entering: Float[Tensor, "pos d_model"]
    """The derivative at the embeddings."""

    def kept(self) -> list[Int[Tensor, " _"]]:
        """Return the numbers of the kept nodes of every sublayer."""
        return [keep.nonzero(as_tuple=True)[0] for keep in self.keep]

    def n_kept(self, sublayers: Sequence[Sublayer], *, contract: bool = False) -> int:
        """Return how many nodes were kept by choice (skips, which nothing stops, are not)."""
        count = 0
        for keep, layer in zip(self.keep, sublayers, strict=True):
            always = kept_anyway(layer, contract=contract)
            count += int((keep if always is None else keep & ~always).sum())
        return count


def kept_anyway(layer: Sublayer, *, contract: bool) -> Bool[Tensor, " node"] | None:
    """Return the nodes no threshold stops: skips, and heads where they are no nodes (contract)."""
    if contract and layer.node_kind == "head":
        return torch.ones(layer.n_nodes, dtype=torch.bool, device=layer.error.device)
    return layer.always


def sweep(
    target: Target,
    sublayers: Sequence[Sublayer],
    cutoff: int | float = 0.0,
    *,
    rule: GateRule = "absolute",
    only: Sequence[Bool[Tensor, " _"]] | None = None,
    stops: Sequence[Bool[Tensor, " _"]] | None = None,
    contract: bool = False,
) -> Sweep:
    """Return the attributions of all nodes of a held run to `target`.

    A node passes on what it reads if its attribution is at least `cutoff` (its absolute value under
    the "absolute" rule), or, with `only`, if it is one of the chosen (one mask a sublayer). Nodes
    the target cannot be reached from are never kept. With `contract` every head passes, as for
    direct effects, which have none as nodes. Nodes of `stops` (one mask a sublayer) pass nothing on
    whatever else is asked.
    """
    run = target.run
    steps: list[Step | None] = [None] * len(sublayers)
    written: list[Gradients] = [()] * len(sublayers)
    leaves = _no_leaves(target, len(sublayers))
    gradients = [torch.zeros_like(run.token_writes) for _ in range(sublayers[-1].writes_at + 1)]
    for seed in target.seeds:
        if not seed.front:
            gradients[seed.stage][seed.pos] += seed.vector
    for number in reversed(range(len(sublayers))):
        layer = sublayers[number]
        written[number] = [gradients[stage] for stage in layer.write_stages]
        places = layer.positions()
        strongest_of = [gradient.abs().amax(-1) for gradient in written[number]]
        reached = torch.stack(strongest_of).amax(0) > 0
        always = kept_anyway(layer, contract=contract)
        reached = reached[places]
        if stops is not None:
            reached = reached & ~stops[number]
        gate = _gate(cutoff, rule, None if only is None else only[number], always, reached)
        step = layer.step(written[number], gate)
        steps[number] = step
        gradient = gradients[layer.writes_at]
        if layer.replaces:
            gradients[layer.writes_at] = step.gradient  # nothing passes by it
            for seed in target.seeds_at(layer.writes_at, front=True):
                step.gradient[seed.pos] += seed.vector
        else:
            gradients[layer.before] += gradient  # past it, and through it to what it reads
            gradients[layer.reads_at] += step.gradient
        leaves.error[number] = (gradient * layer.error).sum(-1)
        getattr(leaves, layer.constants_are)[number] = step.constants
        if layer.write_bias is not None:
            leaves.bias[number] += (gradient * layer.write_bias).sum(-1)
        leaves.pruned[number].index_add_(0, places, step.attribution * ~step.keep)
    leaves.token[:] = (gradients[0] * run.token_writes).sum(-1)
    leaves.position[:] = (gradients[0] * run.position_writes).sum(-1)
    done = [step for step in steps if step is not None]
    attribution, keep = [step.attribution for step in done], [step.keep for step in done]
    return Sweep(attribution, keep, written, leaves, gradients[0])


def _gate(
    cutoff: int | float,
    rule: GateRule,
    chosen: Bool[Tensor, " node"] | None,
    always: Bool[Tensor, " node"] | None,
    reached: Bool[Tensor, " node"],
) -> Gate:
    """The rule by which nodes of one sublayer are kept, given their attributions."""

    def keeps(attribution: Float[Tensor, " node"]) -> Bool[Tensor, " node"]:
        strength = attribution.abs() if rule == "absolute" else attribution
        keep = strength >= cutoff if chosen is None else chosen
        return (keep if always is None else keep | always) & reached

    return keeps


def _no_leaves(target: Target, n_sublayers: int) -> Leaves:
    n_pos = len(target.run.tokens)
    nothing = target.run.token_writes.new_zeros
    return Leaves(
        token=nothing(n_pos),
        position=nothing(n_pos),
        error=nothing(n_sublayers, n_pos),
        bias=nothing(n_sublayers, n_pos),
        pruned=nothing(n_sublayers, n_pos),
        switch=nothing(n_sublayers, n_pos),
        target_bias=target.bias,
    )


def cutoff_of(target: Target, ungated: Sweep, threshold: int | float) -> float:
    """Return the attribution below which a sweep stops, for a `threshold` given as a share.

    The share is of max(|target|, 1e-3 · sum of |leaf|), so that a target that happens to be near
    zero does not turn every rounding error into a node.
    """
    return threshold * max(abs(target.value), 1e-3 * ungated.leaves.magnitude())


def strongest(
    ungated: Sweep, sublayers: Sequence[Sublayer], n_nodes: int, *, contract: bool = False
) -> list[Bool[Tensor, " _"]]:
    """Return masks of the `n_nodes` nodes of largest |attribution|, ties in node order."""
    sizes = [len(attribution) for attribution in ungated.attribution]
    strength = torch.cat([attribution.abs() for attribution in ungated.attribution])
    strength = strength * torch.cat(ungated.keep)  # unreachable nodes are not to be chosen,
    for part, layer in zip(strength.split(sizes), sublayers, strict=True):
        always = kept_anyway(layer, contract=contract)
        if always is not None:
            part[always] = 0  # and what is kept anyway takes no place
    top = strength.topk(min(n_nodes, len(strength))).values
    weakest = top[-1] if len(top) else torch.inf
    chosen = strength > weakest
    tied = (strength == weakest).nonzero(as_tuple=True)[0]
    chosen[tied[: n_nodes - int(chosen.sum())]] = weakest > 0
    return list(chosen.split(sizes))


class TracedSweep(NamedTuple):
    """The sweep behind a trace, and what it was chosen by."""

    swept: Sweep
    ungated: Sweep
    cutoff: float


def traced_sweep(
    target: Target,
    threshold: int | float,
    *,
    rule: GateRule,
    limit: int | None,
    contract: bool = False,
    only: Sequence[Bool[Tensor, " _"]] | None = None,
) -> TracedSweep:
    """Return the sweep of a trace: gated at a `threshold` share, through at most `limit` nodes.

    With `only`, through these nodes. The same arguments give the same nodes, so that what a trace
    found can be asked again later.
    """
    sublayers = target.run.sublayers
    ungated = sweep(target, sublayers)
    cutoff = cutoff_of(target, ungated, threshold)
    if only is not None:
        return TracedSweep(sweep(target, sublayers, only=only, contract=contract), ungated, cutoff)
    gated = cutoff > 0 or rule == "signed"
    swept = ungated
    if gated:
        swept = sweep(target, sublayers, cutoff, rule=rule, contract=contract)
    if limit is not None and swept.n_kept(sublayers, contract=contract) > limit:
        only = strongest(ungated, sublayers, limit, contract=contract)
        swept = sweep(target, sublayers, only=only, contract=contract)
    return TracedSweep(swept, ungated, cutoff)
