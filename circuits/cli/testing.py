"""The command that tests a saved circuit in its model: test."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.cli.options import AsJson, CircuitFile, Device, Output
from circuits.cli.running import check_output, explained_errors, fail_above, print_json, written

if TYPE_CHECKING:
    from circuits.testing import KnockOuts, Patches


def test(
    file: CircuitFile,
    model: Annotated[
        str | None, typer.Option(help="Where its model is; by default as the circuit says.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="So many nodes at once.")] = None,
    device: Device = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Knock out every node of a saved circuit in its model: predicted beside measured.

    Files written with -o hold the measured effects, and pages show them.

    Example: circuits test ioi.circuit -o ioi.html
    """
    from circuits import load, read

    with explained_errors():
        for path in output or []:
            check_output(path)
        circuit = read(file)
        meta = circuit.meta
        name = model or meta.get("model")
        if not isinstance(name, str) or not isinstance(meta.get("layers", {}), dict):
            raise ValueError(f"{file} does not say which model it is of. Give --model.")
        layers = {**meta.get("layers", {})}
        kept = circuit.data.kept_in
        loaded = load(name, device=device, dtype=None if kept == "float32" else kept, **layers)
        circuit = circuit.attach(loaded)
        result = circuit.test(batch=batch)
        if as_json:
            print_json(result_data(result))
        else:
            typer.echo(str(result))
        circuit = circuit.detailed(tokens=0, attention=0, test=result)
        written(circuit, output, quiet=as_json)
    deviation = getattr(result, "deviation", None)  # patches of a contrast promise nothing
    fail_above({} if deviation is None else {"knock-outs": deviation})


def result_data(result: "KnockOuts | Patches") -> dict[str, Any]:
    """Return a test as data: every node, and how well prediction and measurement agree."""
    correlation = result.correlation
    data: dict[str, Any] = {
        "tested": result.table.reset_index().to_dict("records"),
        "correlation": None if correlation != correlation else correlation,
    }
    deviation = getattr(result, "deviation", None)
    return data if deviation is None else {**data, "deviation": deviation}
