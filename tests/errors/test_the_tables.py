"""The runner of the tables finds what it is there to find."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.errors.mistakes import LONGEST, Mistake, assert_explained, each


def refuse(message: str) -> Callable[[Path], None]:
    def call(_: Path) -> None:
        raise ValueError(message)

    return call


def with_another_above(_: Path) -> None:
    try:
        raise KeyError("d_model")
    except KeyError:
        raise ValueError("no width. Give one.") from KeyError("d_model")


def during_another(_: Path) -> None:
    try:
        raise KeyError("d_model")
    except KeyError:
        raise ValueError("no width. Give one.")  # noqa: B904


SOUND = Mistake("width", refuse("no width. Give one."), ValueError, ("no width", "Give"))
UNSOUND = {
    "accepted": dataclasses.replace(SOUND, call=lambda _: None),
    "another exception": dataclasses.replace(SOUND, error=TypeError),
    "words that are missing": dataclasses.replace(SOUND, says=("no width", "Take")),
    "two lines": dataclasses.replace(SOUND, call=refuse("no width.\nGive one.")),
    "a page": dataclasses.replace(SOUND, call=refuse("no width. Give " + "one " * LONGEST)),
    "an address": dataclasses.replace(SOUND, call=refuse("no width. Give <object at 0x7f>")),
    "a cause": dataclasses.replace(SOUND, call=with_another_above),
    "a context": dataclasses.replace(SOUND, call=during_another),
}


def test_a_sound_row_passes(tmp_path: Path) -> None:
    assert_explained(SOUND, tmp_path)


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_row_fails(name: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError)):
        assert_explained(UNSOUND[name], tmp_path)


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of the same name: width"):
        each([SOUND, SOUND])
