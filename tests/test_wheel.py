"""What `pip install .` puts elsewhere is enough: code, page, bundled model, command."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
from pathlib import Path

import circuits
from circuits import load, read, trace

here = Path(sys.argv[1])
assert Path(circuits.__file__).is_relative_to(here), circuits.__file__
model = load("four-tasks")
run = model.run("When Mary and John went to the store, John gave a drink to")
circuit = trace(run.logit(" Mary") - run.logit(" John"), max_nodes=20, progress=False)
for ending in ("circuit", "html", "svg", "json"):
    circuit.save(f"x.{ending}")
assert read("x.json").value == circuit.value
"""


def python(folder: Path, installed: Path, *words: str) -> str:
    """What Python prints in a folder, with the installed packages before any others."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_works_outside_the_repository(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    built = next(iter(wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "dist"))))
    installed, folder = tmp_path / "installed", tmp_path / "elsewhere"
    folder.mkdir()
    with zipfile.ZipFile(built) as packed:
        packed.extractall(installed)
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "circuits = circuits.cli:app" in entry.read_text()
    python(folder, installed, "-c", PROGRAM, str(installed))
    assert (folder / "x.html").read_text().startswith("<!doctype html>")
    shown = python(folder, installed, "-m", "circuits", "show", "x.circuit", "-o", "y.html")
    assert "they add up to the target" in shown and (folder / "y.html").is_file()
    assert "four-tasks (bundled)" in python(folder, installed, "-m", "circuits", "list")
