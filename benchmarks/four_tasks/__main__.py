"""python -m benchmarks.four_tasks model | transcoders | evaluate | card"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.four_tasks.card import card
from benchmarks.four_tasks.folder import (
    load_model,
    save_layers,
    save_model,
    write_json,
)
from benchmarks.four_tasks.measuring import measure_folder
from benchmarks.four_tasks.model import ModelSettings, train_model
from benchmarks.four_tasks.transcoders import SETTINGS, training_batches
from graphs.files.atomic import write_whole
from replacement.training import train_transcoders

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
    torch.set_num_threads(threads)
    batches = training_batches(SETTINGS.seed)
    save_layers(train_transcoders(load_model(out), batches, SETTINGS, work), out)
    typer.echo(f"wrote {out / 'transcoders'}")


@app.command()
def evaluate(out: Out, count: int = 1000, threads: Threads = 1) -> None:
    """Measure the model and its transcoders as stored; write OUT/figures.json."""
    torch.set_num_threads(threads)
    figures = measure_folder(out, count)
    write_json(out / "figures.json", figures)
    for name, test in figures["model"]["tests"].items():
        in_place = figures["transcoders"]["tests"][name]["reached"]
        typer.echo(f"{name:32} {test['reached']:.4f}   transcoders in place {in_place:.4f}")
    for index, layer in enumerate(figures["transcoders"]["layers"]):
        explained, l0 = layer["variance_explained"], layer["l0"]
        typer.echo(f"layer {index}: variance explained {explained:.4f}, L0 {l0:.2f}")


@app.command(name="card")
def write_card(out: Out) -> None:
    """Write the model card OUT/README.md from OUT/figures.json."""
    figures = json.loads((out / "figures.json").read_text())
    d_vocab = json.loads((out / "config.json").read_text())["vocab_size"]
    write_whole(out / "README.md", card(figures, d_vocab).encode())
    typer.echo(f"wrote {out / 'README.md'}")


if __name__ == "__main__":
    app()
