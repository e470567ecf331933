"""What a run and a trace cost, in forward passes of the same model in the same process.

The model has GPT-2 small's exact shape and random weights; its MLPs are read through random TopK
transcoders, or as its own neurons (for information, without bars). Every part is timed in turn with
a plain forward pass, `repeat` times, and compared by minima. A bar is met where both the wall-clock
ratio and the processor-time ratio are within it: the first alone would excuse work done on more
cores, the second waiting. Memory is what the process holds beyond the loaded model, sampled while
the first run and trace go on, before anything else has warmed up.
"""

import ctypes
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from attribution.flow import flow_edges
from attribution.sweep import cutoff_of, strongest, sweep
from benchmarks.four_tasks.folder import write_json
from circuits import Circuit, trace
from replacement.layers import TopK, Transcoder
from replacement.model import ReplacementModel
from replacement.target import Target

BARS = {"sweep": 1.0, "gated sweep": 1.0, "run": 2.5, "run and trace": 5.0}
"""Highest allowed cost of each part, in forward passes."""
MEMORY_BAR_MB = 500.0
"""Highest allowed growth of anonymous memory over the loaded model."""
GROWTH = "memory growth of run and trace, MB"
THRESHOLD = 0.005
MAX_NODES = 500

Part = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, its transcoders and the prompt; by default GPT-2 small's."""

    tokens: int = 64
    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    positions: int = 1024
    features: int = 6144
    active: int = 50


@dataclass(frozen=True)
class Timing:
    """The least time one part took, and its ratio to the forward passes run in turn with it."""

    wall_ms: float
    cpu_ms: float
    wall_ratio: float
    cpu_ratio: float


def random_model(shape: Shape) -> GPT2LMHeadModel:
    """Return a model of random weights as a user would load it."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def random_transcoders(shape: Shape) -> list[Transcoder]:
    """Return transcoders of random rows whose outputs are about as long as the MLPs'."""
    generator = torch.Generator().manual_seed(1)

    def rows(length: float) -> Tensor:
        drawn = torch.randn(shape.features, shape.width, generator=generator)
        return drawn.mul_(length * shape.width**-0.5)

    read_bias, write_bias = torch.zeros(shape.features), torch.zeros(shape.width)
    return [
        Transcoder(rows(1.0), rows(0.1), read_bias, write_bias, TopK(shape.active))
        for _ in range(shape.layers)
    ]


def random_ids(shape: Shape) -> Tensor:
    """Return one prompt of random tokens."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(shape.vocabulary, (shape.tokens,), generator=generator)


def explained(model: ReplacementModel, ids: Tensor) -> Target:
    """Return the likeliest next token's centered logit, in a run of its own."""
    run = model.run(ids)
    return run.logit(int(run.logits[-1].argmax())).centered()


def traced(target: Target) -> Circuit:
    """Return the circuit of exactly the strongest nodes: a threshold of 0 lets none stop early."""
    return trace(target, threshold=0, max_nodes=MAX_NODES, progress=False)


def _run_and_trace(model: ReplacementModel, ids: Tensor) -> Circuit:
    return traced(explained(model, ids))


def parts_and_sizes(model: ReplacementModel, ids: Tensor) -> tuple[dict[str, Part], dict[str, int]]:
    """Return what is timed, by name, every input made beforehand, and how large the case is."""
    target = explained(model, ids)
    sublayers = target.run.sublayers
    ungated = sweep(target, sublayers)
    cutoff = cutoff_of(target, ungated, THRESHOLD)
    chosen = strongest(ungated, sublayers, MAX_NODES)
    kept = sweep(target, sublayers, only=chosen)
    parts: dict[str, Part] = {
        "run": lambda: model.run(ids),
        "sweep": lambda: sweep(target, sublayers),
        "gated sweep": lambda: sweep(target, sublayers, cutoff),
        "sweep through chosen": lambda: sweep(target, sublayers, only=chosen),
        "choosing": lambda: strongest(ungated, sublayers, MAX_NODES),
        "flow": lambda: flow_edges(target, sublayers, kept),
        "trace": lambda: traced(target),
        "run and trace": partial(_run_and_trace, model, ids),
    }
    sizes = {
        "nodes": sum(len(attribution) for attribution in ungated.attribution),
        f"nodes above {THRESHOLD}": sweep(target, sublayers, cutoff).n_kept(sublayers),
        "edges traced": len(traced(target).edges),
    }
    return parts, sizes


def _clocked(part: Part) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    part()
    return time.perf_counter() - wall, time.process_time() - cpu


def timings(parts: dict[str, Part], forward: Part, repeat: int) -> dict[str, Timing]:
    """Return every part's least times and their ratios to the passes run in turn with it."""
    samples: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(repeat):
        for name, part in parts.items():
            samples[name].append((*_clocked(forward), *_clocked(part)))
    return {name: _timing(taken) for name, taken in samples.items()}


def _timing(samples: list[tuple[float, float, float, float]]) -> Timing:
    forward_wall, forward_cpu, wall, cpu = (min(column) for column in zip(*samples, strict=True))
    measured = (1e3 * wall, 1e3 * cpu, wall / forward_wall, cpu / forward_cpu)
    return Timing(*(round(number, 3) for number in measured))


def memory_growth(part: Part) -> float | None:
    """Return the megabytes `part` added to anonymous memory at its peak; None without /proc."""
    _return_freed_memory()
    start, ended = _anonymous_kb(), threading.Event()
    seen = [start]

    def sample() -> None:
        while not ended.wait(0.001):
            seen.append(_anonymous_kb())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        result = part()
        seen.append(_anonymous_kb())
        del result
    finally:
        ended.set()
        sampler.join()
    return round((max(seen) - start) * 1024 / 1e6, 1) if start else None


def _anonymous_kb() -> int:
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s*(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) if found else 0


def _return_freed_memory() -> None:
    """Give what loading freed back to the system, so that reuse of it counts as growth."""
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def measure(shape: Shape, repeat: int) -> dict[str, Any]:
    """Return the timings and memory of both cases, and how they stand to the bars."""
    hf_model, ids = random_model(shape), random_ids(shape)

    @torch.no_grad()
    def forward() -> object:
        return hf_model(ids[None])

    cases: dict[str, dict[str, Any]] = {}
    for case, mlps in (("transcoders", random_transcoders(shape)), ("neurons", None)):
        model = ReplacementModel(hf_model, None, mlps)
        grown = memory_growth(partial(_run_and_trace, model, ids))
        parts, sizes = parts_and_sizes(model, ids)
        timed = timings({"forward": forward, **parts}, forward, repeat)
        cases[case] = {
            "timings": {name: asdict(timing) for name, timing in timed.items()},
            GROWTH: grown,
            "sizes": sizes,
        }
    return {"bars": judged(cases["transcoders"]), "cases": cases}


def judged(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every bar with what was measured and whether it is met."""
    rows = []
    for name, bar in BARS.items():
        timing = case["timings"][name]
        worse = max(timing["wall_ratio"], timing["cpu_ratio"])
        rows.append({"part": name, "measured": worse, "bar": bar, "met": worse <= bar})
    grown = case[GROWTH]
    met = None if grown is None else grown < MEMORY_BAR_MB
    rows.append({"part": "memory, MB", "measured": grown, "bar": MEMORY_BAR_MB, "met": met})
    return rows


def machine_facts() -> dict[str, Any]:
    """Return what the absolute times depend on."""
    square = torch.ones(2048, 2048)
    seconds = min(_clocked(lambda: square @ square)[0] for _ in range(5))
    packages = ("torch", "transformers", "nnsight")
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "matmul GFLOP/s": round(2 * 2048**3 / seconds / 1e9, 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


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
        f"{row['part']:24}{row['measured']!s:>10} ≤ {row['bar']:g}  {verdicts[row['met']]}"
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
