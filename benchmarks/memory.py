"""What loading a model with large transcoders and one trace add to a process' memory.

A model of GPT-2 small's exact shape with random weights and random ReLU transcoders, about 40
features of a token active, are written to a temporary folder in several ways; each is loaded, run
and traced in a fresh process. Counted is anonymous memory (RssAnon): what the system cannot drop
and read again, unlike pages of a mapped file (RssFile). Growth is over the value after imports, and
its peak, sampled every millisecond, is held against two bars of growth. "model" is the one asked
for: at most the model's bytes in the type loaded, and 300 MB. Weights in the type asked for stay in
their files and meet it; those that are converted, turned or folded take memory of their own and
need not. "kept" is the one such layouts are held to: the bytes of the model and of the layers that
cannot stay in their files, and 300 MB; and loading peaks at 1.2 times the bytes kept.
"""

import dataclasses
import gc
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.four_tasks.folder import write_json
from benchmarks.speed.cases import Shape, random_ids, random_model
from benchmarks.speed.clock import memory_mb, sampled
from circuits import load, trace
from replacement.checkpoints import save_transcoders
from replacement.layers import ReLU, Transcoder

GPT2_SMALL = Shape(features=28672)
"""Transcoders of 2.1 GB in float32."""
THRESHOLD = -3.0
"""An encoder bias of three standard deviations of what features read: one in 740 fires."""
ALLOWED_MB = 300.0
"""What run, trace and imports while loading may add to the model's bytes."""


@dataclass(frozen=True)
class Case:
    """One way of storing the weights and of loading them."""

    name: str
    stored: str = "float32"
    loaded: str = "float32"
    layout: str = "ours"
    """Or "circuit-tracer"; or "turned", its sets of Gemma Scope 2, whose encoders lie the other way
    round."""

    @property
    def copied(self) -> float:
        """The share of the transcoders that cannot stay in the files."""
        if self.stored != self.loaded:
            return 1.0
        return 0.5 if self.layout == "turned" else 0.0


CASES = (
    Case("ours"),
    Case("circuit-tracer", layout="circuit-tracer"),
    Case("turned encoders", layout="turned"),
    Case("bfloat16 files in float32", stored="bfloat16"),
    Case("bfloat16", stored="bfloat16", loaded="bfloat16"),
    Case("float32 files in bfloat16", loaded="bfloat16"),
)


def random_transcoder(shape: Shape, seed: int, dtype: torch.dtype) -> Transcoder:
    """Return a transcoder of random rows of which few fire."""
    generator = torch.Generator().manual_seed(seed)

    def rows(length: float) -> Tensor:
        drawn = torch.randn(shape.features, shape.width, generator=generator)
        return drawn.mul_(length * shape.width**-0.5).to(dtype)

    read_bias = torch.full((shape.features,), THRESHOLD, dtype=dtype)
    return Transcoder(rows(1.0), rows(0.1), read_bias, torch.zeros(shape.width).to(dtype), ReLU())


def write_folder(folder: Path, shape: Shape, case: Case) -> dict[str, int]:
    """Write a model and its transcoders as a case stores them; return the bytes of both."""
    dtype = getattr(torch, case.stored)
    random_model(shape).to(dtype).save_pretrained(folder / "model")
    layers = folder / "transcoders"
    layers.mkdir()
    made = (random_transcoder(shape, number, dtype) for number in range(shape.layers))
    if case.layout == "ours":
        save_transcoders(list(made), layers, dtype=dtype)
    else:
        for number, layer in enumerate(made):
            save_file(_tensors(layer, case.layout), layers / f"layer_{number}.safetensors")
        hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
        config = {"model_kind": "transcoder_set", **hooks}
        (layers / "config.yaml").write_text(yaml.safe_dump(config))
    return {part: _size(folder / part) for part in ("model", "transcoders")}


def _tensors(layer: Transcoder, layout: str) -> dict[str, Tensor]:
    tensors = {"b_enc": layer.read_bias, "b_dec": layer.write_bias}
    if layout == "circuit-tracer":
        return tensors | {"W_enc": layer.read, "W_dec": layer.write}
    turned = {"w_enc": layer.read.T.contiguous(), "w_dec": layer.write}
    return tensors | turned | {"threshold": torch.zeros_like(layer.read_bias)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def load_and_trace(folder: Path, shape: Shape, dtype: str) -> dict[str, Any]:
    """Return what this process' memory was at each stage of a load, a run and a trace, in MB."""
    gc.collect()
    found: dict[str, Any] = {"after imports": memory_mb("RssAnon")}
    begun = time.perf_counter()
    with sampled() as seen:
        model = load(folder / "model", mlp=folder / "transcoders", dtype=dtype, device="cpu")
        found |= {"after load": memory_mb("RssAnon"), "peak of load": max(seen)}
        found["seconds to load"] = time.perf_counter() - begun
        ids = random_ids(shape)
        run = model.run(ids)
        found["after run"] = memory_mb("RssAnon")
        target = run.logit(int(run.next_logits.argmax())).centered()
        circuit = trace(target, max_nodes=500, progress=False)
        found["seconds to first trace"] = time.perf_counter() - begun
        found["after trace"] = memory_mb("RssAnon")
    found |= {"peak": max(seen), "file pages": memory_mb("RssFile"), "VmHWM": memory_mb("VmHWM")}
    active = [len(layer.mlp.active) for layer in run.layers]
    found["active features a token"] = sum(active) / len(active) / len(ids)
    found["nodes"] = len(circuit.nodes)
    return {name: round(value, 1) for name, value in found.items()}


def measure(shape: Shape, case: Case) -> dict[str, Any]:
    """Return the figures of a case, loaded in a fresh process, and how they stand to its bar."""
    with tempfile.TemporaryDirectory() as folder:
        written = {
            part: size / 1e6 for part, size in write_folder(Path(folder), shape, case).items()
        }
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            found = fresh.submit(load_and_trace, Path(folder), shape, case.loaded).result()
    files = {f"{part} file": round(size, 1) for part, size in written.items()}
    return {**dataclasses.asdict(case), **files, **found, "bars": bars(case, files | found)}


def bars(case: Case, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how the figures of a case stand to each bar, by its name."""
    wider = getattr(torch, case.loaded).itemsize / getattr(torch, case.stored).itemsize
    model = wider * found["model file"]
    kept = model + wider * case.copied * found["transcoders file"]
    growth, load = (found[name] - found["after imports"] for name in ("peak", "peak of load"))
    rows = [("growth of load and trace", "model + 300 MB", growth, model + ALLOWED_MB)]
    if case.copied:
        rows.append(("growth of load and trace", "kept + 300 MB", growth, kept + ALLOWED_MB))
        rows.append(("growth at the peak of load", "1.2 · kept", load, 1.2 * kept))
    return [
        {"part": part, "of": of, "measured": round(grown, 1), "bar": round(bar, 1)}
        | {"met": grown <= bar}
        for part, of, grown, bar in rows
    ]


def main(
    case: Annotated[list[str] | None, typer.Option(help="which cases; all by default")] = None,
    features: Annotated[int, typer.Option(help="features a transcoder")] = GPT2_SMALL.features,
    output: Annotated[Path | None, typer.Option("-o", help="JSON file to keep")] = None,
) -> None:
    """Load and trace models with 2 GB of transcoders, one fresh process each."""
    shape = dataclasses.replace(GPT2_SMALL, features=features)
    chosen = [one for one in CASES if case is None or one.name in case]
    results = []
    for one in chosen:
        results.append(measure(shape, one))
        typer.echo("\n".join(f"{name:26} {value}" for name, value in results[-1].items()) + "\n")
    if output is not None:
        command = f"python -m benchmarks.memory --features {features}"
        command += "".join(f" --case {one.name!r}" for one in chosen if case)
        command += f" -o benchmarks/results/{output.name}"
        output.parent.mkdir(parents=True, exist_ok=True)
        shape_of = dataclasses.asdict(shape)
        write_json(output, {"command": command, "shape": shape_of, "cases": results})


if __name__ == "__main__":
    typer.run(main)
