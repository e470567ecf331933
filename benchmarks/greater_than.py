"""A later year of the same century: the circuit of comparing years.

`python -m benchmarks.greater_than` (`--model NAME` for another, `--published` for the paper's
prompts, which the bundled model's vocabulary does not hold). Each sentence is compared with
one that begins in the earliest year (YY → 02). Known from GPT-2 small (Hanna et al. 2023): heads at
the last token (XX2) look at YY and pass it on, and late MLPs raise the years above it. The target
traced is the mean logit of later years less that of the others, which is linear; the published
difference of probabilities is in the report (`python -m benchmarks`). `without` is what is left
with that head alone mean-ablated.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.role_circuits import find
from circuits import load


def main(
    model: Annotated[str, typer.Option(help="What `load` takes.")] = "four-tasks",
    prompts: Annotated[int, typer.Option(help="Prompts to trace; as many to test on.")] = 24,
    published: Annotated[bool, typer.Option("--published", help="The paper's prompts.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help=".svg or .html")] = Path(
        "greater_than.svg"
    ),
) -> None:
    """Trace, test, name and draw the circuit."""
    loaded = load(model, mlp="neurons", attention="heads")
    found = find(loaded, "greater_than", prompts, published=published)
    typer.echo(f"mean logit of later years less that of the others: {found.written.value:.3f}")
    typer.echo(f"fewest parts that keep it, on other prompts: {found.kept}")
    typer.echo(found.heads.round(2).to_string(index=False))
    typer.echo(found.neurons.to_string(index=False))
    found.changed.prune(0.5).save(output)
    typer.echo(f"wrote {output}: the parts that hold half of what the counterfactual changed")


if __name__ == "__main__":
    typer.run(main)
