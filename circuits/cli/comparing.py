"""The command that lays two saved circuits side by side, without a model: compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.cli.options import AsJson, CircuitFile
from circuits.cli.running import (
    check_output,
    explained_errors,
    fail_above,
    print_json,
    write_both,
)

if TYPE_CHECKING:
    from graphs.comparing import Comparison


def compare(
    a: CircuitFile,
    b: CircuitFile,
    pooled: Annotated[
        bool,
        typer.Option("--pooled", help="Leave positions out, as for prompts of other lengths."),
    ] = False,
    output: Annotated[
        list[Path] | None, typer.Option("--output", "-o", help="A page (.html) of both.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what two saved circuits of one model share, and what only one has; needs no model.

    Nodes meet by position, of means over prompts by role.

    Example: circuits compare one.circuit other.circuit -o both.html
    """
    import circuits

    with explained_errors():
        for path in output or []:
            check_output(path, two=True)
        one, other = circuits.read(a), circuits.read(b)
        try:
            found = circuits.compare(one, other, roles="pooled" if pooled else None)
        except ValueError as problem:
            what, by_roles, _ = str(problem).partition(" Give roles=")
            raise ValueError(f"{what} Give --pooled." if by_roles else what) from None
        print_json(comparison_data(found)) if as_json else typer.echo(str(found))
        if output:
            write_both(one, other, output, quiet=as_json)
    fail_above({"conservation": max(one.data.conservation(), other.data.conservation())})


def comparison_data(found: "Comparison") -> dict[str, Any]:
    """Return a comparison as data: scores, and the nodes of each side, strongest first."""
    scores = found.scores.astype(object).where(found.scores.notna(), None).to_dict("index")
    parts: dict[str, Any] = {
        "shared": found.shared,
        "only_a": found.only_a,
        "only_b": found.only_b,
    }
    columns = ["name", "kind", "a", "b"]
    return {
        "scores": scores,
        **{name: rows[columns].to_dict("records") for name, rows in parts.items()},
    }
