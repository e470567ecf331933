"""The speed benchmark runs, counts what it claims to count, and judges by its bars."""

import json

from typer import Typer
from typer.testing import CliRunner

from benchmarks.speed import __main__ as speed
from benchmarks.speed.cases import CASES, Shape
from benchmarks.speed.clock import memory_growth

TINY = Shape(
    tokens=6, layers=2, width=16, heads=2, vocabulary=50, positions=8, features=32, active=4
)


def test_measures_every_part_of_every_case() -> None:
    results = speed.measure(TINY, repeat=1)

    expected = []
    for case in CASES:
        timings = results["cases"][case.name]["timings"]
        assert {"forward", "run", "flow", "trace", "score pairs", *case.bars} <= set(timings)
        assert all(timing["wall_ms"] >= 0 for timing in timings.values())
        expected += [f"{case.name}: {name}" for name in case.bars]
        expected += [f"{case.name}: memory, MB"] if case.memory_bar_mb else []
    assert [row["part"] for row in results["bars"]] == expected
    per_token = TINY.layers * TINY.tokens
    sizes = {name: found["sizes"]["nodes"] for name, found in results["cases"].items()}
    assert sizes["transcoders"] == per_token * (TINY.heads + TINY.active)
    assert per_token * TINY.active < sizes["transcoders and Lorsa"] <= per_token * 2 * TINY.active


def test_a_bar_is_judged_by_the_worse_of_wall_and_processor_time() -> None:
    quick = {"wall_ms": 1.0, "cpu_ms": 1.0, "wall_ratio": 0.5, "cpu_ratio": 0.5}
    timings = {name: dict(quick) for name in CASES[0].bars} | {"run": quick | {"cpu_ratio": 99.0}}

    rows = speed.judged(CASES[0], {"timings": timings, speed.GROWTH: 600.0})

    met = {row["part"].split(": ")[1]: row["met"] for row in rows}
    assert met == {
        "sweep": True,
        "gated sweep": True,
        "run": False,
        "run and trace": True,
        "memory, MB": False,
    }


def test_memory_sees_what_is_a_part_holds() -> None:
    grown = memory_growth(lambda: bytearray(b"\1" * 40_000_000))

    assert grown is None or 39 < grown < 150


def test_results_name_the_command_and_no_path_of_the_machine(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(speed, "Shape", lambda tokens: TINY if tokens == TINY.tokens else None)
    app, kept = Typer(), tmp_path / "speed-tiny.json"
    app.command()(speed.main)

    done = CliRunner().invoke(app, ["--tokens", "6", "--repeat", "1", "-o", str(kept)])

    assert done.exit_code == 0, done.output
    assert "bars" in done.output
    command = json.loads(kept.read_text())["command"]
    assert command.endswith("-o benchmarks/results/speed-tiny.json")
    assert str(tmp_path) not in kept.read_text()
