"""The `circuits` command as tests call it."""

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from circuits.cli import app

ROOT = Path(__file__).parent.parent.parent


def command(*words: str) -> Result:
    """Run the command in 80 columns; an exception that is no exit is an error of the test."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "80", "NO_COLOR": "1"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def heavy_imports(*words: str) -> list[str]:
    """Which of the packages that take seconds the command imports, in a process of its own."""
    code = (
        "import sys\nfrom circuits.cli import app\n"
        f"app({list(words)!r}, standalone_mode=False)\n"
        "print(*({'torch', 'transformers', 'nnsight'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    return done.stderr.split()
