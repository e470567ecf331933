"""Commands about feature cards: features build, features show."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.cli.options import AsJson, Attention, Device, Dtype, Mlp, Model, Residual, Split
from circuits.cli.running import explained_errors, print_json

if TYPE_CHECKING:
    from circuits.cards import Card

app = typer.Typer(
    no_args_is_help=True, help="What every feature does over many prompts: build it, show it."
)


@app.command()
def build(
    model: Model,
    texts: Annotated[Path, typer.Argument(help='A "prompt" a line (.jsonl), or a text a line.')],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the cards.")],
    mlp: Mlp = None,
    attention: Attention = None,
    residual: Residual = None,
    split: Split = None,
    top: Annotated[int, typer.Option(help="Examples of every feature.")] = 10,
    tokens: Annotated[int, typer.Option(help="Tokens it promotes, …; 0 is fastest.")] = 10,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Read prompts once and keep what every feature did; cards that are there are replaced.

    Example: circuits features build four-tasks prompts.jsonl -o cards
    """
    from circuits import build_features, load
    from circuits.training import prompts_of

    with explained_errors():
        prompts = prompts_of(texts)
        read_as = {"mlp": mlp, "attention": attention, "residual": residual, "split": split}
        loaded = load(model, **read_as, device=device, dtype=dtype)
        cards = build_features(loaded, prompts, output, top=top, tokens=tokens)
    typer.echo(f"{cards}\nwrote {output}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A folder that features build wrote.")],
    name: Annotated[str, typer.Argument(help="A feature, such as L3.f449.")],
    as_json: AsJson = False,
) -> None:
    """Print the card of a feature; needs no model and no torch.

    Example: circuits features show cards L3.f449
    """
    from circuits import read_cards

    with explained_errors():
        cards = read_cards(folder)
        try:
            card = cards.card(name)
        except KeyError as problem:
            raise ValueError(problem.args[0]) from None
    print_json(card_data(card)) if as_json else typer.echo(str(card))


def card_data(card: "Card") -> dict[str, Any]:
    """Return a card as data."""
    parts = [
        json.loads(str(part.to_json(orient="records")))
        for part in (card.feature.to_frame().T, card.examples, card.tokens)
    ]
    return {**parts[0][0], "examples": parts[1], "tokens": parts[2]}
