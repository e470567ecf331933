"""The table of selection rules: `python -m benchmarks.selection -o FILE`.

Rules are averaged over training prompts by role (the mean of a node's score where it was active);
in every held-out prompt the strongest active nodes are kept, so many of them, and all others, what
is not active too, are set to their mean by role. A run that was stopped goes on: the file holds
the cells that are done.
"""

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.four_tasks.folder import write_json
from benchmarks.selection.measuring import SHARES, Settings, means_of_rules, measure
from benchmarks.selection.prompts import ROLES

SIZES = [*(f"{share:g}" for share in SHARES), "complement", "own size"]


def stored(output: Path, settings: Settings) -> dict[str, Any]:
    """Return the cells that a file holds of these settings; others are measured anew."""
    if not output.is_file():
        return {}
    cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    return {name: cell for name, cell in cells.items() if cell["settings"] == asdict(settings)}


def means(cells: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean over tasks and ways to read attention, for each way to read MLPs."""
    ways = sorted({name.split(", ")[2] for name in cells})
    return {
        way: means_of_rules({name: cell for name, cell in cells.items() if name.endswith(way)})
        for way in ways
    }


def lines_of(name: str, rules: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table as lines of text; of intervals the estimate."""
    lines = [f"\n{name:28}" + "".join(f"{size:>12}" for size in SIZES)]
    for rule, row in rules.items():
        shown = [row.get(size) for size in SIZES]
        plain = [one[0] if isinstance(one, list) else one for one in shown]
        text = "".join(f"{'' if one is None else f'{one:.3f}':>12}" for one in plain)
        if any(one is not None for one in plain):
            lines.append(f"{rule:28}{text}")
    return lines


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = ",".join(ROLES),
    attention: Annotated[str, typer.Option(help="Ways to read it.")] = "heads,lorsa",
    mlp: Annotated[str, typer.Option(help="Ways to read MLPs.")] = "transcoders,neurons",
    pairs: Annotated[int, typer.Option(help="Held-out prompts of each task.")] = 200,
    training: Annotated[int, typer.Option(help="Training prompts to average over.")] = 100,
    reference: Annotated[int, typer.Option(help="Training prompts for the means.")] = 200,
) -> None:
    """Measure which rule keeps most of the behaviour with the same number of nodes."""
    torch.set_num_threads(1)
    settings = Settings(pairs, training, reference)
    kept = json.loads(output.read_text(encoding="utf-8"))["cells"] if output.is_file() else {}
    done = stored(output, settings)
    for m, a, task in itertools.product(mlp.split(","), attention.split(","), tasks.split(",")):
        name = f"{task}, {a}, {m}"
        if name not in done:
            kept[name] = {"settings": asdict(settings), **measure(task, a, m, settings)}
            write_json(output, {"cells": kept, "mean": means(kept)})
        typer.echo("\n".join(lines_of(name, kept[name]["rules"])))
    for one, rules in means(kept).items():
        typer.echo("\n".join(lines_of(f"mean, {one}", rules)))


if __name__ == "__main__":
    typer.run(main)
