"""The benchmark of direct effects counts what it says, and its activations are what is asked."""

import json

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from benchmarks.speed import direct
from benchmarks.speed.cases import Shape, random_ids, random_model
from replacement.model import ReplacementModel

TINY = Shape(
    tokens=8, layers=3, width=32, heads=2, vocabulary=50, positions=8, features=128, active=12
)


def test_formula_by_hand() -> None:
    """Per target: 4 · d² · (its position + 1) · (its layer + 1)."""
    shape = TINY
    model = ReplacementModel(random_model(shape), None, direct.relu_transcoders(shape))
    run = model.run(random_ids(shape))
    everything = direct.chosen_targets(run, None)
    by_hand = 0
    for number, layer in enumerate(run.layers):
        for pos in layer.mlp.active.pos.tolist():
            by_hand += 4 * 32**2 * (pos + 1) * (number + 1)
    assert direct.operations(run, everything) == by_hand
    some = direct.chosen_targets(run, 7)
    assert sum(map(len, some)) == 7
    assert 0 < direct.operations(run, some) < by_hand
    assert len(everything) == len(run.sublayers)
    on = sum(len(layer.mlp.active) for layer in run.layers) / (3 * 8)
    assert on == pytest.approx(shape.active, rel=0.5)


def test_measures_and_names_the_command(tmp_path, monkeypatch) -> None:
    fields = {"layers": 2, "width": 16, "heads": 2, "vocabulary": 50, "positions": 8}
    monkeypatch.setattr(
        direct, "Shape", lambda **given: Shape(**{**given, **fields, "features": 64, "active": 6})
    )
    app, kept = Typer(), tmp_path / "direct-tiny.json"
    app.command()(direct.main)
    done = CliRunner().invoke(app, ["--tokens", "4", "--tokens", "6", "-o", str(kept)])
    assert done.exit_code == 0, done.output
    found = json.loads(kept.read_text())
    assert [row["tokens"] for row in found["lengths"]] == [4, 6]
    assert all(row["seconds"] > 0 and row["TFLOP"] > 0 for row in found["lengths"])
    assert all(row["targets"] == row["features"] for row in found["lengths"])
    assert found["command"].endswith("-o benchmarks/results/direct-tiny.json")
    assert f"--threads {torch.get_num_threads()}" in found["command"]
    assert str(tmp_path) not in kept.read_text()
