"""What edits of a held run do to a target, by sweeps: Σ Δa · u, clamped nodes being stops."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution.sweep import Sweep, sweep
from replacement.edits import Change, Changes, Node, changes_of, recorded
from replacement.edits.node import SOURCES
from replacement.held import FeatureNodes, HeldHeads, Sublayer
from replacement.run import Run
from replacement.target import Target


def predicted_changes(
    target: Target,
    rows: Sequence[Sequence[object]],
    keep: Sequence[Bool[Tensor, " _"]] | None = None,
) -> Float[Tensor, " row"]:
    """Return the change of a target under each of several lists of edits, everything held.

    One sweep a list: nodes that are clamped (`Set`, `Scale`, `Ablate`) pass nothing on, and what
    they differ from the run by is multiplied by the derivative of the target; nodes that are added
    to pass on. Nodes outside `keep` (one mask a sublayer) react to nothing. Exact: what
    `run.edited(edits, "held")` measures. Raises as `run.edited`, and ValueError for clamped
    patterns, in which the held run is not linear together with other edits.

    >>> from circuits import Node, Scale, load
    >>> run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    >>> target, edits = run.logit(" Mary"), [Scale(Node("error", 1, "mlp", 14), 0.5)]
    >>> change = run.edited(edits, "held").value(target) - target.value
    >>> bool(abs(predicted_changes(target, [edits])[0] - change) < 1e-3)
    True
    """
    run = target.run
    made = [_one_row(target, changes_of(run, [edits]), keep) for edits in rows]
    return torch.stack(made) if made else run.next_logits.new_zeros(0)


@torch.no_grad()
def _one_row(
    target: Target, changes: Changes, keep: Sequence[Bool[Tensor, " _"]] | None
) -> Float[Tensor, ""]:
    run: Run = target.run
    if changes.patterns:
        raise ValueError(
            "predicted_changes: patterns that are clamped multiply what other edits change, so no "
            'sum predicts them. Measure them: run.edited(edits, "held").'
        )
    stops = [_stops(layer, changes) for layer in run.sublayers]
    swept = sweep(target, run.sublayers, only=keep, stops=stops)
    total = run.next_logits.new_zeros(())
    for (layer, sublayer, part), change in changes.parts.items():
        if part in SOURCES:
            derivative = swept.entering[change.pos]
        else:
            place = run.place(layer, sublayer)
            derivative = _derivative(run.sublayers[place], swept, place, part, change)
        kind = part if part != "nodes" else run.sublayer(layer, sublayer).node_kind
        places = zip(change.pos.tolist(), change.index.tolist(), strict=True)
        was = [recorded(run, Node(kind, layer, sublayer, pos, index)) for pos, index in places]
        before, width = torch.stack(was), (-1,) + (1,) * (change.value.dim() - 1)
        difference = change.value + (change.factor.view(width) - 1) * before
        total = total + (difference * derivative).sum()
    return total


def _stops(layer: Sublayer, changes: Changes) -> Bool[Tensor, " node"]:
    """The nodes of the run that are clamped."""
    mask = torch.zeros(layer.n_nodes, dtype=torch.bool, device=layer.error.device)
    for part, change in changes.of(layer.layer, layer.name).items():
        if part == "error":
            continue
        kind = "skip" if part == "skip" else layer.node_kind
        for pos, index, factor in zip(
            change.pos.tolist(), change.index.tolist(), change.factor.tolist(), strict=True
        ):
            number = layer.find(kind, pos, index)
            if factor == 0 and number >= 0:
                mask[number] = True
    return mask


def _derivative(
    layer: Sublayer, swept: Sweep, place: int, part: str, change: Change
) -> Float[Tensor, "change *width"]:
    """The derivative of the target at what nodes are, active or not."""
    gradients = swept.gradients[place]
    if isinstance(layer, HeldHeads):
        at_output = layer.joint.back(gradients[0])
        if part == "error":
            return at_output[change.pos]
        return layer.held.reading(at_output)[change.pos, change.index]
    assert isinstance(layer, FeatureNodes)
    at_outputs = [joint.back(one) for joint, one in zip(layer.joints, gradients, strict=True)]
    if part != "nodes":
        return at_outputs[0][change.pos]
    vectors = torch.cat(at_outputs, dim=-1)[change.pos]
    return (layer.features.write[change.index] * vectors).sum(-1)
