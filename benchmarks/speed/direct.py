"""What direct effects cost: seconds, and the share of this machine's rate of matrix products.

GPT-2 small's or Gemma-2-2B's shape with random weights, read through random ReLU transcoders of
which about `active` features are on per token and layer, as circuit-tracer can read them too.
Operations are those of the causal-cone formula, 4 · (positions up to the target's) · d² per target
and attention layer below it: what carrying every row through every such layer takes. An effects
pass may do fewer. A large product is measured right before and after; the share is of the faster of
the two, by processor time, since other work on the machine slows the clock but hardly the processor
time. On a GPU the share by the clock counts, and some rows are compared with a processor's.
"""

import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from attribution.direct_effects import DirectEffects, direct_effects
from attribution.effect_blocks import PRECISIONS
from benchmarks.four_tasks.folder import write_json
from benchmarks.speed.cases import GEMMA_2_2B, GPT2_SMALL, Shape, random_ids, random_model
from benchmarks.speed.clock import clocked, memory_growth
from benchmarks.speed.machine import machine_facts, matmul_rates
from replacement.layers import ReLU, Transcoder
from replacement.model import ReplacementModel
from replacement.precision import with_tensors
from replacement.run import Run


def relu_transcoders(shape: Shape) -> list[Transcoder]:
    """Return transcoders of random unit rows, biased so that about `shape.active` are on."""
    generator = torch.Generator().manual_seed(4)

    def rows(length: float) -> Tensor:
        drawn = torch.randn(shape.features, shape.width, generator=generator)
        return drawn.mul_(length * shape.width**-0.5)

    off = NormalDist().inv_cdf(1 - shape.active / shape.features)
    read_bias, write_bias = torch.full((shape.features,), -off), torch.zeros(shape.width)
    return [
        Transcoder(rows(1.0), rows(0.1), read_bias, write_bias, ReLU()) for _ in range(shape.layers)
    ]


def on(layer: Any, device: str) -> Any:
    """Return a layer on a device."""
    return with_tensors(layer, lambda one: one.to(device))


def chosen_targets(run: Run, count: int | None) -> list[Tensor]:
    """Return node numbers for every sublayer: all features, or `count` spread evenly over them."""
    sizes = [len(layer.mlp.active) for layer in run.layers]
    total = sum(sizes)
    kept = torch.arange(total)
    if count is not None and count < total:
        kept = torch.linspace(0, total - 1, count).round().long()
    chosen, first = [], 0
    for size in sizes:
        here = kept[(kept >= first) & (kept < first + size)] - first
        chosen += [here[:0], here]  # attention has no features, the MLP has
        first += size
    return chosen


def operations(run: Run, chosen: list[Tensor]) -> int:
    """Return the operations of the causal-cone formula: heads side by side may be wider than d."""
    heads = run.weights.layers[0].heads
    per_place = 2 * run.weights.d_model * (heads.output.shape[0] + heads.value.shape[1])
    cones = [
        (number + 1) * int((layer.mlp.active.pos[nodes] + 1).sum())
        for number, (layer, nodes) in enumerate(zip(run.layers, chosen[1::2], strict=True))
    ]
    return per_place * sum(cones)


SHAPES = {"gpt2-small": GPT2_SMALL, "gemma-2-2b": GEMMA_2_2B}
TOP = 1000
"""How many of the strongest effects are compared between precisions."""


def agreement(found: DirectEffects, exact: DirectEffects) -> dict[str, float]:
    """Return the largest difference, as a share of its row's largest effect, and the share of the
    strongest effects between nodes that are among the strongest of both."""
    largest, top = 0.0, []
    for one, other in zip(found.blocks, exact.blocks, strict=True):
        exactly = other.values.cpu()
        off = (one.values.cpu() - exactly).abs().amax(1) / exactly.abs().amax(1)
        largest = max(largest, float(off.max()))
    for effects in (found, exact):
        matrix = effects.matrix()[:, torch.cat(effects.nodes).numpy()].tocoo()
        strongest = torch.from_numpy(abs(matrix.data)).topk(min(TOP, matrix.nnz)).indices.numpy()
        target, source = matrix.coords
        top.append(set(zip(target[strongest].tolist(), source[strongest].tolist(), strict=True)))
    share = len(top[0] & top[1]) / max(1, len(top[1]))
    return {"largest difference": _digits(largest), f"of the top {TOP} in both": round(share, 4)}


def measure(
    shape: Shape, count: int | None, repeat: int, precision: str, device: str = "cpu"
) -> dict[str, Any]:
    """Return what the direct effects on so many targets (None: all) of one prompt cost."""
    layers = [on(layer, device) for layer in relu_transcoders(shape)]
    model = ReplacementModel(random_model(shape).to(device), None, layers)
    run = model.run(random_ids(shape))
    chosen = chosen_targets(run, count)

    def effects() -> DirectEffects:
        return direct_effects(run, chosen, precision=precision)

    grown = memory_growth(effects, device)
    before = matmul_rates(device=device)
    times = [clocked(effects) for _ in range(repeat)]
    wall, cpu = (min(column) for column in zip(*times, strict=True))
    by_clock, by_processor = map(max, before, matmul_rates(device=device))
    work = operations(run, chosen)
    features = sum(len(layer.mlp.active) for layer in run.layers)
    return {
        "tokens": shape.tokens,
        "features": features,
        "targets": sum(map(len, chosen)),
        "seconds": round(wall, 3),
        "CPU seconds": round(cpu, 3),
        "TFLOP": _digits(work / 1e12),
        "GFLOP/s": _digits(work / wall / 1e9),
        "matmul GFLOP/s": _digits(by_clock / 1e9),
        "share by the clock": _digits(work / wall / by_clock),
        "share by CPU time": _digits(work / cpu / by_processor),
        "memory growth, MB": grown,
        **({} if precision == "float32" else agreement(effects(), direct_effects(run, chosen))),
        **({} if device == "cpu" else {"GPU and CPU": _beside_a_processor(model, run, chosen)}),
    }


def _beside_a_processor(model: ReplacementModel, run: Run, chosen: list[Tensor]) -> dict[str, Any]:
    """How far some rows are from those that a processor computes of the same nodes.

    The model is moved, so this comes last.
    """
    hf_model, layers = model.hf_model.cpu(), [on(one.mlp, "cpu") for one in model.weights.layers]
    on_cpu = ReplacementModel(hf_model, None, layers).run(run.token_ids)
    same = all(
        torch.equal(one.mlp.active.index.cpu(), other.mlp.active.index)
        for one, other in zip(run.layers, on_cpu.layers, strict=True)
    )
    if not same:
        return {"same features": False}
    few = [nodes[:: max(1, len(nodes) // 8)].cpu() for nodes in chosen]
    return agreement(direct_effects(run, few), direct_effects(on_cpu, few))


def _digits(number: float) -> float:
    """A number with three digits that count."""
    return round(number, 2 - math.floor(math.log10(number))) if number > 0 else 0.0


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="lengths of prompts")] = None,
    targets: Annotated[int | None, typer.Option(help="so many, not all features")] = None,
    repeat: Annotated[int, typer.Option(help="how often each is timed")] = 1,
    threads: Annotated[int | None, typer.Option(help="torch's threads")] = None,
    precision: Annotated[str, typer.Option(help=", ".join(PRECISIONS))] = "float32",
    model: Annotated[str, typer.Option(help=", ".join(SHAPES))] = "gpt2-small",
    device: Annotated[str, typer.Option(help="cpu, or a GPU: cuda")] = "cpu",
    output: Annotated[Path | None, typer.Option("-o", help="JSON file to keep")] = None,
) -> None:
    """Time direct effects between all features of a prompt."""
    if threads is not None:
        torch.set_num_threads(threads)
    lengths = tokens or [16, 32, 64]
    command = "python -m benchmarks.speed.direct"
    command += "".join(f" --tokens {length}" for length in lengths)
    command += "" if targets is None else f" --targets {targets}"
    command += f" --repeat {repeat} --threads {torch.get_num_threads()} --precision {precision}"
    command += f" --model {model} --device {device}"
    if output is not None:
        command += f" -o benchmarks/results/{output.name}"
    machine, shape = machine_facts(device), SHAPES[model]
    typer.echo(", ".join(f"{name} {fact}" for name, fact in machine.items()))
    rows = []
    for length in lengths:
        asked = replace(shape, tokens=length)
        rows.append(measure(asked, targets, repeat, precision, device))
        typer.echo(", ".join(f"{name} {number}" for name, number in rows[-1].items()))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            output,
            {"command": command, "machine": machine, "shape": asdict(shape), "lengths": rows},
        )


if __name__ == "__main__":
    typer.run(main)
