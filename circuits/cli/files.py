"""Commands about saved circuits, without a model: show, convert."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.options import AsJson, CircuitFile, Output
from circuits.cli.running import (
    as_data,
    check_output,
    explained_errors,
    fail_above,
    print_json,
    write_both,
    written,
)

Prune = Annotated[float | None, typer.Option(help="Keep the nodes and edges that hold this share.")]


def show(
    file: CircuitFile,
    prune: Prune = None,
    paths: Annotated[int, typer.Option(help="Print so many of the strongest paths.")] = 5,
    output: Output = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open its page in a browser.")] = False,
    beside: Annotated[
        Path | None, typer.Option("--with", help="A second circuit, for the page of both.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a saved circuit, prune it, draw it; needs no model and no torch.

    Example: circuits show ioi.circuit --prune 0.6 -o ioi.svg

    Two in one page: circuits show one.circuit --with other.circuit -o both.html
    """
    from circuits import read
    from graphs import summary

    with explained_errors():
        for path in output or []:
            check_output(path, two=beside is not None)
        circuit = read(file)
        other = None if beside is None else read(beside)
        if prune is not None:
            circuit, other = circuit.prune(prune), None if other is None else other.prune(prune)
        if as_json:
            print_json(as_data(circuit, paths))
        else:
            typer.echo(summary(circuit.data, paths=paths))
        if other is None:
            written(circuit, output, quiet=as_json)
        else:
            write_both(circuit, other, output, quiet=as_json)
        if browser:
            typer.echo(f"opened {circuit.show(other)}", err=True)
        conservation = circuit.data.conservation()
    fail_above({"conservation": conservation})


def convert(
    file: CircuitFile,
    output: Annotated[
        list[Path], typer.Argument(help="Files to write; the ending of each decides its format.")
    ],
    prune: Prune = None,
) -> None:
    """Write a saved circuit in other formats; all that can be read: .circuit, .json, .pt.

    .json is Neuronpedia's format, and circuit-tracer's; .pt is circuit-tracer's.

    Example: circuits convert ioi.circuit ioi.json ioi.graphml
    """
    from circuits import read

    with explained_errors():
        for path in output:
            check_output(path)
        circuit = read(file)
        written(circuit if prune is None else circuit.prune(prune), output)
