"""All of it for one task: traced over prompts, the fewest parts chosen, tested on others."""

from dataclasses import dataclass

import pandas as pd

from benchmarks.role_circuits.asking import Asked, ask
from benchmarks.role_circuits.keeping import Kept, Part, keep, smallest, strongest_nodes
from benchmarks.role_circuits.naming import heads_named, promoted_by
from circuits import AverageCircuit, trace_many
from replacement.model import ReplacementModel

CHOSEN_BY = 8
"""Prompts by which the size of a circuit is chosen."""
NAMED = 16
"""Parts, strongest first, whose heads are named."""


@dataclass(frozen=True, eq=False)
class Found:
    """A task's circuit."""

    written: AverageCircuit
    """What wrote the answer, patterns held: the mean over prompts."""
    changed: AverageCircuit
    """What made it differ from the counterfactual, through queries and keys too."""
    parts: list[Part]
    """The circuit: the fewest of the strongest parts of both that keep the metric."""
    kept: Kept
    """What is left with only these, on prompts that chose nothing."""
    heads: pd.DataFrame
    neurons: pd.DataFrame


def averages(asked: list[Asked], *, max_nodes: int = 1000) -> tuple[AverageCircuit, AverageCircuit]:
    """Return two mean circuits of prompts: of each run, and of its contrast."""
    roles = {id(one.run): one.roles for one in asked}
    written = trace_many(
        (one.target for one in asked),
        roles=lambda run: roles[id(run)],
        threshold=1e-5,
        max_nodes=max_nodes,
        progress=False,
    )
    changed = trace_many(
        (one.difference for one in asked),
        roles=lambda pair: roles[id(pair.clean)],
        threshold=1e-5,
        max_nodes=max_nodes,
        progress=False,
    )
    return written, changed


def find(
    model: ReplacementModel,
    task: str,
    prompts: int = 24,
    *,
    seed: int = 0,
    published: bool = False,
) -> Found:
    """Return a task's circuit in a model; arguments and errors as of `ask`.

    Prompts that are traced, give the means that other nodes are set to, choose the size, and give
    the figures are different ones, but for the traced ones, which are part of the means as well.
    """
    asked = ask(model, task, 3 * prompts + CHOSEN_BY, seed=seed, published=published)
    traced, means = asked[:prompts], asked[: 2 * prompts]
    choosing, fresh = asked[2 * prompts : -prompts], asked[-prompts:]
    written, changed = averages(traced)
    order = list(strongest_nodes(written, changed))
    parts = smallest(order, choosing, means)
    (kept,) = keep(fresh, means, [parts])
    heads = heads_named(fresh, means, parts[:NAMED])
    return Found(written, changed, parts, kept, heads, promoted_by(model, parts))
