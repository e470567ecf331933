"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Exit codes: 0, 1 for a check that failed, 2 for bad arguments.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from circuits.circuit import Circuit
    from circuits.many import Traced
    from circuits.testing import KnockOuts, Patches
    from replacement.model import ReplacementModel
    from replacement.target import Target

app = typer.Typer(
    name="circuits",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which tokens, heads and features made a language model predict this, exactly.",
)

Model = Annotated[str, typer.Argument(help="four-tasks, a folder, or a Hugging Face hub name.")]
Prompt = Annotated[str, typer.Argument(help="The text whose next token is explained.")]
Explain = Annotated[str, typer.Option(help='The token explained, for instance " Mary".')]
Minus = Annotated[
    str | None,
    typer.Option(help="Explain the difference to this token's logit; else to the mean logit."),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="Compare with this prompt of as many tokens: explain by how much the target exceeds "
        "what it is there."
    ),
]
Mlp = Annotated[
    str | None,
    typer.Option(
        help='What MLPs are read as: "neurons", "transcoders", a folder of them, or a published '
        "set (circuits list)."
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help='What attention is read as: "heads", "lorsa", "attention-saes", a folder of either, '
        "or a published set (circuits list)."
    ),
]
Residual = Annotated[
    str | None,
    typer.Option(
        help='What the residual stream is read as: "stream" (itself), "residual-saes", a folder of '
        "SAEs, or a published set (circuits list)."
    ),
]
Edges = Annotated[
    str,
    typer.Option(
        help='"flow": what moved along the stream; "direct": effects through heads; or "both".'
    ),
]
Threshold = Annotated[float, typer.Option(help="Share of the target a node must contribute.")]
MaxNodes = Annotated[int | None, typer.Option(help="Keep at most so many nodes.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; default: cuda where there is one.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32 (default), float64, or bfloat16 (weights kept so, computed in float32)."
    ),
]
Output = Annotated[
    list[Path] | None,
    typer.Option("--output", "-o", help="Write here; the ending decides: .circuit or .svg."),
]


@app.command()
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

    with _explained_errors():
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
        files = [circuit.save(output / f"{task}.circuit"), pruned.save(output / f"{task}.svg")]
    typer.echo(f"wrote {files[0]} ({len(circuit.edges):,} edges) and {files[1]} (pruned to 80 %)")
    other = "induction" if task == "ioi" else "ioi"
    command = sys.argv[0] if sys.argv[0].startswith(".") else "circuits"  # as it was called
    typer.echo(f"next: {command} show {files[0]}   or   {command} demo --task {other}")
    _end(circuit, result)


@app.command()
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
    threshold: Threshold = 0.005,
    max_nodes: MaxNodes = None,
    edges: Edges = "flow",
    device: Device = None,
    dtype: Dtype = None,
    test: Annotated[
        bool, typer.Option(help="Knock out (with --against: patch) every node and measure.")
    ] = False,
    output: Output = None,
) -> None:
    """Trace one prediction and print what made it so.

    Many: circuits trace MODEL prompts.jsonl -o FOLDER; a line of the file holds prompt, explain and
    perhaps minus. What is finished is kept; under torchrun all processes share the lines.

    Example: circuits trace four-tasks "When Mary and John went to the store, John gave a drink to"
    --explain " Mary" --minus " John" -o ioi.circuit -o ioi.svg
    """
    from circuits import load
    from circuits.tracer import check_rule

    layers = {"mlp": mlp, "attention": attention, "residual": residual, "dtype": dtype}
    options = {"threshold": threshold, "max_nodes": max_nodes, "edges": edges}
    with _explained_errors():
        check_rule(threshold, "absolute", edges)
    if prompt.endswith(".jsonl"):
        from circuits.many import trace_file

        words = {"--explain": explain, "--minus": minus, "--against": against}
        given = {**words, "--test": test or None}
        with _explained_errors():
            _tell(trace_file(model, Path(prompt), output, given, device, layers, options))
        return
    with _explained_errors():
        if explain is None:
            raise ValueError("Missing option '--explain': the token explained, such as \" Mary\".")
        for path in output or []:
            _check_output(path)
        loaded = load(model, device=device, **layers)
        target = _target(loaded, prompt, explain, minus)
        circuit = _trace_and_print(_compared(target, against), **options)
        result = circuit.test() if test else None
        if result is not None:
            typer.echo(f"\n{result}")
        for path in output or []:
            typer.echo(f"wrote {circuit.save(path)}")
    _end(circuit, result)


@app.command()
def plan(
    model: Model,
    prompt: Prompt,
    explain: Explain,
    minus: Minus = None,
    against: Against = None,
    mlp: Mlp = None,
    attention: Attention = None,
    residual: Residual = None,
    max_nodes: MaxNodes = None,
    device: Device = None,
    dtype: Dtype = None,
    dry: Annotated[
        bool, typer.Option("--dry", help="Stop before a weight is read or fetched.")
    ] = False,
) -> None:
    """Print what loading and a trace would cost: bytes to download, memory, nodes, passes.

    Example: circuits plan four-tasks "The war lasted from the year 17 32 to the year 17" --explain
    " 50"
    """
    import circuits
    from circuits.loading_plan import loading_plan

    with _explained_errors():
        needed = loading_plan(
            model, mlp=mlp, attention=attention, residual=residual, device=device, dtype=dtype
        )
        typer.echo(str(needed))
        if dry:
            return
        loaded = circuits.load(
            model, mlp=mlp, attention=attention, residual=residual, device=device, dtype=dtype
        )
        target = _compared(_target(loaded, prompt, explain, minus), against)
        typer.echo(f"target   {target.label} = {target.value:.4f}")
        typer.echo(str(circuits.plan(target, max_nodes)))


@app.command("list")
def list_sets(
    model: Annotated[str | None, typer.Argument(help="Only layers of this model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, all columns.")] = False,
) -> None:
    """Print the bundled models and the published sets: --mlp, --attention or --residual NAME.

    Sizes with ~ are computed from shapes. Needs no network and no torch.

    Example: circuits list gpt2
    """
    from circuits.catalogue import rows, table

    with _explained_errors():
        shown = rows(model)
    typer.echo(json.dumps(shown, indent=1) if as_json else table(shown))


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A .circuit file.")],
    prune: Annotated[
        float | None, typer.Option(help="Keep the nodes and edges that hold this share.")
    ] = None,
    paths: Annotated[int, typer.Option(help="Print so many of the strongest paths.")] = 5,
    output: Output = None,
) -> None:
    """Print a saved circuit, prune it, draw it; needs no model and no torch.

    Example: circuits show ioi.circuit --prune 0.6 -o ioi.svg
    """
    from circuits import read

    with _explained_errors():
        for path in output or []:
            _check_output(path)
        circuit = read(file)
        if prune is not None:
            circuit = circuit.prune(prune)
        typer.echo(str(circuit))
        if paths != 5:
            typer.echo(circuit.paths(paths)[["flow", "text"]].to_string(index=False))
        for path in output or []:
            typer.echo(f"wrote {circuit.save(path)}")
        conservation = circuit.data.conservation()
    _fail_above({"conservation": conservation})


@app.command()
def train(
    model: Model,
    texts: Annotated[Path, typer.Argument(help='One prompt a line (.jsonl: a "prompt" each).')],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the layers.")],
    kind: Annotated[str, typer.Option(help="transcoders, lorsa or attention-saes.")] = "lorsa",
    features: Annotated[int, typer.Option(help="Features (Lorsa: heads) a layer.")] = 1024,
    k: Annotated[int, typer.Option(help="How many are active at each token.")] = 16,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 4000,
    batch: Annotated[int, typer.Option(help="Prompts a step.")] = 32,
    longest: Annotated[int, typer.Option(help="Longer prompts are split.")] = 128,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the start and the order of the prompts.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for checkpoints.")] = None,
    device: Device = None,
) -> None:
    """Train layers to read a model through; an interrupted run goes on from its last 250 steps.

    Example: circuits train ./my-gpt2 prompts.txt --kind lorsa -o my-lorsa
    """
    from circuits import load
    from circuits.training import prompts_of, train_layers

    with _explained_errors():
        prompts = prompts_of(texts)
        if output.exists() and not output.is_dir():
            raise ValueError(f"-o {output}: is a file; give a folder, which is made if needed.")
        loaded = load(model, mlp="neurons", attention="heads", device=device, dtype="float32")
        trained = train_layers(
            loaded,
            prompts,
            kind,
            output,
            batch_size=batch,
            longest=longest,
            work=work,
            n_features=features,
            k=k,
            steps=steps,
            learning_rate=rate,
            seed=seed,
        )
    typer.echo(str(trained))


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


def _trace_and_print(target: "Target", max_nodes: int | None = None, **options: Any) -> "Circuit":
    """Print the plan before the work, then the circuit."""
    import circuits

    typer.echo(f"model    {target.run.model}")
    typer.echo(f"target   {target.label} = {target.value:.4f}")
    typer.echo(f"{circuits.plan(target, max_nodes)}\n")
    circuit = circuits.trace(target, max_nodes=max_nodes, **options)
    typer.echo(str(circuit))
    return circuit


def _check_output(path: Path) -> None:
    """Refuse a file that cannot be written before any work is done for it."""
    from graphs.files import WRITERS

    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"-o {path}: endings known: {', '.join(WRITERS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"-o {path}: there is no folder {path.parent} to write into. Make it: "
            f"mkdir -p {path.parent}"
        )


def _end(circuit: "Circuit", result: "KnockOuts | Patches | None") -> None:
    """Exit 1 where a sum does not close or a prediction does not hold."""
    checks = dict(circuit.meta["checks"])
    held = getattr(result, "deviation", None)  # patches of a contrast promise nothing
    if held is not None:
        checks["knock-outs"] = held
    _fail_above(checks)


def _fail_above(checks: dict[str, float]) -> None:
    from graphs.graph import TOLERANCE

    failed = [f"{name} {value:.1e}" for name, value in checks.items() if not value <= TOLERANCE]
    if failed:
        typer.echo(f"failed checks (tolerance {TOLERANCE:g}): {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@contextlib.contextmanager
def _explained_errors() -> Iterator[None]:
    """Bad arguments end with one paragraph on stderr and exit code 2, not with a traceback."""
    try:
        yield
    except (ValueError, TypeError, IndexError, OSError, MemoryError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and "out of memory" not in str(problem):
            raise  # a bug, not an argument
        typer.echo(f"circuits: {problem}", err=True)
        raise typer.Exit(2) from None
