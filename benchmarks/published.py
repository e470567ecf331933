"""Published metrics of a model on published prompts: `python -m benchmarks.published --model NAME`.

For every task of `benchmarks.tasks.texts` that the tokenizer holds: the mean metric on prompts and
on counterfactuals, how often the right answer is ahead, and what is left of the metric with only
the heads and MLPs of each published circuit of the task (others carry what they wrote in the
counterfactual run, at all positions; where a circuit names no MLPs they all stay) and without
them. Published values are in docs/known_circuits.md.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.edges import EdgeModel, Patching
from benchmarks.four_tasks.folder import write_json
from benchmarks.report.cells import rounded
from benchmarks.speed.machine import machine_facts
from benchmarks.tasks.published import PublishedCircuit, published_circuits
from benchmarks.tasks.texts import TEXTS, pairs_of_texts, text_pairs
from circuits import load

CIRCUITS_OF = {
    "ioi": "IOI",
    "ioi_abc": "IOI",
    "greater_than": "greater-than",
    "docstring": "docstring",
    "numerals": "sequence, numerals",
    "number_words": "sequence, number words",
    "months": "sequence, months",
}
"""How the names of a task's published circuits begin."""
BATCH = 25


def figures(model: EdgeModel, task: str, count: int) -> dict[str, Any]:
    """Return the metric of a task, and what its published circuits keep of it.

    Raises ValueError "vocabulary not present" as `text_pairs`.
    """
    source = model.source
    chosen = text_pairs(task, source.tokenizer, count)
    pairs = pairs_of_texts(chosen, source.tokenizer, source.weights.d_vocab, bos=chosen[0].bos)
    runs = [Patching(model, part) for part in pairs.by_length().parts(BATCH)]
    sides = [
        torch.cat([run.pairs.metric(model.logits(side(run).final, run.pairs.end)) for run in runs])
        for side in (lambda run: run.clean, lambda run: run.corrupt)
    ]
    found: dict[str, Any] = {
        "pairs": count,
        "BOS": chosen[0].bos,
        "metric": "probability" if chosen[0].probability else "logit",
        "clean": float(sides[0].mean()),
        "counterfactual": float(sides[1].mean()),
        "right ahead": float((sides[0] > 0).float().mean()),
    }
    mlps = [f"m{layer}" for layer in range(model.graph.n_layers)]
    for name, circuit in circuits_of(task, model).items():
        parts = {f"a{layer}.h{head}" for layer, head in circuit.heads}
        parts |= {f"m{layer}" for layer in circuit.mlps}
        stays = {"input", *(() if circuit.mlps else mlps)}
        kept = [writer in parts | stays for writer in model.graph.writers]
        rest = [writer not in parts for writer in model.graph.writers]
        alone, without = (
            torch.cat([run.metric(_edges_from(model, one)) for run in runs]).mean()
            for one in (kept, rest)
        )
        found[name] = {"alone": float(alone), "without": float(without)}
    return found


def _edges_from(model: EdgeModel, writers: Sequence[bool]) -> Float[Tensor, " edge"]:
    """The circuit in which what other writers write is their stand-in to all readers."""
    return torch.tensor(writers, dtype=model.source.dtype)[model.graph.writer]


def circuits_of(task: str, model: EdgeModel) -> dict[str, PublishedCircuit]:
    """Return the published circuits of a task whose heads all are in a model of this shape."""
    begins, shape = CIRCUITS_OF.get(task), (model.graph.n_layers, model.graph.n_heads)
    return {
        name: one
        for name, one in published_circuits().items()
        if begins is not None and name.startswith(begins) and one.shape == shape
    }


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    model: Annotated[str, typer.Option(help="What `load` takes.")] = "openai-community/gpt2",
    pairs: Annotated[int, typer.Option(help="Of each task.")] = 100,
    tasks: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(TEXTS),
) -> None:
    """Measure what papers print of a model on their prompts."""
    components = EdgeModel(load(model, mlp="neurons", attention="heads"))
    found: dict[str, Any] = {}
    for task in tqdm(tasks.split(",")):
        begun = time.perf_counter()
        try:
            found[task] = figures(components, task, pairs)
        except ValueError as missing:
            if "vocabulary not present" not in str(missing):
                raise
            found[task] = "vocabulary not present"
            continue
        found[task] = rounded(found[task])
        found[task]["seconds"] = round(time.perf_counter() - begun, 1)
    write_json(output, {"model": model, "machine": machine_facts(), "tasks": found})
    for task, row in found.items():
        typer.echo(f"{task}: {row}")


if __name__ == "__main__":
    typer.run(main)
