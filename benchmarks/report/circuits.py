"""A task's circuit: what it keeps alone, its heads by name, and its picture."""

from pathlib import Path

from benchmarks.report.cells import Figures
from benchmarks.report.settings import Settings
from benchmarks.role_circuits import find
from circuits import load


def circuit_figures(task: str, settings: Settings, picture: Path) -> Figures:
    """Return a task's circuit, and draw it."""
    model = load(settings.model, mlp="neurons", attention="heads")
    found = find(model, task, settings.prompts)
    picture.parent.mkdir(parents=True, exist_ok=True)
    drawn = found.changed if found.apart is None else found.apart
    drawn.prune(0.5).save(picture)
    return {
        "target": found.written.value,
        "parts": len(found.parts),
        "share of nodes": found.kept.share,
        "alone": found.kept.alone,
        "complement": found.kept.complement,
        "random": found.kept.random,
        "heads": found.heads.to_dict("records"),
        "neurons": found.neurons.to_dict("records"),
    }
