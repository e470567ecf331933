"""How well what a circuit says of single nodes predicts what the real model does without them.

Each interior node and error of `trace`'s circuit is set to 0 in the free model, one at a time.
Reported is Spearman's correlation over the nodes of a prompt between the measured change and four
predictions: the trace's attribution, the ungated one, and gradient × activation in the free model,
also with the denominators of norms held; means over held-out prompts with bootstrap intervals.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from benchmarks.four_tasks.folder import write_json
from benchmarks.scores import bootstrap_interval
from benchmarks.selection.prompts import ROLES, Asked, asked, prompts
from benchmarks.selection.rules import free_gradients, products
from circuits import load, trace
from circuits.testing import agreement, as_nodes, tested_nodes
from replacement.edits import Node
from replacement.edits.running import free_knock_outs

SOURCES = ("token", "position")


def correlations(one: Asked) -> dict[str, float]:
    """Return Spearman's correlation of each prediction with the free model, over a circuit's nodes.

    Heads, features, neurons, Lorsa heads and errors; not tokens, of which there is no activation.
    """
    with torch.no_grad():
        circuit = trace(one.target, progress=False)
        rows = tested_nodes(circuit.data)
        rows = rows.loc[~rows["kind"].isin(SOURCES)]
        nodes = as_nodes(rows)
        free = (free_knock_outs(one.target, nodes) - one.target.value).numpy()
        predictions = {
            "attribution": -rows["attribution"],
            "ungated": -rows["ungated"],
            "gradient × activation": told(one, nodes, hold_norms=False),
            "… with norms held": told(one, nodes, hold_norms=True),
        }
    return {name: agreement(one, free)["spearman"] for name, one in predictions.items()}


def told(one: Asked, nodes: Sequence[Node], *, hold_norms: bool) -> list[float]:
    """Return minus gradient × activation of nodes in the free model."""
    gradient = products(one.run, free_gradients(one, hold_norms=hold_norms))
    found = []
    for node in nodes:
        error = node.kind == "error"
        part = gradient[node.layer, node.sublayer, "error" if error else "nodes"]
        found.append(-float(part[node.pos, 0 if error else node.index]))
    return found


def measure(task: str, attention: str, mlp: str, count: int) -> dict[str, list[float]]:
    """Return the mean correlation of each prediction over prompts, and its 95 % interval."""
    model = load("four-tasks", attention=attention, mlp=mlp)
    wanted = tqdm(prompts(task, "held_out", count), desc=f"{task}, {attention}, {mlp}", delay=1.0)
    found = [correlations(asked(model, task, prompt)) for prompt in wanted]
    made: dict[str, list[float]] = {}
    for name in found[0]:
        values = [one[name] for one in found]
        interval = bootstrap_interval(values) if count > 1 else (values[0], values[0])
        made[name] = [round(one, 4) for one in (sum(values) / count, *interval)]
    return made


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    prompts_each: Annotated[int, typer.Option("--prompts", help="Held-out prompts a task.")] = 20,
    attention: Annotated[str, typer.Option(help="Ways to read it.")] = "heads,lorsa",
    mlp: Annotated[str, typer.Option(help="Ways to read MLPs.")] = "transcoders",
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = ",".join(ROLES),
) -> None:
    """Measure how well single nodes' attributions rank what the free model does."""
    torch.set_num_threads(1)
    cells: dict[str, Any] = {}
    for read_mlp in mlp.split(","):
        for read in attention.split(","):
            for task in tasks.split(","):
                name = f"{task}, {read}, {read_mlp}"
                cells[name] = measure(task, read, read_mlp, prompts_each)
                shown = ", ".join(f"{key} {one[0]:.3f}" for key, one in cells[name].items())
                typer.echo(f"{name}: {shown}")
                write_json(output, {"prompts": prompts_each, "spearman": cells})


if __name__ == "__main__":
    typer.run(main)
