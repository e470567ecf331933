"""python -m benchmarks.five_tasks model | evaluate: train the second bundled model, measure it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.five_tasks.card import card
from benchmarks.four_tasks.evaluate import FIVE_TRIALS, evaluate
from benchmarks.four_tasks.folder import load_model, save_model, weight_files, write_json
from benchmarks.four_tasks.measuring import tests_of, versions
from benchmarks.four_tasks.model import ModelSettings, train_model
from graphs.files.atomic import write_whole

SETTINGS = ModelSettings(sequence=48)

app = typer.Typer(help="Train, measure and describe the second model.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder of the model.")]


@app.command()
def model(
    out: Out,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints; a run goes on from there.")],
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 1,
) -> None:
    """Train the model and write it, its tokenizer and its prompts to OUT."""
    torch.set_num_threads(threads)
    save_model(train_model(SETTINGS, work), out, sequences=True)
    typer.echo(f"wrote {out}")


@app.command(name="evaluate")
def measure(out: Out, count: int = 1000) -> None:
    """Measure the model as stored; write OUT/figures.json and the model card OUT/README.md."""
    torch.set_num_threads(1)
    stored = load_model(out)
    figures = {
        "prompts_per_test": count,
        "seed": 0,
        "versions": versions(),
        "weights_sha256": weight_files(out),
        "model": {
            "settings": asdict(SETTINGS),
            "parameters": stored.num_parameters(),
            "tests": tests_of(evaluate(stored, count, trials=FIVE_TRIALS)),
        },
    }
    write_json(out / "figures.json", figures)
    write_whole(out / "README.md", card(figures, stored.config.vocab_size).encode())
    for name, row in figures["model"]["tests"].items():
        typer.echo(f"{name}: {row['reached']:.4f}")


if __name__ == "__main__":
    app()
