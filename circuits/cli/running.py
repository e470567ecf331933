"""What every command does alike: errors, outputs, checks, how it ends."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from circuits.circuit import Circuit


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Bad arguments end with one paragraph on stderr and exit code 2, not with a traceback."""
    try:
        yield
    except (ValueError, TypeError, IndexError, OSError, MemoryError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and "out of memory" not in str(problem):
            raise  # a bug, not an argument
        typer.echo(f"circuits: {problem}", err=True)
        raise typer.Exit(2) from None


def check_output(path: Path, *, two: bool = False) -> None:
    """Refuse a file that cannot be written, of one circuit or of two, before any work is done."""
    from graphs.files import checked_ending

    if two and path.suffix.lower() != ".html":
        raise ValueError(f"-o {path}: two circuits fit into a page (.html) and nothing else.")

    try:
        checked_ending(path)
    except ValueError as problem:
        raise ValueError(f"-o {path}: {str(problem).removeprefix('save: ')}") from None
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"-o {path}: there is no folder {path.parent} to write into. Make it: "
            f"mkdir -p {path.parent}"
        )


def written(circuit: "Circuit", output: list[Path] | None, *, quiet: bool = False) -> None:
    """Save a circuit to every path, and say so; on stderr where stdout holds JSON."""
    for path in output or []:
        typer.echo(f"wrote {circuit.save(path)}", err=quiet)


def write_both(
    one: "Circuit", other: "Circuit", output: list[Path] | None, *, quiet: bool = False
) -> None:
    """Save the page of two circuits to every path, and say so as `written` does."""
    from graphs.files.atomic import write_whole

    for path in output or []:
        write_whole(path, one.page(other).encode())
        typer.echo(f"wrote {path}", err=quiet)


def as_data(circuit: "Circuit", paths: int = 5) -> dict[str, Any]:
    """Return what `show` prints, for scripts."""
    from graphs.nodes import INTERIOR

    found = circuit.paths(paths)
    return {
        "target": circuit.meta["target"]["label"],
        "value": circuit.value,
        "prompt": circuit.meta.get("prompt"),
        "model": circuit.meta.get("model"),
        "explained": {str(name): float(value) for name, value in circuit.explained.items()},
        "nodes": int(circuit.data.is_kind(*INTERIOR).sum()),
        "edges": len(circuit.edges),
        "paths": [
            {"flow": flow, "text": text, "path": path}
            for flow, text, path in zip(found["flow"], found["text"], found["path"], strict=True)
        ],
        "conservation": circuit.data.conservation(),
    }


def print_json(data: Any) -> None:
    """Print data as JSON."""
    typer.echo(json.dumps(data, indent=1))


def fail_above(checks: dict[str, float]) -> None:
    """Exit 1 where a check is above the tolerance."""
    from graphs.graph import TOLERANCE

    failed = [f"{name} {value:.1e}" for name, value in checks.items() if not value <= TOLERANCE]
    if failed:
        typer.echo(f"failed checks (tolerance {TOLERANCE:g}): {', '.join(failed)}", err=True)
        raise typer.Exit(1)
