"""Run a prompt under edits: everything held, patterns held, or the real model free to react."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.edits.changes import Changes, changes_of
from replacement.edits.edit import Ablate, Scale
from replacement.edits.held import HeldStreams, Keep, held_logits, held_streams
from replacement.edits.live import LiveEdits
from replacement.edits.measuring import measured, stages_of
from replacement.edits.node import Node, number_of
from replacement.run import Run
from replacement.target import Target

Mode = Literal["held", "patterns", "free"]


@dataclass(frozen=True, eq=False)
class EditedRun:
    """What became of a run under edits. Made by `run.edited`."""

    run: Run
    """The run without edits."""
    mode: Mode
    streams: Any
    """The residual stream of every stage."""
    make_logits: Callable[[], Float[Tensor, "pos d_vocab"]]

    @cached_property
    def logits(self) -> Float[Tensor, "pos d_vocab"]:
        """The model's at every position; with everything held, before any soft-cap."""
        return self.make_logits()

    def value(self, target: Target) -> float:
        """Return what a target of the run is under the edits.

        Raises ValueError for a target of another run.
        """
        if target.run is not self.run:
            raise ValueError(
                f"{target.label} belongs to another run than the one edited. Make it from the run "
                "whose edited() this is."
            )
        if isinstance(self.streams, HeldStreams):
            return float(self.streams.value(target))
        held = self.run if self.mode == "patterns" else None
        return float(measured(target, self.streams, held))

    def __repr__(self) -> str:
        return f"EditedRun({self.mode}, {len(self.run.tokens)} tokens: {self.run.prompt!r})"


@torch.no_grad()
def edited_run(run: Run, edits: Any, mode: Any) -> EditedRun:
    """Return a run under edits; see `Run.edited`."""
    if mode not in get_args(Mode):
        raise ValueError(
            f'run.edited(mode={mode!r}): "held" (patterns, norms and gates), "patterns", or "free".'
        )
    if not isinstance(edits, Sequence) or isinstance(edits, str):
        raise TypeError(
            f"run.edited takes a list of edits; got {type(edits).__name__}: {edits!r:.60}. For "
            "instance [Scale(node, 0)]."
        )
    changes, last = changes_of(run, [edits]), 2 * run.weights.n_layers
    if mode == "held":
        streams = held_streams(run, changes, set(range(last + 1)))
        return EditedRun(
            run, mode, streams, lambda: held_logits(run, streams)[0] if edits else run.logits
        )
    held = run if mode == "patterns" and edits else None
    stages = {
        *range(last + 1),
        *((stage // 2, ("resid", "mid")[stage % 2]) for stage in run.streams),
    }
    done = run.model.tracer.run_edited(
        run.token_ids.to(run.next_logits.device)[None],
        LiveEdits(run.weights, run.errors, changes, patterns_of=held).substitutes(),
        stages,
    )
    unembedded, next_logits = done.unembedded[0], done.next_logits[0]
    return EditedRun(
        run, mode, done.streams, lambda: run.model.tracer.logits(unembedded, next_logits)
    )


@torch.no_grad()
def held_values(target: Target, changes: Changes, keep: Keep | None = None) -> Tensor:
    """Return a target under each row of changes, everything held; nodes outside `keep` clamped."""
    stages = {seed.stage for seed in target.seeds}
    return held_streams(target.run, changes, stages, keep).value(target)


@torch.no_grad()
def live_values(target: Target, changes: Changes, *, patterns: bool = False) -> Tensor:
    """Return a target under each row of changes in the real model, its patterns held or not."""
    run, held = target.run, target.run if patterns else None
    done = run.model.tracer.run_edited(
        run.token_ids.to(run.next_logits.device).expand(changes.n_rows, -1),
        LiveEdits(run.weights, run.errors, changes, patterns_of=held).substitutes(),
        stages_of(target),
    )
    return measured(target, done.streams, held)


def held_knock_outs(target: Target, keep: Keep, nodes: Sequence[Node]) -> Float[Tensor, " batch"]:
    """Return the target's value with each node taken out, one at a time, everything held.

    Scales, patterns and gates are those of the run; nodes outside `keep` (one mask a sublayer) keep
    writing what they wrote in the run; kept ones react linearly. Raises ValueError for a node that
    the run does not have.
    """
    if not nodes:
        return target.run.next_logits.new_zeros(0)
    return held_values(target, _knocked(target.run, nodes), keep)


def free_knock_outs(target: Target, nodes: Sequence[Node]) -> Float[Tensor, " batch"]:
    """Return the target as the real model gives it with each node set to 0, one at a time.

    Nothing is held: what the node wrote is taken out of its sublayer's output (or the embedding)
    and the model computes the rest. Raises ValueError for a node that the run does not have.
    """
    if not nodes:
        return target.run.next_logits.new_zeros(0)
    return live_values(target, _knocked(target.run, nodes))


def _knocked(run: Run, nodes: Sequence[Node]) -> Changes:
    for node in nodes:
        if node.kind not in ("token", "position", "error"):
            number_of(run.sublayer(node.layer, node.sublayer), node)
    return changes_of(run, [[Scale(node, 0.0)] for node in nodes])


def patches(target: Target, other: Run, nodes: Sequence[Node]) -> Float[Tensor, " batch"]:
    """Return the target of the real model with each node set to what it was in another run."""
    if not nodes:
        return target.run.next_logits.new_zeros(0)
    return live_values(target, changes_of(target.run, [[Ablate(node, other)] for node in nodes]))
