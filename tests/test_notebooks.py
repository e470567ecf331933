"""Every notebook is kept twice, as a script and with its outputs, and both say the same."""

import ast
from pathlib import Path

import jupytext
import nbformat
import pytest

import circuits

FOLDER = Path(__file__).parent.parent / "notebooks"
INNER = {"replacement", "attribution", "graphs", "benchmarks", "tests"}
OPEN = {"circuits.training", "circuits.catalogue"}
"""What `circuits train` and `circuits list` call."""
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_and_notebook_hold_the_same_cells(script: Path) -> None:
    """jupytext pairs them; a change of one alone is found here."""
    written = [cell.source for cell in jupytext.read(script).cells]
    executed = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert [cell.source for cell in executed.cells] == written


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_hold_no_error(script: Path) -> None:
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert len(outputs) > 5
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_stay_small(script: Path) -> None:
    """GitHub shows what is small: pictures, not pages, in the outputs."""
    assert script.with_suffix(".ipynb").stat().st_size < 400_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_use_public_names_alone(script: Path) -> None:
    """From `circuits` what it exports; from its modules nothing that begins with an underscore."""
    assert private_names(script.read_text(encoding="utf-8")) == []


def private_names(text: str) -> list[str]:
    """What a script imports from our packages that is not for users."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            top, names = node.module.split(".")[0], [alias.name for alias in node.names]
            if node.module == "circuits":
                found += [name for name in names if name not in circuits.__all__]
            elif top in INNER or (top == "circuits" and node.module not in OPEN):
                found.append(node.module)
    return found


def test_private_names_would_be_noticed() -> None:
    text = "from circuits import load, run_of\nfrom attribution.flow import flow_edges\n"
    assert private_names(text) == ["run_of", "attribution.flow"]
    assert private_names("from circuits.parquet import quoted") == ["circuits.parquet"]
