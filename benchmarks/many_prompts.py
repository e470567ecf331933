"""What the mean circuit of many prompts costs: memory as they come, time beside single traces.

Indirect-object sentences of the bundled model are averaged in a process of their own that is killed
half way and started again; another does them in one go. Reported are anonymous memory (RssAnon)
along the way, processor seconds a prompt, the same for `model.run` and `trace` alone, taken in turn
with them on the same prompts, and whether both folders hold the same files.
"""

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.speed.clock import memory_mb
from benchmarks.tasks.ioi import ioi
from circuits import load, trace, trace_many

FILES = ("nodes.parquet", "edges.parquet", "prompts.parquet", "asked.json")
SAMPLES = 20


def rows_of(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield so many sentences of the training split, with roles and what to explain."""
    drawn = random.Random(seed)
    for _ in range(count):
        example = ioi(drawn, "train")
        answer = example.answers[-1]
        yield {
            "prompt": example.prompt(),
            "explain": f" {answer.right[0]}",
            "minus": f" {answer.wrong[0]}",
            "roles": {name: list(places) for name, places in example.roles.items()},
        }


def watched(count: int, found: dict[str, Any], kill_at: int | None) -> Iterator[dict[str, Any]]:
    """Yield the rows, noting memory on the way; end the process at one of them."""
    every = max(1, count // SAMPLES)
    for number, row in enumerate(rows_of(count)):
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if number % every == 0:
            found["memory_mb"].append(round(memory_mb("RssAnon"), 1))
        yield row


def average(folder: Path, count: int, attention: str, kill_at: int | None, report: Path) -> None:
    """Average the circuits of all rows into a folder, and write what it took."""
    model = load("four-tasks", attention=attention)
    found: dict[str, Any] = {"memory_mb": []}
    begun, wall = time.process_time(), time.perf_counter()
    mean = trace_many(watched(count, found, kill_at), model=model, folder=folder, progress=False)
    found["cpu_s"] = round(time.process_time() - begun, 2)
    found["wall_s"] = round(time.perf_counter() - wall, 2)
    found["memory_mb"].append(round(memory_mb("RssAnon"), 1))
    found |= {"nodes": len(mean.nodes), "edges": len(mean.edges), **mean.meta["checks"]}
    report.write_text(json.dumps(found))


def single(count: int, attention: str, report: Path) -> None:
    """Write the processor seconds of running and tracing some of the rows one by one."""
    model = load("four-tasks", attention=attention)
    begun = time.process_time()
    for row in rows_of(count):
        run = model.run(row["prompt"])
        trace(run.logit(row["explain"]) - run.logit(row["minus"]), progress=False)
    report.write_text(json.dumps({"cpu_s": round(time.process_time() - begun, 2)}))


def in_a_process(job: Any, *given: Any) -> int:
    """Run a job in a fresh process and return its exit status."""
    process = multiprocessing.get_context("spawn").Process(target=job, args=given)
    process.start()
    process.join()
    return process.exitcode or 0


def measure(count: int, attention: str) -> dict[str, Any]:
    """Return what averaging so many prompts took, once in one go and once killed half way."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        whole, killed = place / "whole", place / "killed"
        alone, report = place / "single.json", place / "report.json"
        in_a_process(single, min(count, 100), attention, alone)
        status = in_a_process(average, killed, count, attention, count // 2, report)
        kept = len(list((killed / "blocks").glob("block-*")))
        in_a_process(average, killed, count, attention, None, report)
        resumed = json.loads(report.read_text())
        in_a_process(average, whole, count, attention, None, report)
        found = json.loads(report.read_text())
        same = all((whole / one).read_bytes() == (killed / one).read_bytes() for one in FILES)
        each = json.loads(alone.read_text())["cpu_s"] / min(count, 100)
        return {
            "prompts": count,
            "attention": attention,
            **found,
            "cpu_ms_per_prompt": round(1000 * found["cpu_s"] / count, 1),
            "cpu_ms_per_single_trace": round(1000 * each, 1),
            "disk_mb": round(sum(one.stat().st_size for one in whole.rglob("*.parquet")) / 1e6, 1),
            "killed": {"status": status, "blocks_kept": kept, "cpu_s_to_finish": resumed["cpu_s"]},
            "same_files": same,
        }


def main(
    count: Annotated[int, typer.Option(help="prompts")] = 2000,
    attention: Annotated[str, typer.Option(help='"heads" or "lorsa"')] = "heads",
    output: Annotated[Path | None, typer.Option("-o", help="JSON file to keep")] = None,
) -> None:
    """Average the circuits of many prompts; measure memory, time, and going on after a kill."""
    text = json.dumps(measure(count, attention), indent=1)
    typer.echo(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
