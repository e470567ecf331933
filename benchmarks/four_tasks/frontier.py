"""How few features suffice: Lorsa and attention SAEs trained with several k, all else equal."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.four_tasks.folder import load_model
from benchmarks.four_tasks.layer_kinds import KINDS, load_kind, train_kind
from benchmarks.four_tasks.measuring import measure_in_place, measure_kind
from benchmarks.tasks import TASKS

KS: Final = (8, 16, 24)


def measure_frontier(folder: Path, work: Path, count: int) -> list[dict[str, Any]]:
    """Return one row of figures for each kind and k, from layers trained in `work`."""
    rows = []
    for k in KS:
        for kind in ("lorsa", "attention-saes"):
            rows.append(_row(folder, work / f"k{k}", count, kind, k))
    return rows


def read_frontier(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that were written to a folder, none if it was never measured."""
    path = folder / "frontier.json"
    return json.loads(path.read_text()) if path.is_file() else []


def _row(folder: Path, work: Path, count: int, kind: str, k: int) -> dict[str, Any]:
    model, transcoders = load_model(folder), load_kind("transcoders", folder)
    layers = train_kind(kind, model, replace(KINDS[kind].settings, k=k), work)
    metrics = measure_kind(model, layers, count)
    together = measure_in_place(model, {kind: layers, "transcoders": transcoders}, count)
    return {
        "kind": kind,
        "k": k,
        "l0": sum(layer["l0"] for layer in metrics) / len(metrics),
        "variance_explained": [layer["variance_explained"] for layer in metrics],
        "median_variance_explained": median(layer["variance_explained"] for layer in metrics),
        "dead": [layer["dead"] for layer in metrics],
        "kl": together["kl"],
        "reached": {task: together["tests"][task]["reached"] for task in TASKS},
    }
