"""The command that lists what there is: list."""

from typing import Annotated

import typer

from circuits.cli.running import explained_errors, print_json


def list_sets(
    model: Annotated[str | None, typer.Argument(help="Only layers of this model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, all columns.")] = False,
) -> None:
    """Print the bundled models and the published sets: --mlp, --attention or --residual NAME.

    Sizes with ~ are computed from shapes. Needs no network and no torch.

    Example: circuits list gpt2
    """
    from circuits.catalogue import rows, table

    with explained_errors():
        shown = rows(model)
    print_json(shown) if as_json else typer.echo(table(shown))
