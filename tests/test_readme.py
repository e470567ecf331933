"""What the README and the first tutorial tell a newcomer to type works, literally.

A copy of the repository in an empty folder, and then command by command. Here its `.venv` borrows
the packages of this one; with LINEAR_CIRCUITS_FRESH set (`make newcomer`) the first command makes
one from nothing, and the notebooks run in it too.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.test_docs import assert_same, pairs

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FRESH = bool(os.environ.get("LINEAR_CIRCUITS_FRESH"))
LEFT = (".*", "__pycache__", "demo", "site", "build", "dist")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language in the README."""
    found = FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as somebody gets it; with packages, unless the first command installs them."""
    folder = tmp_path_factory.mktemp("newcomer") / "linear-circuits"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT))
    if not FRESH:
        borrow_packages(folder)
    return folder


def borrow_packages(folder: Path) -> None:
    """What installing would leave, without it: these packages, and the folder's own code."""
    venv.create(folder / ".venv", symlinks=True)
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = f"{folder}\n{sysconfig.get_path('purelib')}\n"
    (folder / ".venv" / "lib" / own / "site-packages" / "borrowed.pth").write_text(found)
    command = folder / ".venv" / "bin" / "circuits"
    command.write_text(f"#!{folder}/.venv/bin/python\nfrom circuits.cli import app\n\napp()\n")
    command.chmod(0o755)


def typed(folder: Path, *words: str, text: str = "") -> str:
    """What a command prints, typed in the folder, with no Python of this process in its way."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        words,
        cwd=folder,
        env={**known, "OMP_NUM_THREADS": "1"},
        input=text,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_what_a_newcomer_types(clone: Path) -> None:
    """`make demo`, the README's Python and shell lines, the first tutorial: in this order."""
    first, *others = blocks("sh")
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]
    flags = [f"PIP_FLAGS={os.environ.get('PIP_FLAGS', '')}"] if FRESH else ["-o", "install"]
    told = typed(clone, "make", *flags, "demo")
    assert "wrote demo/ioi.circuit" in told and (clone / "demo" / "ioi.html").is_file()

    python, shown = blocks("python"), blocks("text")[0]
    assert len(python) == 1
    printed = typed(clone, ".venv/bin/python", text=python[0] + "print(circuit)\n")
    assert_same(printed, shown)
    assert (clone / "ioi.svg").stat().st_size > 0

    lines = [line for block in others for line in block.splitlines()]
    assert [shlex.split(line)[1] for line in lines] == ["trace", "show", "plan"]
    (clone / "ioi.svg").unlink()
    for line in lines:
        assert line.startswith(".venv/bin/circuits ")
        assert typed(clone, *shlex.split(line))
    assert (clone / "ioi.circuit").is_file() and (clone / "ioi.svg").is_file()

    tutorial = pairs(clone / "docs" / "index.md")
    assert len(tutorial) == 3
    code, wanted = ("\n".join(parts) for parts in zip(*tutorial, strict=True))
    assert_same(typed(clone, ".venv/bin/python", text=code), wanted)


@pytest.mark.skipif(not FRESH, reason="`make newcomer` runs the notebooks in a fresh install")
def test_notebooks_run_in_a_fresh_install(clone: Path) -> None:
    notebooks = sorted(str(path.relative_to(clone)) for path in clone.glob("notebooks/*.ipynb"))
    typed(clone, ".venv/bin/python", "-m", "pytest", "-q", "--nbmake", *notebooks)


def test_a_command_that_fails_would_be_noticed(clone: Path) -> None:
    with pytest.raises(AssertionError, match="No such command"):
        typed(clone, sys.executable, "-m", "circuits", "explain")


def test_make_targets_exist() -> None:
    """Every `make` target named in a shell block is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_linked_files_exist() -> None:
    """Relative links and pictures lead somewhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
