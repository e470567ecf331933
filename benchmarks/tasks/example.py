"""What every task hands out: a text, what must follow where, and which token plays which part.

Positions count tokens with BOS at 0, so the word `words[i]` stands at position `i + 1` and is
predicted at `i`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from benchmarks.tasks.vocabulary import spell

Split = Literal["train", "held_out"]
HELD_OUT_SHARE: Final = 0.1


@dataclass(frozen=True)
class Answer:
    """A prediction the task determines: at `pos`, one of `right` comes next and none of `wrong`."""

    pos: int
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    kind: str = ""
    """Why it is determined, where a task has several reasons ("depth", "close")."""


@dataclass(frozen=True)
class Example:
    """A text of one task with its answers and the positions of its parts."""

    task: str
    words: tuple[str, ...]
    """The words without their leading spaces and without BOS."""

    answers: tuple[Answer, ...]
    roles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Positions by part, for instance `{"IO": (2,), "S1": (4,), "END": (14,)}`."""

    key: tuple[str, ...] = ()
    """The combination that decides whether the example is held out."""

    @property
    def text(self) -> str:
        """The whole text as one writes it, without a leading space."""
        return "".join(map(spell, self.words)).removeprefix(" ")

    def prompt(self, answer: int = -1) -> str:
        """Return the text up to where one of the answers (by default the last) is predicted."""
        return "".join(map(spell, self.words[: self.answers[answer].pos])).removeprefix(" ")


def is_held_out(key: tuple[str, ...]) -> bool:
    """Return whether a combination is kept out of training: a stable tenth of all of them.

    >>> is_held_out(("war", "17", "32")) == is_held_out(("war", "17", "32"))
    True
    """
    digest = hashlib.sha256("\x1f".join(key).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def belongs(key: tuple[str, ...], split: Split) -> bool:
    """Return whether a combination is part of the split."""
    return is_held_out(key) == (split == "held_out")
