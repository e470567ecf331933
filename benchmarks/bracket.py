"""Which bracket closes the last one left open?

`python -m benchmarks.bracket` (`--model NAME` for another). Each text is compared with one in which
the bracket to be closed (OPENER) is of another kind; the answer comes after END. No circuit is
published for this task of three kinds (Redwood's classifier asks whether a string is balanced):
what is shown is what the measures say. `without` is what is left of the metric with that head
alone mean-ablated.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.role_circuits import find
from circuits import load


def main(
    model: Annotated[str, typer.Option(help="What `load` takes.")] = "four-tasks",
    prompts: Annotated[int, typer.Option(help="Prompts to trace; as many to test on.")] = 24,
    output: Annotated[Path, typer.Option("--output", "-o", help=".svg or .html")] = Path(
        "bracket.svg"
    ),
) -> None:
    """Trace, test, name and draw the circuit."""
    loaded = load(model, mlp="neurons", attention="heads")
    found = find(loaded, "bracket", prompts)
    typer.echo(f"logit of its closing bracket less that of another kind: {found.written.value:.3f}")
    typer.echo(f"fewest parts that keep it, on other prompts: {found.kept}")
    typer.echo(found.heads.round(2).to_string(index=False))
    typer.echo(found.neurons.to_string(index=False))
    found.changed.prune(0.5).save(output)
    typer.echo(f"wrote {output}: the parts that hold half of what the counterfactual changed")


if __name__ == "__main__":
    typer.run(main)
