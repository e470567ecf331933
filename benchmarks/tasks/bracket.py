"""Brackets of three kinds: the closing bracket must match the last one left open.

A text is an *open region*, a random walk over depths 0 to `MAX_DEPTH`, then the words "close:",
then every bracket still open is closed, then a full stop. Only a closing bracket, and only one of
the three, is legal
 * after "close:" until everything is closed (kind "close": the task), and
 * at depth `MAX_DEPTH` (kind "depth": easier, since what was opened last is the word before).
These positions are the answers. Elsewhere opening and closing are both legal and nothing is
asked.

The first `KEY_LENGTH` brackets decide whether a text is held out. No text of the training data
begins with those of a held-out text, and no answer of kind "depth" comes before them, so what is
asked there is never part of training.
"""

import random
from collections.abc import Sequence
from typing import Final

from benchmarks.tasks.example import Answer, Example, Split, belongs
from benchmarks.tasks.vocabulary import PAIRS

MAX_DEPTH: Final = 6
KEY_LENGTH: Final = 6
LONGEST_OPEN_REGION: Final = 30
SHARE_OPENING: Final = 0.6
CLOSERS: Final = tuple(PAIRS.values())


def open_region(rng: random.Random) -> tuple[str, ...]:
    """Return random brackets, at least one left open, none nested deeper than `MAX_DEPTH`."""
    brackets: list[str] = []
    stack: list[str] = []
    length = rng.randint(1, LONGEST_OPEN_REGION)
    while len(brackets) < length or not stack:
        opens = not stack or (len(stack) < MAX_DEPTH and rng.random() < SHARE_OPENING)
        if opens:
            stack.append(rng.choice(tuple(PAIRS)))
            brackets.append(stack[-1])
        else:
            brackets.append(PAIRS[stack.pop()])
    return tuple(brackets)


def _still_open(brackets: tuple[str, ...]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the indices still open at the end, and (index, opener) wherever the depth is full."""
    stack: list[int] = []
    forced = []
    for index, bracket in enumerate(brackets):
        if bracket in PAIRS:
            stack.append(index)
        elif not stack or PAIRS[brackets[stack[-1]]] != bracket:
            raise ValueError(
                f"{' '.join(brackets)}: {bracket!r} at {index} closes nothing; give nested brackets"
            )
        else:
            stack.pop()
        if len(stack) == MAX_DEPTH:
            forced.append((index, stack[-1]))
    return stack, forced


def _answer(pos: int, opener: str, kind: str) -> Answer:
    """Return what must close the opener, against the two other closing brackets."""
    right = PAIRS[opener]
    return Answer(pos, (right,), tuple(closer for closer in CLOSERS if closer != right), kind)


def write(brackets: tuple[str, ...]) -> Example:
    """Return the example of an open region: "close:", everything closed and a full stop added."""
    stack, forced = _still_open(brackets)
    in_depth = [
        (1 + index, opener, "depth") for index, opener in forced if index + 1 < len(brackets)
    ]
    first = len(brackets) + 2
    in_close = [(first + step, opener, "close") for step, opener in enumerate(reversed(stack))]
    asked = in_depth + in_close
    answers = tuple(_answer(pos, brackets[opener], kind) for pos, opener, kind in asked)
    closing = tuple(PAIRS[brackets[opener]] for opener in reversed(stack))
    roles = {
        "ANSWER": tuple(pos for pos, _, _ in asked),
        "OPENER": tuple(1 + opener for _, opener, _ in asked),
    }
    words = (*brackets, "close", ":", *closing, ".")
    return Example("bracket", words, answers, roles, ("bracket", *brackets[:KEY_LENGTH]))


def by_depth(words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the positions of a text by role: brackets by the depth they leave, other words.

    >>> by_depth(["(", "[", "]", "close"])
    {'open 1': (1,), 'open 2': (2,), 'shut 1': (3,), 'close': (4,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    depth = 0
    for pos, word in enumerate(words, start=1):
        depth += (word in PAIRS) - (word in CLOSERS)
        kind = "open" if word in PAIRS else "shut"
        name = f"{kind} {depth}" if word in PAIRS or word in CLOSERS else word
        found[name] = (*found.get(name, ()), pos)
    return found


def bracket(rng: random.Random, split: Split) -> Example:
    """Return a random text of the split."""
    while True:
        example = write(open_region(rng))
        if belongs(example.key, split):
            return example
