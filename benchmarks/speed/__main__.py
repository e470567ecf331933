"""What a run and a trace cost, in forward passes of the same model in the same process.

The model has GPT-2 small's exact shape and random weights; its MLPs are read through random TopK
transcoders and its attention as heads or through random Lorsa, or as its own neurons and heads (for
information, without bars). Every part is timed in turn with a plain forward pass, `repeat` times,
and compared by minima. A bar is met where both the wall-clock ratio and the processor-time ratio
are within it: the first alone would excuse work done on more cores, the second waiting. Memory is
what the process holds beyond the loaded model, sampled while the first run and trace go on, before
anything else has warmed up.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.four_tasks.folder import write_json
from benchmarks.speed.cases import (
    CASES,
    Case,
    Shape,
    parts_and_sizes,
    random_ids,
    random_model,
    read_as,
    run_and_trace,
)
from benchmarks.speed.clock import memory_growth, timings
from benchmarks.speed.machine import machine_facts

GROWTH = "memory growth of run and trace, MB"


def measure(shape: Shape, repeat: int) -> dict[str, Any]:
    """Return the timings and memory of all cases, and how they stand to the bars."""
    hf_model, ids = random_model(shape), random_ids(shape)

    @torch.no_grad()
    def forward() -> object:
        return hf_model(ids[None])

    cases: dict[str, dict[str, Any]] = {}
    bars = []
    for case in CASES:
        model = read_as(hf_model, shape, case)
        grown = memory_growth(partial(run_and_trace, model, ids, case.max_nodes))
        parts, sizes = parts_and_sizes(model, ids, case.max_nodes)
        timed = timings({"forward": forward, **parts}, forward, repeat)
        cases[case.name] = {
            "timings": {name: asdict(timing) for name, timing in timed.items()},
            GROWTH: grown,
            "sizes": sizes,
        }
        bars += judged(case, cases[case.name])
    return {"bars": bars, "cases": cases}


def judged(case: Case, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every bar of a case with what was measured and whether it is met."""
    rows = []
    for name, bar in case.bars.items():
        timing = found["timings"][name]
        worse = max(timing["wall_ratio"], timing["cpu_ratio"])
        part = f"{case.name}: {name}"
        rows.append({"part": part, "measured": worse, "bar": bar, "met": worse <= bar})
    if case.memory_bar_mb is not None:
        grown = found[GROWTH]
        met = None if grown is None else grown < case.memory_bar_mb
        part = f"{case.name}: memory, MB"
        rows.append({"part": part, "measured": grown, "bar": case.memory_bar_mb, "met": met})
    return rows


def lines_of(results: dict[str, Any]) -> list[str]:
    """Return the results as lines of text: machine, all parts, bars."""
    verdicts = {True: "met", False: "MISSED", None: "not measured"}
    lines = [", ".join(f"{name} {fact}" for name, fact in results["machine"].items())]
    for case, found in results["cases"].items():
        lines.append(f"\n{case:24}{'wall ms':>10}{'CPU ms':>10}{'wall ×':>10}{'CPU ×':>10}")
        lines += [
            f"{name:24}" + "".join(f"{number:10.2f}" for number in timing.values())
            for name, timing in found["timings"].items()
        ]
        lines.append(f"memory growth of run and trace: {found[GROWTH]} MB; sizes {found['sizes']}")
    lines.append("\nbars (× one forward pass, the worse of wall and CPU)")
    lines += [
        f"{row['part']:40}{row['measured']!s:>10} ≤ {row['bar']:g}  {verdicts[row['met']]}"
        for row in results["bars"]
    ]
    return lines


def main(
    tokens: Annotated[int, typer.Option(help="length of the prompt")] = 64,
    repeat: Annotated[int, typer.Option(help="how often each part is timed")] = 5,
    threads: Annotated[int | None, typer.Option(help="torch's threads")] = None,
    output: Annotated[Path | None, typer.Option("-o", help="JSON file to keep")] = None,
) -> None:
    """Time run, sweep, flow and trace against one forward pass of GPT-2 small's shape."""
    if threads is not None:
        torch.set_num_threads(threads)
    command = f"python -m benchmarks.speed --tokens {tokens} --repeat {repeat}"
    command += f" --threads {torch.get_num_threads()}"
    if output is not None:
        command += f" -o benchmarks/results/{output.name}"
    shape, machine = Shape(tokens=tokens), machine_facts()
    results = {"command": command, "machine": machine, "shape": asdict(shape)}
    results |= measure(shape, repeat)
    typer.echo("\n".join(lines_of(results)))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, results)


if __name__ == "__main__":
    typer.run(main)
