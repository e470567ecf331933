"""One row a mistake: a call, the exception it must raise, and words that its message must hold."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LONGEST = 900


@dataclass(frozen=True)
class Mistake:
    """One wrong call."""

    name: str
    call: Callable[[Path], object]
    """Gets an empty folder."""
    error: type[Exception]
    says: tuple[str, ...]
    """What the message must hold: what was given, what fits, what to do."""


def each(mistakes: Sequence[Mistake]) -> Any:
    """Return a mark that runs a test with every row of a table; rows have names of their own."""
    names = [mistake.name for mistake in mistakes]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"rows of the same name: {', '.join(doubled)}")
    return pytest.mark.parametrize("mistake", mistakes, ids=names)


def assert_explained(mistake: Mistake, folder: Path) -> None:
    """Check that a wrong call is refused in one paragraph that says what was given and what fits.

    `folder` is an empty folder.
    """
    with pytest.raises(mistake.error) as caught:
        mistake.call(folder)
    message = str(caught.value)
    missing = [words for words in mistake.says if words not in message]
    assert not missing, message
    assert "\n" not in message and len(message) <= LONGEST
    assert "Traceback" not in message
    assert not re.search(r"\bobject at 0x", message), "a memory address helps nobody"
    quiet = caught.value.__suppress_context__ or caught.value.__context__ is None
    assert caught.value.__cause__ is None and quiet, "another exception is shown above this one"


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def made_file(path: Path, text: str = "") -> Path:
    path.write_text(text)
    return path
