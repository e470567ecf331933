"""The benchmark of direct effects counts what it says, and its activations are what is asked."""

import json
from dataclasses import replace

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

GEMMA = replace(TINY, value_heads=1, head_width=24, mlp_width=40)


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


def test_the_formula_counts_heads_that_are_wider_together_than_the_model() -> None:
    """Gemma's: W_O is 2 · 24 wide, W_V of one value head 24."""
    model = ReplacementModel(random_model(GEMMA), None, direct.relu_transcoders(GEMMA))
    run = model.run(random_ids(GEMMA))
    last = [torch.empty(0, dtype=torch.long)] * (len(run.sublayers) - 1) + [torch.tensor([0])]
    pos = int(run.layers[-1].mlp.active.pos[0])
    assert direct.operations(run, last) == 2 * 32 * (48 + 24) * (pos + 1) * GEMMA.layers


@pytest.mark.parametrize("shape", [TINY, GEMMA], ids=["gpt2-small", "gemma-2-2b"])
def test_measures_and_names_the_command(shape: Shape, tmp_path, monkeypatch) -> None:
    name = "gemma-2-2b" if shape.value_heads else "gpt2-small"
    monkeypatch.setitem(direct.SHAPES, name, shape)
    app, kept = Typer(), tmp_path / "direct-tiny.json"
    app.command()(direct.main)
    words = ["--tokens", "4", "--tokens", "6", "--model", name, "-o", str(kept)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(kept.read_text())
    assert [row["tokens"] for row in found["lengths"]] == [4, 6]
    assert all(row["seconds"] > 0 and row["TFLOP"] > 0 for row in found["lengths"])
    assert all(row["targets"] == row["features"] for row in found["lengths"])
    assert found["command"].endswith("-o benchmarks/results/direct-tiny.json")
    assert f"--threads {torch.get_num_threads()}" in found["command"]
    assert str(tmp_path) not in kept.read_text()
