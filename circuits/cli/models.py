"""The command that makes layers: train."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.options import Device, Model
from circuits.cli.running import explained_errors


def train(
    model: Model,
    texts: Annotated[Path, typer.Argument(help='One prompt a line (.jsonl: a "prompt" each).')],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the layers.")],
    kind: Annotated[str, typer.Option(help="transcoders, lorsa or attention-saes.")] = "lorsa",
    features: Annotated[int, typer.Option(help="Features (Lorsa: heads) a layer.")] = 1024,
    k: Annotated[int, typer.Option(help="How many are active at each token.")] = 16,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 4000,
    batch: Annotated[int, typer.Option(help="Prompts a step.")] = 32,
    longest: Annotated[int, typer.Option(help="Longer prompts are split.")] = 128,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the start and the order of the prompts.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for checkpoints.")] = None,
    device: Device = None,
) -> None:
    """Train layers to read a model through; an interrupted run goes on from its last 250 steps.

    Under torchrun all processes share the prompts of every step.

    Example: circuits train ./my-gpt2 prompts.txt --kind lorsa -o my-lorsa
    """
    from circuits import load
    from circuits.ranks import Ranks
    from circuits.training import prompts_of, train_layers

    with explained_errors():
        prompts = prompts_of(texts)
        if output.exists() and not output.is_dir():
            raise ValueError(f"-o {output}: is a file; give a folder, which is made if needed.")
        ranks = Ranks.of_environment()
        device = ranks.device(device)
        loaded = load(model, mlp="neurons", attention="heads", device=device, dtype="float32")
        trained = train_layers(
            loaded,
            prompts,
            kind,
            output,
            batch_size=batch,
            longest=longest,
            work=work,
            n_features=features,
            k=k,
            steps=steps,
            learning_rate=rate,
            seed=seed,
        )
    if ranks.rank == 0:
        typer.echo(str(trained))
