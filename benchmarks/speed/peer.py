"""Direct effects beside circuit-tracer's attribution call: processor seconds, memory, agreement.

The same random GPT-2 from one folder, the same ReLU transcoders from files in circuit-tracer's
format, the same nodes: whatever features it chose are our targets. Each side has a process and an
interpreter of its own, both the same number of threads, and they take turns in one run; ratios are
of processor seconds, since others may use the machine. Both sides are timed from the token ids:
forward pass, encoding, rows of features and of logits. Theirs end as one dense matrix, ours as
blocks; what making the sparse matrix of all blocks takes more is said apart.
Beside it a trace of the likeliest logit through at most `NODES` nodes, from the token ids to a
circuit: flows to one target, which is another quantity, for those who ask for no more.
The interpreter that has circuit-tracer is named by LINEAR_CIRCUITS_ORIGINALS (`make originals`).
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array
from torch import Tensor
from transformers import GPT2LMHeadModel

from attribution.direct_effects import DirectEffects, direct_effects
from attribution.effect_blocks import PRECISIONS
from benchmarks.four_tasks.folder import write_json
from benchmarks.speed.cases import Shape, random_ids, random_model
from benchmarks.speed.clock import clocked_with_memory
from benchmarks.speed.direct import operations, relu_transcoders
from benchmarks.speed.machine import machine_facts, matmul_rates
from circuits import Circuit, trace
from replacement.model import ReplacementModel
from replacement.run import Run

INTERPRETER = "LINEAR_CIRCUITS_ORIGINALS"
ROWS = "rows.safetensors"
NODES = 1000
WARM_UP = 4
"""Tokens of the first, untimed turn of both sides."""


@dataclass(frozen=True)
class Ours:
    """What one turn of ours found."""

    run: Run
    chosen: list[Tensor]
    effects: DirectEffects
    """On features, then on logits."""


@dataclass(frozen=True)
class Peer:
    """circuit-tracer in a process of its own."""

    process: subprocess.Popen[str]
    folder: Path
    version: str

    def attribute(self, tokens: int, targets: int | None, batch: int | None) -> dict[str, Any]:
        """Return what one attribution took; its rows are in the folder then."""
        assert self.process.stdin is not None
        asked = {"tokens": tokens, "targets": targets, "batch": batch, "to": ROWS}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return _line(self.process)


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"circuit-tracer's process ended with {process.wait()}; see above.")
    return json.loads(line)


@contextlib.contextmanager
def peer_of(interpreter: str, folder: Path, threads: int) -> Iterator[Peer]:
    """Yield circuit-tracer, with the model of the folder loaded."""
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    command = [interpreter, "-W", "ignore", "-m", "benchmarks.speed.theirs"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield Peer(process, folder, _line(process)["version"])


def write_folder(folder: Path, shape: Shape) -> Tensor:
    """Write what both sides read; return the token ids."""
    model = random_model(shape)
    model.config.n_ctx = shape.positions  # their loader asks for it
    model.save_pretrained(folder / "model")
    for number, layer in enumerate(relu_transcoders(shape)):
        tables = {
            "W_enc": layer.read,
            "b_enc": layer.read_bias,
            "W_dec": layer.write,
            "b_dec": layer.write_bias,
        }
        save_file(tables, folder / f"layer_{number}.safetensors")
    ids = random_ids(shape)
    write_json(folder / "prompt.json", ids.tolist())
    return ids


def nodes_of(run: Run, features: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return node numbers for every sublayer of (layer, pos, index) rows, and which rows have one.

    Next to a threshold a feature may be active on one side only.
    """
    chosen, found = [], torch.zeros(len(features), dtype=torch.bool)
    for number, layer in enumerate(run.layers):
        active = layer.mlp.active
        mine = active.pos * active.n_features + active.index
        here = features[:, 0] == number
        asked = features[here, 1] * active.n_features + features[here, 2]
        found[here] = torch.isin(asked, mine)
        nodes = torch.isin(mine, asked).nonzero().flatten()
        chosen += [nodes[:0], nodes]  # attention has no features, the MLP has
    return chosen, found


def turn(
    model: ReplacementModel, ids: Tensor, theirs: dict[str, Tensor], precision: str = "float32"
) -> Ours:
    """Return the rows of their nodes and logits, from token ids to blocks."""
    run = model.run(ids)
    chosen, _ = nodes_of(run, theirs["features"])
    logits = [run.logit(token).centered() for token in theirs["logits"].tolist()]
    effects = direct_effects(run, [*chosen, *logits], precision=precision)
    return Ours(run, chosen, effects)


def traced(model: ReplacementModel, ids: Tensor, token: int) -> Circuit:
    """Return the circuit of one logit, from token ids."""
    target = model.run(ids).logit(token).centered()
    return trace(target, threshold=0, max_nodes=NODES, progress=False)


def _ratios(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(theirs[name] / cost, 2) for name, cost in ours.items() if cost}


def differences(ours: Ours, matrix: csr_array, theirs: dict[str, Tensor]) -> dict[str, float]:
    """Return how far rows are apart, as a share of the row's largest effect and of its norm.

    Columns are the features they chose, errors of MLPs and tokens: errors at position 0, which
    they leave out, and what they have no nodes for are left out of ours.
    """
    _, common = nodes_of(ours.run, theirs["features"])
    sources, n_pos = ours.effects.sources, len(ours.run.tokens)
    nodes = [columns[some] for columns, some in zip(ours.effects.nodes, ours.chosen, strict=True)]
    place = torch.full((len(ours.run.layers) * n_pos + n_pos,), -1)
    for layer, pos, column in _places(sources, "error"):
        place[layer * n_pos + pos] = column
    for _, pos, column in _places(sources, "token"):
        place[len(ours.run.layers) * n_pos + pos] = column
    columns = torch.cat([torch.cat(nodes), place])
    seen = columns >= 0
    seen[int(common.sum()) :][: n_pos * len(ours.run.layers) : n_pos] = False
    n_logits = len(theirs["logits"])
    kept_rows = torch.cat([common, torch.ones(n_logits, dtype=torch.bool)])
    kept_columns = torch.cat([common, torch.ones(len(place), dtype=torch.bool)])
    largest, norms = 0.0, 0.0
    dense = matrix[:, columns[seen].numpy()]
    expected = theirs["rows"][kept_rows]
    for start in range(0, len(expected), 1024):
        some = slice(start, start + 1024)
        one = torch.from_numpy(dense[some].toarray()).double()
        other = expected[some][:, kept_columns][:, seen].double()
        off = one - other
        largest = max(largest, float((off.abs().amax(1) / other.abs().amax(1)).max()))
        norms = max(norms, float((off.norm(dim=1) / other.norm(dim=1)).max()))
    return {"largest difference": _rounded(largest), "difference of norms": _rounded(norms)}


def _places(sources: Any, kind: str) -> Iterator[tuple[int, int, int]]:
    rows = sources[sources["kind"].eq(kind) & sources["sublayer"].isin(["", "mlp"])]
    yield from zip(rows["layer"].tolist(), rows["pos"].tolist(), rows.index.tolist(), strict=True)


def _rounded(number: float) -> float:
    return float(f"{number:.2e}")


def compare(
    peer: Peer,
    model: ReplacementModel,
    ids: Tensor,
    targets: int | None,
    batch: int | None,
    precision: str = "float32",
) -> dict[str, Any]:
    """Return what one turn of each side took, and how far the rows are apart."""
    their_cost = peer.attribute(len(ids), targets, batch)
    theirs = load_file(peer.folder / ROWS)
    rate = matmul_rates()[1]
    found, wall, cpu, grown = clocked_with_memory(lambda: turn(model, ids, theirs, precision))
    our_cost = dict(zip(their_cost, (wall, cpu, grown), strict=True))
    matrix, *cost = clocked_with_memory(found.effects.matrix)
    matrix_cost = dict(zip(their_cost, cost, strict=True))
    found_differences = differences(found, matrix, theirs)
    del matrix
    top = theirs["logits"].tolist()[0]
    circuit, *cost = clocked_with_memory(lambda: traced(model, ids, top))
    trace_cost = dict(zip(their_cost, cost, strict=True))
    _, common = nodes_of(found.run, theirs["features"])
    work = operations(found.run, found.chosen)
    return {
        "tokens": len(ids),
        "features": sum(len(layer.mlp.active) for layer in found.run.layers),
        "targets": len(common),
        "of theirs only": int((~common).sum()),
        "their batch": batch or "default",
        "precision": precision,
        "theirs": their_cost,
        "ours": our_cost,
        "theirs / ours": _ratios(their_cost, our_cost),
        "a sparse matrix of it, more": matrix_cost,
        "trace": {**trace_cost, "nodes": NODES, "edges": len(circuit.edges)},
        "theirs / trace": _ratios(their_cost, trace_cost),
        "share of matmul rate by CPU time": round(work / cpu / rate, 3),
        **found_differences,
    }


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="lengths of prompts")] = None,
    targets: Annotated[int | None, typer.Option(help="so many, not all features")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="their batches; 0: default")] = None,
    features: Annotated[int, typer.Option(help="width of the transcoders")] = 2048,
    active: Annotated[int, typer.Option(help="active per token and layer")] = 20,
    threads: Annotated[int, typer.Option(help="threads of each side")] = 1,
    precision: Annotated[str, typer.Option(help=", ".join(PRECISIONS))] = "float32",
    output: Annotated[Path | None, typer.Option("-o", help="JSON file to add to")] = None,
) -> None:
    """Compare direct effects with circuit-tracer's on GPT-2 small's shape."""
    if INTERPRETER not in os.environ:
        raise typer.BadParameter(
            f"{INTERPRETER} names no interpreter that has circuit-tracer: make originals, then set "
            "it to .venv-originals/bin/python."
        )
    torch.set_num_threads(threads)
    lengths, batches = tokens or [16, 32], batch or [4, 16]
    command = "python -m benchmarks.speed.peer"
    command += "".join(f" --tokens {length}" for length in lengths)
    command += "" if targets is None else f" --targets {targets}"
    command += "".join(f" --batch {size}" for size in batches)
    command += f" --features {features} --active {active} --threads {threads}"
    command += f" --precision {precision}"
    shape = replace(Shape(features=features, active=active), tokens=max(lengths))
    machine, rows = machine_facts(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = write_folder(folder, shape)
        hf_model = GPT2LMHeadModel.from_pretrained(folder / "model").eval()
        model = ReplacementModel(hf_model, None, relu_transcoders(shape))
        with peer_of(os.environ[INTERPRETER], folder, threads) as peer:
            compare(peer, model, ids[:WARM_UP], None, WARM_UP)
            machine["circuit-tracer"] = peer.version
            typer.echo(", ".join(f"{name} {fact}" for name, fact in machine.items()))
            for length in lengths:
                for size in batches:
                    rows.append(
                        compare(peer, model, ids[:length], targets, size or None, precision)
                    )
                    typer.echo(json.dumps(rows[-1]))
    if output is not None:
        found = {"command": command, "machine": machine, "shape": asdict(shape), "turns": rows}
        _add(output, found)


def _add(output: Path, found: dict[str, Any]) -> None:
    """Add a run to a file of runs, in place of what the same command gave before."""
    runs = json.loads(output.read_text())["runs"] if output.is_file() else []
    kept = [run for run in runs if run["command"] != found["command"]]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"runs": [*kept, found]})


if __name__ == "__main__":
    typer.run(main)
