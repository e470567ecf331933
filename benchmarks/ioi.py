"""Who gets the drink? The circuit of indirect-object sentences.

`python -m benchmarks.ioi` (`--model NAME` for another, `--published` for the paper's prompts,
which the bundled vocabulary does not hold). Each sentence is compared with the one in
which the other name is repeated (S2 → IO). A run of its own says what wrote the answer, the
contrast what changed it, through queries and keys too; both are means over sentences, by role.
Known from GPT-2 small (Wang et al. 2022): duplicate-token heads tell S2 that it is a repetition,
S-inhibition heads carry that to the end, where name movers copy the name that is left. `without`
is what is left of the metric with that head alone mean-ablated.
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
    output: Annotated[Path, typer.Option("--output", "-o", help=".svg or .html")] = Path("ioi.svg"),
) -> None:
    """Trace, test, name and draw the circuit."""
    loaded = load(model, mlp="neurons", attention="heads")
    found = find(loaded, "ioi", prompts, published=published)
    typer.echo(f"logit of the indirect object less that of the subject: {found.written.value:.3f}")
    typer.echo(f"fewest parts that keep it, on other prompts: {found.kept}")
    typer.echo(found.heads.round(2).to_string(index=False))
    typer.echo(found.neurons.to_string(index=False))
    found.changed.prune(0.5).save(output)
    typer.echo(f"wrote {output}: the parts that hold half of what the counterfactual changed")


if __name__ == "__main__":
    typer.run(main)
