"""`python -m benchmarks [TASK …]`: known circuits by every method, exact models, one report.

Stages and what they measure: benchmarks/report/. A run that was stopped goes on in its folder.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from benchmarks.report.agreement import agreement_figures
from benchmarks.report.bases import basis_figures
from benchmarks.report.cells import Cells, Figures
from benchmarks.report.circuits import circuit_figures
from benchmarks.report.cross import cross_figures, second_figures
from benchmarks.report.edges import ELIMINATION, edge_figures, elimination_figures
from benchmarks.report.exact import exact_figures
from benchmarks.report.settings import settings_of
from benchmarks.report.writing import write_report
from benchmarks.tasks.counterfactuals import RULES


def main(
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks; all if not given.")] = None,
    model: Annotated[str, typer.Option(help="What `load` takes.")] = "four-tasks",
    quick: Annotated[bool, typer.Option("--quick", help="Few pairs: under five minutes.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder.")] = Path("report"),
) -> None:
    """Measure, and write report.md, report.html, tables and figures.json."""
    chosen = tasks or list(RULES)
    unknown = [task for task in chosen if task not in RULES]
    if unknown:
        raise typer.BadParameter(f"no task {unknown[0]!r}; there are {', '.join(RULES)}")
    torch.set_num_threads(1)  # sums, and with them the last digits, do not depend on the machine
    settings = settings_of(model, quick=quick)
    cells = Cells(output, settings.as_data())
    edges: dict[str, list[Figures]] = {task: [] for task in chosen}
    exact = []
    for task, seed in tqdm(list(itertools.product(chosen, range(settings.seeds))), desc="edges"):
        measured = (
            cells.get(stage, f"{task}-{seed}", lambda t=task, s=seed, f=figures: f(t, s, settings))
            for stage, figures in (("edges", edge_figures), ("elimination", elimination_figures))
        )
        of_all, of_elimination = measured
        of_all["methods"][ELIMINATION] = of_elimination
        edges[task].append(of_all)

    def of_tasks(stage: str, measure: Callable[[str], Figures]) -> Figures:
        named = tqdm(chosen, desc=stage)
        return {task: cells.get(stage, task, lambda t=task: measure(t)) for task in named}

    agreement = of_tasks("agreement", lambda task: agreement_figures(task, settings))
    bases = of_tasks("bases", lambda task: basis_figures(task, settings))
    pictures = output / "pictures"
    circuits = of_tasks(
        "circuit", lambda task: circuit_figures(task, settings, pictures / f"{task}.svg")
    )
    found = {task: seeds[0]["circuit"] for task, seeds in edges.items()}
    several = "-".join(["tasks", *chosen])
    cross = (
        cells.get("cross", several, lambda: cross_figures(settings.model, found, settings))
        if len(chosen) > 1
        else None
    )
    second = cells.get("second", settings.second_model, lambda: second_figures(settings))
    for program in tqdm(settings.programs, desc="exact models"):
        for variant in settings.variants:
            exact.append(
                cells.get(
                    "exact",
                    f"{program}-{variant}",
                    lambda p=program, v=variant: exact_figures(p, v, settings.program_pairs),
                )
            )
    measured = {
        "edges": edges,
        "agreement": agreement,
        "bases": bases,
        "circuits": circuits,
        "cross": cross,
        "second": second,
        "exact": exact,
    }
    write_report(output, measured, settings)
    typer.echo(f"wrote {output / 'report.html'}, report.md, CSV and figures.json beside it")


if __name__ == "__main__":
    typer.run(main)
