"""The benchmark of growth: exponents of known costs, and a run of tiny shapes."""

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks.speed import growth
from benchmarks.speed.cases import Shape


def test_exponents_of_known_costs() -> None:
    names = dict.fromkeys(growth.COSTS[1:], 5.0)
    rows = [{"tokens": size, growth.COSTS[0]: 3.0 * size**1.5, **names} for size in (2, 8, 32)]
    found = growth.exponents(rows, "tokens")
    assert found == {growth.COSTS[0]: 1.5, **dict.fromkeys(growth.COSTS[1:], 0.0)}


def test_measures_what_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"width": 16, "heads": 2, "vocabulary": 50, "positions": 8, "features": 64}
    monkeypatch.setattr(growth, "Shape", lambda **_: Shape(**fields, tokens=6, layers=2, active=6))
    app, kept = Typer(), tmp_path / "growth-tiny.json"
    app.command()(growth.main)
    words = "--tokens 4 --tokens 8 --active 4 --active 8 --layers 3 --targets 5 -o"
    pictures = tmp_path / "pictures"
    done = CliRunner().invoke(app, [*words.split(), str(kept), "--pictures", str(pictures)])
    assert done.exit_code == 0, done.output
    found = json.loads(kept.read_text())
    assert [row["tokens"] for row in found["tokens"]["rows"]] == [4, 8]
    assert [row["layers"] for row in found["layers"]["rows"]] == [3]
    assert all(row["targets"] == 5 for row in found["tokens"]["rows"])
    few, many = found["active"]["rows"]
    assert few["features"] < many["features"]
    assert set(found["tokens"]["exponents"]) == set(growth.COSTS)
    assert str(tmp_path) not in kept.read_text()
    drawn = {path.name: path.read_text() for path in pictures.iterdir()}
    assert len(drawn) == 6
    assert drawn["growth-tokens-mb.svg"].count("<polyline") == 3
