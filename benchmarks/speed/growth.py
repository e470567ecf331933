"""How cost grows: direct effects and a trace against tokens, active features and layers.

GPT-2 small's shape with random weights and ReLU transcoders, as in `direct.py`. One quantity is
changed, the others stay; the exponent is the slope of log seconds (and log bytes) against log of
what is changed, by least squares. Bytes are what a call adds to anonymous memory at its peak.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from math import ceil, floor, log10
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from attribution.direct_effects import direct_effects
from benchmarks.four_tasks.folder import write_json
from benchmarks.speed.cases import Shape, random_ids, random_model
from benchmarks.speed.clock import clocked, memory_growth
from benchmarks.speed.direct import chosen_targets, relu_transcoders
from benchmarks.speed.machine import machine_facts
from circuits import trace
from graphs.view.charts import chart
from replacement.model import ReplacementModel

NODES = 1000
COSTS = ("effects seconds", "effects MB", "trace seconds", "trace MB")


def measure(shape: Shape, targets: int) -> dict[str, Any]:
    """Return what direct effects on so many targets, and a trace of `NODES` nodes, cost."""
    model = ReplacementModel(random_model(shape), None, relu_transcoders(shape))
    ids = random_ids(shape)
    run = model.run(ids)
    chosen = chosen_targets(run, targets)
    target = run.logit(int(run.next_logits.argmax())).centered()
    parts: dict[str, Callable[[], object]] = {
        "effects": lambda: direct_effects(run, chosen),
        "trace": lambda: trace(target, threshold=0, max_nodes=NODES, progress=False),
    }
    costs: dict[str, Any] = {}
    for name, part in parts.items():
        costs[f"{name} MB"] = memory_growth(part)
        costs[f"{name} seconds"] = round(min(clocked(part)[1] for _ in range(2)), 3)
        gc.collect()
    return {
        "tokens": shape.tokens,
        "active": shape.active,
        "layers": shape.layers,
        "features": sum(len(layer.mlp.active) for layer in run.layers),
        "targets": sum(map(len, chosen)),
        "pattern MB": round(shape.layers * shape.heads * shape.tokens**2 * 4e-6, 1),
        **{name: costs[name] for name in COSTS},
    }


def exponents(rows: Sequence[dict[str, Any]], over: str) -> dict[str, float]:
    """Return the slopes of log cost against the log of what was changed."""
    at = np.log([row[over] for row in rows])
    return {
        name: round(float(np.polyfit(at, np.log([max(row[name], 1e-3) for row in rows]), 1)[0]), 2)
        for name in COSTS
    }


def plots(found: dict[str, Any]) -> dict[str, str]:
    """Return pictures by file name: costs against what was changed, all on logarithmic scales."""
    made = {}
    for over in ("tokens", "active", "layers"):
        rows = found[over]["rows"]
        for unit, word in (("seconds", "processor seconds"), ("MB", "megabytes added")):
            lines = {
                name.removesuffix(f" {unit}"): [
                    (row[over], log10(max(row[name], 0.01))) for row in rows
                ]
                for name in COSTS
                if name.endswith(unit)
            }
            if over == "tokens" and unit == "MB":
                lines["patterns"] = [(row[over], log10(row["pattern MB"] or 0.1)) for row in rows]
            heights = [y for line in lines.values() for _, y in line]
            made[f"growth-{over}-{unit.lower()}.svg"] = chart(
                f"{word} against {over}",
                (over, f"log10 of {word}"),
                lines=lines,
                low=floor(min(heights)),
                high=ceil(max(heights)),
                logarithmic=True,
            )
    return made


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="lengths of prompts")] = None,
    active: Annotated[list[int] | None, typer.Option(help="active per token and layer")] = None,
    layers: Annotated[list[int] | None, typer.Option(help="numbers of layers")] = None,
    targets: Annotated[int, typer.Option(help="rows of direct effects")] = 512,
    threads: Annotated[int, typer.Option(help="torch's threads")] = 1,
    output: Annotated[Path | None, typer.Option("-o", help="JSON file to keep")] = None,
    pictures: Annotated[Path | None, typer.Option(help="folder for pictures")] = None,
) -> None:
    """Time direct effects and traces of growing prompts and models of GPT-2 small's width."""
    torch.set_num_threads(threads)
    shape = Shape(features=2048, active=20)
    changed = {
        "tokens": tokens or [16, 32, 64, 128, 256],
        "active": active or [10, 20, 40, 80],
        "layers": layers or [3, 6, 12],
    }
    command = "python -m benchmarks.speed.growth"
    command += "".join(f" --{name} {size}" for name, sizes in changed.items() for size in sizes)
    command += f" --targets {targets} --threads {threads}"
    if output is not None:
        command += f" -o benchmarks/results/{output.name}"
    found: dict[str, Any] = {"command": command, "machine": machine_facts()}
    found["shape"] = asdict(shape)
    for name, sizes in changed.items():
        rows = []
        for size in sizes:
            rows.append(measure(replace(shape, **{name: size}), targets))
            typer.echo(", ".join(f"{part} {number}" for part, number in rows[-1].items()))
        found[name] = {"rows": rows}
        if len(rows) > 1:
            found[name]["exponents"] = exponents(rows, name)
            typer.echo(f"exponents over {name}: {found[name]['exponents']}")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, found)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name, picture in plots(found).items():
            (pictures / name).write_text(picture)


if __name__ == "__main__":
    typer.run(main)
