"""`python -m benchmarks.truth`: do the traces find the edges of models whose circuit is known?

Every program plain, by every rule for products, and in a random basis, without and with dummy
parts, by three of them, and all by published methods; scores against the effects of exhaustive
single-edge patching.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.four_tasks.folder import write_json
from benchmarks.scores import TIES
from benchmarks.speed.machine import machine_facts
from benchmarks.truth.measure import (
    FEW,
    RULES,
    TOLERANCE,
    VARIANTS,
    Measured,
    flows_by_method,
    measured,
    rows_of,
)
from benchmarks.truth.others import METHODS
from benchmarks.truth.programs import GROUPS

SHOWN = ("contrast qk 0.75 pv 0.25", *METHODS)
"""Methods whose scores of every edge are written."""


def main(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON file; a CSV of that name gets the rows.")
    ],
    only: Annotated[list[str] | None, typer.Option(help="Programs; all if not given.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs of prompts a program.")] = 10,
    seed: Annotated[int, typer.Option(help="Of prompts, bases and dummies.")] = 0,
) -> None:
    """Measure every program, print the tables, and write every row and what is true."""
    machine = machine_facts()
    rows, truths = [], {}
    cases = [
        (group, recipe, name)
        for group, recipes in GROUPS.items()
        for recipe in recipes
        if not only or recipe.name in only
        for name in VARIANTS
    ]
    for group, recipe, name in tqdm(cases):
        of = measured(recipe.build(**VARIANTS[name], seed=seed, count=pairs))
        case = {"group": group, "program": recipe.name, "variant": name}
        rules = RULES if name == "plain" else FEW
        flows = flows_by_method(of, rules)
        rows += [{**case, **row.as_data()} for row in rows_of(of, flows)]
        if name == "plain":
            scores = {one: scored_edges(of, flows[one]) for one in SHOWN}
            truths[recipe.name] = {"group": group, **edges_by_truth(of), "scores": scores}
    chosen = "".join(f" --only {name}" for name in only or [])
    command = f"python -m benchmarks.truth{chosen} --pairs {pairs} --seed {seed} -o {output.name}"
    facts = {
        "command": command,
        "machine": machine,
        "tolerance": TOLERANCE,
        "ties": TIES,
        "truths": truths,
    }
    write_json(output, facts)
    table = pd.DataFrame(rows)
    table.to_csv(output.with_suffix(".csv"), index=False)
    typer.echo(report(table))


def edges_by_truth(of: Measured) -> dict[str, list[str]]:
    """Return the edges that a program's wiring uses, and those that each kind of cut shows."""
    named = {"wiring": of.declared, **of.truths}
    return {
        name: [str(edge) for edge, true in zip(of.components.edges, truth, strict=True) if true]
        for name, truth in named.items()
    }


def scored_edges(of: Measured, flows: Float[Tensor, "pair edge"]) -> dict[str, float]:
    """Return the edges that score above the tolerance for ties, each by its share of the most."""
    scores = flows.abs().mean(0)
    shares = zip(of.components.edges, (scores / scores.max()).tolist(), strict=True)
    return {str(edge): float(f"{share:.3g}") for edge, share in shares if share > TIES}


def report(table: pd.DataFrame) -> str:
    """Return two tables of the worst over variants: by group of programs, and by program."""
    by_group = table.pivot_table(
        index=["method", "truth"],
        columns="group",
        values=["roc_auc", "pessimistic_area", "least_true", "agreement"],
        aggfunc="min",
        sort=False,
    )
    by_program = table.pivot_table(
        index="program",
        columns=["truth", "method"],
        values="pessimistic_area",
        aggfunc="min",
        sort=False,
    )
    shown = (
        ("worst over programs and variants", by_group.T),
        ("pessimistic area, worst over variants", by_program.T),
    )
    return "\n\n".join(f"{name}\n{one.to_string(float_format='%.3g')}" for name, one in shown)


if __name__ == "__main__":
    typer.run(main)
