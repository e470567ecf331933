"""What nodes outside a circuit are set to: zero, their mean over prompts, or another run's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.edits.keeping import Part, Values, mean_values, values_of
from replacement.run import Run

KINDS = ("zero", "mean", "resample")


@dataclass(frozen=True, eq=False)
class Ablation:
    """Where reference values come from, checked; `reference_of` takes them for a run."""

    kind: str
    means: Mapping[Part, Float[Tensor, "slot _ ..."]] = field(default_factory=dict)
    slots: Int[Tensor, " pos"] | None = None
    """The slot of every position of the circuit's prompt."""


def ablation_of(run: Run, prompts: Any, ablate: Any, roles: Any) -> Ablation:
    """Return how nodes of a run are ablated; see `Circuit.faithfulness`.

    Raises TypeError or ValueError for prompts, a kind of ablation or roles that do not fit.
    """
    kind = ("zero" if prompts is None else "mean") if ablate is None else ablate
    if kind not in KINDS:
        raise ValueError(f'circuit.faithfulness(ablate={ablate!r}): "mean", "resample" or "zero".')
    if kind == "zero":
        if prompts is not None:
            raise ValueError(
                'circuit.faithfulness(ablate="zero") needs no prompts; leave them out.'
            )
        return Ablation(kind)
    if prompts is None:
        wanted = "a list of prompts to take the mean over" if kind == "mean" else "another prompt"
        raise ValueError(f'circuit.faithfulness(ablate="{kind}"): give prompts=, {wanted}.')
    if kind == "resample":
        other = _run_of(run, prompts)
        if len(other.tokens) != len(run.tokens):
            raise ValueError(
                f'circuit.faithfulness(ablate="resample"): the other prompt has '
                f"{len(other.tokens)} tokens, this one {len(run.tokens)}. Give one of equal length."
            )
        return Ablation(kind, values_of(other), _by_index(run))
    if isinstance(prompts, str | Run) or not isinstance(prompts, Sequence) or not prompts:
        raise ValueError(
            f"circuit.faithfulness(prompts={prompts!r:.60}): a mean is over a list of prompts or "
            "runs, one at least."
        )
    runs = [_run_of(run, prompt) for prompt in prompts]
    slots, n_slots = _slots([run, *runs], roles)
    with torch.no_grad():
        means, count = mean_values(zip(runs, slots[1:], strict=True), n_slots)
    if not bool((count[slots[0]] > 0).all()):
        raise ValueError(
            "circuit.faithfulness(roles=...): this prompt has positions without a name, and no "
            "prompt of the mean has. Name all that matters in each."
        )
    return Ablation(kind, means, slots[0])


def reference_of(run: Run, ablation: Ablation) -> Values:
    """Return what the nodes of a run are set to where they are not kept.

    Raises ValueError for a run of another length than the circuit's.
    """
    if ablation.slots is None:
        return {part: torch.zeros_like(one) for part, one in values_of(run).items()}
    if len(ablation.slots) != len(run.tokens):
        raise ValueError(
            f"circuit.faithfulness(on=...): a target's prompt has {len(run.tokens)} tokens, the "
            f"circuit's {len(ablation.slots)}. Positions are aligned by index: give targets of "
            "prompts of equal length."
        )
    return {part: one[ablation.slots] for part, one in ablation.means.items()}


def _run_of(run: Run, prompt: Any) -> Run:
    if not isinstance(prompt, Run):
        return run.model.run(prompt, errors=run.errors)
    if prompt.model is not run.model or prompt.errors != run.errors:
        raise ValueError(
            f"circuit.faithfulness(prompts=...): {prompt!r:.80} is of another model or kind. Make "
            "it by circuit.model.run(...), with errors= as in the circuit."
        )
    return prompt


def _by_index(run: Run) -> Int[Tensor, " pos"]:
    return torch.arange(len(run.tokens), device=run.next_logits.device)


def _slots(runs: Sequence[Run], roles: Any) -> tuple[list[Tensor], int]:
    """The slot of each position of each run: its index, or its role; the rest share one slot."""
    lengths = {len(run.tokens) for run in runs}
    if roles is None:
        if len(lengths) > 1:
            raise ValueError(
                f"circuit.faithfulness(prompts=...): prompts of {sorted(lengths)} tokens, so that "
                "positions do not correspond by index. Give prompts of equal length, or roles=, "
                "one mapping from name to position for the circuit's prompt and for each other."
            )
        return [_by_index(run) for run in runs], len(runs[0].tokens)
    if not isinstance(roles, Sequence) or len(roles) != len(runs):
        raise ValueError(
            f"circuit.faithfulness(roles=...): {len(runs)} mappings are needed, that of the "
            "circuit's prompt first, then one for each of prompts."
        )
    names = list(roles[0])
    slots = []
    for run, named in zip(runs, roles, strict=True):
        if not isinstance(named, Mapping) or set(named) != set(names):
            raise ValueError(
                f"circuit.faithfulness(roles=...): every mapping needs the names {names!r}; got "
                f"{named!r:.80}."
            )
        slot = torch.full((len(run.tokens),), len(names), device=run.next_logits.device)
        for number, name in enumerate(names):
            slot[_position(run, named[name])] = number
        slots.append(slot)
    return slots, len(names) + 1


def _position(run: Run, pos: Any) -> int:
    count = len(run.tokens)
    if not isinstance(pos, int) or not -count <= pos < count:
        raise ValueError(
            f"circuit.faithfulness(roles=...): position {pos!r} is outside a prompt of {count} "
            "tokens."
        )
    return pos % count
