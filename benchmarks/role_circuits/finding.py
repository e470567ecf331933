"""All of it for one task: traced over prompts, the fewest parts chosen, tested on others."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.role_circuits.asking import Asked, ask
from benchmarks.role_circuits.keeping import (
    Kept,
    Part,
    keep,
    means_over,
    smallest,
    strongest_nodes,
)
from benchmarks.role_circuits.naming import heads_named, promoted_by
from circuits import AverageCircuit, trace_many
from circuits.contrasting import contrasted
from replacement.model import ReplacementModel
from replacement.target import Target

NAMED = 16
"""Parts, strongest first, whose heads are named."""


@dataclass(frozen=True, eq=False)
class Found:
    """A task's circuit."""

    written: AverageCircuit
    """What wrote the answer, patterns held: the mean over prompts."""
    changed: AverageCircuit
    """What made it differ from the counterfactual, through queries and keys too."""
    apart: AverageCircuit | None
    """Likewise from another prompt of the task, where most words are others: what has to be there
    and is the same in the counterfactual, as the token that is asked about. None where no two
    prompts have one length."""
    parts: list[Part]
    """The circuit: the fewest of the strongest parts of these that keep the metric."""
    kept: Kept
    """What is left with only these, on prompts that chose nothing."""
    heads: pd.DataFrame
    neurons: pd.DataFrame


def averages(
    asked: Sequence[Asked], *, max_nodes: int = 1000
) -> tuple[AverageCircuit, AverageCircuit, AverageCircuit | None]:
    """Return mean circuits of prompts: of runs, of contrasts, and of contrasts with each other."""
    roles = {id(one.run): one.roles for one in asked}

    def mean(targets: Sequence[Target]) -> AverageCircuit:
        return trace_many(
            targets,
            roles=lambda run: roles[id(getattr(run, "clean", run))],
            threshold=1e-5,
            max_nodes=max_nodes,
            progress=False,
        )

    others = [_other_prompt(number, asked) for number in range(len(asked))]
    apart = [
        contrasted(one.target, other.run)
        for one, other in zip(asked, others, strict=True)
        if other is not None
    ]
    written, changed = mean([one.target for one in asked]), mean([one.difference for one in asked])
    return written, changed, mean(apart) if apart else None


def find(
    model: ReplacementModel,
    task: str,
    prompts: int = 24,
    *,
    seed: int = 0,
    published: bool = False,
) -> Found:
    """Return a task's circuit in a model; arguments and errors as of `ask`.

    `prompts` are traced, twice as many others choose the size, and as many others again give the
    figures; what other nodes are set to are means over the first two.
    """
    asked = ask(model, task, 5 * prompts, seed=seed, published=published)
    traced, choosing, fresh = asked[:prompts], asked[prompts : 3 * prompts], asked[3 * prompts :]
    means = means_over([*traced, *choosing])
    written, changed, apart = averages(traced)
    order = list(strongest_nodes(*filter(None, (written, changed, apart))))
    parts = smallest(order, choosing, means)
    (kept,) = keep(fresh, means, [parts])
    heads = heads_named(fresh, means, parts[:NAMED])
    return Found(written, changed, apart, parts, kept, heads, promoted_by(model, parts))


def _other_prompt(number: int, asked: Sequence[Asked]) -> Asked | None:
    """The next prompt of the same length, all in a circle."""
    length = len(asked[number].run.tokens)
    later = [*asked[number + 1 :], *asked[:number]]
    return next((one for one in later if len(one.run.tokens) == length), None)
