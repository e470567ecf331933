"""python -m benchmarks.four_tasks model | transcoders | lorsa | attention-saes | evaluate | …"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.four_tasks.card import card
from benchmarks.four_tasks.folder import load_model, save_model, write_json
from benchmarks.four_tasks.frontier import measure_frontier, read_frontier
from benchmarks.four_tasks.layer_kinds import KINDS, save_kind, train_kind
from benchmarks.four_tasks.measuring import measure_folder
from benchmarks.four_tasks.model import ModelSettings, train_model
from graphs.files.atomic import write_whole

app = typer.Typer(help="Train, measure and describe the bundled model.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder of the model.")]
Work = Annotated[Path, typer.Option(help="Folder for checkpoints; a run goes on from there.")]
Threads = Annotated[int, typer.Option(help="Processor threads.")]


@app.command()
def model(out: Out, work: Work, threads: Threads = 1) -> None:
    """Train the model and write it, its tokenizer and its prompts to OUT."""
    torch.set_num_threads(threads)
    save_model(train_model(ModelSettings(), work), out)
    typer.echo(f"wrote {out}")


@app.command()
def transcoders(out: Out, work: Work, threads: Threads = 1) -> None:
    """Train the transcoders of the model in OUT and write them beside it."""
    _train("transcoders", out, work, threads)


@app.command()
def lorsa(out: Out, work: Work, threads: Threads = 1) -> None:
    """Train the Lorsa layers of the model in OUT and write them beside it."""
    _train("lorsa", out, work, threads)


@app.command()
def attention_saes(out: Out, work: Work, threads: Threads = 1) -> None:
    """Train SAEs on what attention writes in the model in OUT and write them beside it."""
    _train("attention-saes", out, work, threads)


def _train(kind: str, out: Path, work: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    save_kind(kind, train_kind(kind, load_model(out), KINDS[kind].settings, work), out)
    typer.echo(f"wrote {out / kind}")


@app.command()
def evaluate(out: Out, count: int = 1000, threads: Threads = 1) -> None:
    """Measure the model and its layers as stored; write OUT/figures.json."""
    torch.set_num_threads(threads)
    figures = measure_folder(out, count)
    write_json(out / "figures.json", figures)
    for name, found in {"the model alone": figures["model"], **figures["in_place"]}.items():
        reached = (f"{test} {row['reached']:.4f}" for test, row in found["tests"].items())
        typer.echo(f"{name}: {', '.join(reached)}")
    for kind, found in figures["layers"].items():
        for index, layer in enumerate(found["metrics"]):
            typer.echo(
                f"{kind}, layer {index}: variance explained {layer['variance_explained']:.4f}, "
                f"L0 {layer['l0']:.2f}, never active {layer['dead']:.4f}"
            )


@app.command()
def frontier(out: Out, work: Work, count: int = 1000, threads: Threads = 1) -> None:
    """Train Lorsa and SAEs with several k and measure them; write OUT/frontier.json."""
    torch.set_num_threads(threads)
    write_json(out / "frontier.json", measure_frontier(out, work, count))
    typer.echo(f"wrote {out / 'frontier.json'}")


@app.command(name="card")
def write_card(out: Out) -> None:
    """Write the model card OUT/README.md from OUT/figures.json and, if there, OUT/frontier.json."""
    figures = json.loads((out / "figures.json").read_text())
    d_vocab = json.loads((out / "config.json").read_text())["vocab_size"]
    write_whole(out / "README.md", card(figures, read_frontier(out), d_vocab).encode())
    typer.echo(f"wrote {out / 'README.md'}")


if __name__ == "__main__":
    app()
