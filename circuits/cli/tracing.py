"""Commands that run a model and trace: demo, plan, trace."""

import json
import sys
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.cli.options import (
    Against,
    AsJson,
    Attention,
    Device,
    Dtype,
    Edges,
    Explain,
    MaxNodes,
    Minus,
    Mlp,
    Model,
    Output,
    Prompt,
    Residual,
    Split,
    Threshold,
)
from circuits.cli.running import (
    as_data,
    check_output,
    explained_errors,
    fail_above,
    print_json,
    written,
)
from circuits.cli.testing import result_data

if TYPE_CHECKING:
    from circuits.circuit import Circuit
    from circuits.many import Traced
    from circuits.testing import KnockOuts, Patches
    from replacement.model import ReplacementModel
    from replacement.target import Target


def demo(
    task: Annotated[str, typer.Option(help="ioi, induction, bracket or greater_than.")] = "ioi",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "demo"
    ),
) -> None:
    """Explain one prediction of the bundled model, test the claim, write the circuit.

    Example: circuits demo --task induction
    """
    from circuits import load

    with explained_errors():
        example = _example(task)
        if output.exists() and not output.is_dir():
            raise ValueError(f"-o {output}: is a file; give a folder, which is made if needed.")
        model = load("four-tasks")
        target = _target(model, example["prompt"], example["explain"], example["minus"])
        circuit = _trace_and_print(target)
        pruned = circuit.prune(0.8)
        result = circuit.test()
        typer.echo(f"\n{result}\n")
        output.mkdir(parents=True, exist_ok=True)
        told = circuit.detailed(test=result)
        files = [
            circuit.save(output / f"{task}.circuit"),
            told.save(output / f"{task}.html"),
            pruned.save(output / f"{task}.svg"),
        ]
    typer.echo(
        f"wrote {files[0]} ({len(circuit.edges):,} edges), {files[1]} (open it in a browser)"
    )
    typer.echo(f"and {files[2]} (a picture, pruned to 80 %)")
    other = "induction" if task == "ioi" else "ioi"
    command = sys.argv[0] if sys.argv[0].startswith(".") else "circuits"  # as it was called
    typer.echo(f"next: {command} show {files[0]}   or   {command} demo --task {other}")
    _end(circuit, result)


def trace(
    model: Model,
    prompt: Annotated[
        str, typer.Argument(help="The text whose next token is explained; or a .jsonl file.")
    ],
    explain: Annotated[
        str | None, typer.Option(help='The token explained, for instance " Mary".')
    ] = None,
    minus: Minus = None,
    against: Against = None,
    mlp: Mlp = None,
    attention: Attention = None,
    residual: Residual = None,
    split: Split = None,
    threshold: Threshold = 0.005,
    max_nodes: MaxNodes = None,
    edges: Edges = "flow",
    device: Device = None,
    dtype: Dtype = None,
    test: Annotated[
        bool, typer.Option(help="Knock out (with --against: patch) every node and measure.")
    ] = False,
    output: Output = None,
    together: Annotated[
        int | None,
        typer.Option(help="Of a file: so many lines at once, lengths alike in one pass."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trace one prediction and print what made it so.

    Many: circuits trace MODEL prompts.jsonl -o FOLDER; a line of the file holds prompt, explain and
    perhaps minus. What is finished is kept; under torchrun all processes share the lines.

    Example: circuits trace four-tasks "When Mary and John went to the store, John gave a drink to"
    --explain " Mary" --minus " John" -o ioi.circuit -o ioi.svg
    """
    from circuits import load
    from circuits.tracer import check_rule

    layers = {"mlp": mlp, "attention": attention, "residual": residual}
    layers |= {"split": split, "dtype": dtype}
    options = {"threshold": threshold, "max_nodes": max_nodes, "edges": edges}
    with explained_errors():
        check_rule(threshold, "absolute", edges)
    if prompt.endswith(".jsonl"):
        from circuits.many import trace_file

        words = {"--explain": explain, "--minus": minus, "--against": against}
        given = {**words, "--test": test or None}
        with explained_errors():
            options["together"] = 1 if together is None else together
            _tell(trace_file(model, Path(prompt), output, given, device, layers, options))
        return
    with explained_errors():
        if together is not None:
            raise ValueError(f"--together {together}: is for a file of prompts, MODEL FILE.jsonl.")
        if explain is None:
            raise ValueError("Missing option '--explain': the token explained, such as \" Mary\".")
        for path in output or []:
            check_output(path)
        loaded = load(model, device=device, **layers)
        target = _target(loaded, prompt, explain, minus)
        circuit = _trace_and_print(_compared(target, against), quiet=as_json, **options)
        result = circuit.test() if test else None
        if as_json:
            print_json({**as_data(circuit), **({} if result is None else result_data(result))})
        elif result is not None:
            typer.echo(f"\n{result}")
        told = circuit
        if result is not None:
            told = circuit.detailed(tokens=0, attention=0, test=result)
        written(told, output, quiet=as_json)
    _end(circuit, result)


def plan(
    model: Model,
    prompt: Prompt,
    explain: Explain,
    minus: Minus = None,
    against: Against = None,
    mlp: Mlp = None,
    attention: Attention = None,
    residual: Residual = None,
    split: Split = None,
    max_nodes: MaxNodes = None,
    device: Device = None,
    dtype: Dtype = None,
    dry: Annotated[
        bool, typer.Option("--dry", help="Stop before a weight is read or fetched.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print what loading and a trace would cost: bytes to download, memory, nodes, passes.

    Example: circuits plan four-tasks "The war lasted from the year 17 32 to the year 17" --explain
    " 50"
    """
    import circuits
    from circuits.loading_plan import loading_plan

    read_as = {"mlp": mlp, "attention": attention, "residual": residual}
    place = {"device": device, "dtype": dtype}
    with explained_errors():
        needed = loading_plan(model, **read_as, **place)
        told: dict[str, Any] = {"loading": {**asdict(needed), "bytes": needed.bytes}}
        if not as_json:
            typer.echo(str(needed))
        if not dry:
            loaded = circuits.load(model, **read_as, **place, split=split)
            target = _compared(_target(loaded, prompt, explain, minus), against)
            tracing = circuits.plan(target, max_nodes)
            told |= {"target": target.label, "value": target.value, "trace": asdict(tracing)}
            if not as_json:
                typer.echo(f"target   {target.label} = {target.value:.4f}\n{tracing}")
    if as_json:
        print_json(told)


def _example(task: str) -> dict[str, str]:
    stored = resources.files("replacement") / "bundled" / "four-tasks" / "prompts.json"
    examples = json.loads(stored.read_text(encoding="utf-8"))
    of_task = [example for example in examples if example["task"] == task]
    if not of_task:
        known = ", ".join(dict.fromkeys(example["task"] for example in examples))
        raise ValueError(f"circuits demo --task {task}: no such task. Known: {known}.")
    return of_task[0]


def _target(model: "ReplacementModel", prompt: str, explain: str, minus: str | None) -> "Target":
    from circuits.many import target_of

    return target_of(model.run(prompt), explain, minus)


def _compared(target: "Target", against: str | None) -> "Target":
    """The target, or by how much it exceeds what it is with another prompt."""
    from circuits.contrasting import contrasted

    return target if against is None else contrasted(target, against)


def _tell(traced: "Traced") -> None:
    """What came of a file of prompts; exit 1 where a line failed or a sum does not close."""
    if traced.rank:
        return
    typer.echo(str(traced))
    for problem in traced.problems:
        typer.echo(f"circuits: {problem}", err=True)
    if traced.problems:
        raise typer.Exit(1)


def _trace_and_print(
    target: "Target", max_nodes: int | None = None, quiet: bool = False, **options: Any
) -> "Circuit":
    """Print the plan before the work, then the circuit; all of it to stderr where quiet."""
    import circuits

    typer.echo(f"model    {target.run.model}", err=quiet)
    typer.echo(f"target   {target.label} = {target.value:.4f}", err=quiet)
    typer.echo(f"{circuits.plan(target, max_nodes)}\n", err=quiet)
    circuit = circuits.trace(target, max_nodes=max_nodes, **options)
    if not quiet:
        typer.echo(str(circuit))
    return circuit


def _end(circuit: "Circuit", result: "KnockOuts | Patches | None") -> None:
    """Exit 1 where a sum does not close or a prediction does not hold."""
    checks = dict(circuit.meta["checks"])
    held = getattr(result, "deviation", None)  # patches of a contrast promise nothing
    if held is not None:
        checks["knock-outs"] = held
    fail_above(checks)
