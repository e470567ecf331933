"""The memory benchmark loads what it wrote in fresh processes, and judges by its bars."""

import dataclasses
import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks import memory
from benchmarks.memory import CASES, Case, bars, load_and_trace, write_folder
from benchmarks.speed.cases import Shape

TINY = Shape(tokens=6, layers=2, width=16, heads=2, vocabulary=50, positions=8, features=9000)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_loaded_as_it_says(tmp_path, case: Case) -> None:
    written = write_folder(tmp_path, TINY, case)
    found = load_and_trace(tmp_path, TINY, case.loaded)

    values = TINY.layers * (2 * TINY.width * TINY.features)
    width = 2 if case.stored == "bfloat16" else 4
    assert written["transcoders"] == pytest.approx(values * width, rel=0.1)
    assert 5 < found["active features a token"] < 30  # one in 740 fires
    assert found["nodes"] > 10
    assert found["peak"] >= found["after load"]


def test_a_case_is_measured_in_a_fresh_process_against_its_bars(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "GPT2_SMALL", TINY)
    app, kept = Typer(), tmp_path / "memory-tiny.json"
    app.command()(memory.main)
    arguments = ["--case", "turned encoders", "--features", "8000", "-o", str(kept)]

    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 0, done.output
    results = json.loads(kept.read_text())
    assert results["command"].endswith("-o benchmarks/results/memory-tiny.json")
    assert str(tmp_path) not in kept.read_text()
    (case,) = results["cases"]
    assert results["shape"] == dataclasses.asdict(dataclasses.replace(TINY, features=8000))
    asked, growth, load = case["bars"]
    files = case["model file"], case["transcoders file"]
    assert asked["bar"] == pytest.approx(files[0] + 300, abs=0.2)
    assert growth["bar"] == pytest.approx(files[0] + files[1] / 2 + 300, abs=0.2)
    assert load["bar"] == pytest.approx(1.2 * (files[0] + files[1] / 2), abs=0.2)
    assert growth["measured"] == pytest.approx(case["peak"] - case["after imports"], abs=0.2)
    assert growth["met"] is (growth["measured"] <= growth["bar"])


def test_layouts_that_copy_meet_their_own_bar_and_not_that_of_the_model() -> None:
    found = {"model file": 500.0, "transcoders file": 2000.0, "after imports": 300.0}
    found |= {"peak": 1500.0, "peak of load": 1450.0}

    rows = {case.name: bars(case, found) for case in CASES}

    def met(name: str) -> dict[str, bool]:
        return {row["of"]: row["met"] for row in rows[name]}

    assert met("turned encoders") == {
        "model + 300 MB": False,
        "kept + 300 MB": True,
        "1.2 · kept": True,
    }
    assert met("ours") == {"model + 300 MB": False}
