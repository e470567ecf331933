"""What followed the last time follows again: the circuit of repetition.

`python -m benchmarks.induction` (`--model NAME` for another). Each text is compared with one whose
first copy has another word where the answer comes from (SOURCE). Known (Olsson et al. 2022): a
head at SOURCE looks at the token before it, and a later head at the end, whose token is that one's
copy, finds SOURCE by it and copies what stands there. `without` is what is left of the metric with
that head alone mean-ablated. `python -m benchmarks.induction_circuit` asks the same of single
random sequences, with Lorsa too.
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
        "induction.svg"
    ),
) -> None:
    """Trace, test, name and draw the circuit."""
    loaded = load(model, mlp="neurons", attention="heads")
    found = find(loaded, "induction", prompts)
    typer.echo(
        f"logit of the repeated word less that of the one in its place: {found.written.value:.3f}"
    )
    typer.echo(f"fewest parts that keep it, on other prompts: {found.kept}")
    typer.echo(found.heads.round(2).to_string(index=False))
    typer.echo(found.neurons.to_string(index=False))
    drawn = found.changed if found.apart is None else found.apart
    drawn.prune(0.5).save(output)
    typer.echo(f"wrote {output}: the parts that hold half of what sets prompts apart")


if __name__ == "__main__":
    typer.run(main)
