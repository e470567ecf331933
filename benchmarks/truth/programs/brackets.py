"""Programs about brackets: which kind to close, and whether all is balanced."""

import random

import torch

from benchmarks.truth.program import LOUD, SHARP, Question, Recipe
from benchmarks.truth.programs.matrices import (
    beside,
    between,
    flag,
    none,
    picked,
    row,
    stepped,
    steps,
)
from benchmarks.truth.wiring import ONE, Head, Neurons, Wiring

BOS = "<bos>"
OPENING, CLOSING = ("(", "[", "{"), (")", "]", "}")
KEEPS_APART = 60.0


def _elevation(words: tuple[str, ...], opening: list[int], closing: list[int]) -> Head:
    """A head that looks everywhere alike: openings less closings, over the number of tokens."""
    size = len(words)
    return Head(
        0,
        query={},
        key={},
        value={"token": flag(size, opening) - flag(size, closing)},
        writes={"mean": row([1.0])},
    )


def _closing_bracket() -> Wiring:
    """Depth at every position, one-hot; then the last opening bracket of the depth at hand."""
    words = (BOS, *OPENING, *CLOSING)
    size, places, deepest = len(words), 10, 5
    opening, closing = [1, 2, 3], [4, 5, 6]
    # one neuron a position, silent elsewhere: the mean times the number of tokens
    depth = Neurons(
        0,
        reads={
            "mean": row([place + 1.0 for place in range(places)]),
            "position": picked(places, range(places), KEEPS_APART),
            ONE: row([-KEEPS_APART] * places),
        },
        writes={"depth": torch.ones(places, 1, dtype=torch.float64)},
    )
    read, bias = steps([level - 0.5 for level in range(1, deepest + 1)], slope=4.0)
    one_level = between(range(deepest), deepest)
    level = Neurons(1, reads={"depth": read, **bias}, writes={"level": stepped(one_level)})
    near = SHARP / 2  # by how much a nearer place wins
    match = near * (places + 2)
    numbers = torch.arange(places, dtype=torch.float64)[:, None]
    opener = Head(
        2,
        query={
            "level": beside(picked(deepest, range(deepest), match), none(deepest, 2)),
            ONE: beside(none(1, deepest), row([match, near])),
        },
        key={
            "level": beside(picked(deepest, range(deepest)), none(deepest, 2)),
            "token": beside(none(size, deepest), flag(size, opening), none(size, 1)),
            "position": beside(none(places, deepest + 1), numbers),
        },
        value={"token": picked(size, opening)},
        writes={"answer": picked(size, closing, LOUD).T},
    )
    return Wiring(
        words,
        places,
        {"mean": 1, "depth": 1, "level": deepest},
        heads=[_elevation(words, opening, closing), opener],
        neurons=[depth, level],
    )


def _ask_closing_bracket(rng: random.Random, length: int) -> Question:
    """A random walk that ends at least one bracket deep."""
    while True:
        said: list[str] = []
        open_now: list[int] = []
        for _ in range(length - 1):
            if open_now and (len(open_now) == 5 or rng.random() < 0.5):
                said.append(CLOSING[open_now.pop()])
            else:
                open_now.append(rng.randrange(3))
                said.append(OPENING[open_now[-1]])
        if open_now:
            return Question((BOS, *said), (CLOSING[open_now[-1]],))


def _balanced() -> Wiring:
    """Did the elevation ever fall below zero, and is it above zero at the end (Dyck-1)?"""
    words = (BOS, "(", ")", "?", "yes", "no")
    size, places = len(words), 10
    threshold = 0.5 / places
    read, bias = steps([threshold], slope=0.5 / threshold)
    step = stepped(row([1.0]))
    high = Neurons(0, reads={"mean": read, **bias}, writes={"high": step})
    low = Neurons(0, reads={"mean": -read, **bias}, writes={"low": step})
    ever = Head(
        1,
        query={ONE: row([SHARP, SHARP / 2])},
        key={
            "low": row([1.0, 0.0]),
            "token": beside(none(size, 1), flag(size, [0])),
        },
        value={"low": row([1.0])},
        writes={"ever_low": row([1.0])},
    )
    # yes: relu(1 − ever − high); no: the step of their sum, 1 for one or both
    verdict = Neurons(
        1,
        reads={
            "ever_low": row([-1.0, 1.0, 1.0]),
            "high": row([-1.0, 1.0, 1.0]),
            ONE: row([1.0, 0.0, -1.0]),
        },
        writes={"answer": LOUD * (picked(size, [4, 5, 5]) * row([1.0, 1.0, -1.0])).T},
    )
    return Wiring(
        words,
        places,
        {"mean": 1, "high": 1, "low": 1, "ever_low": 1},
        heads=[_elevation(words, [1], [2]), ever],
        neurons=[high, low, verdict],
    )


def _ask_balanced(rng: random.Random, length: int) -> Question:
    """Half of the strings are balanced, the others one bracket away from it or random."""
    half = (length - 2) // 2
    said: list[str] = []
    opened = 0
    for place in range(2 * half):
        left = 2 * half - place
        if opened == 0 or (opened < left and rng.random() < 0.5):
            said.append("(")
            opened += 1
        else:
            said.append(")")
            opened -= 1
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            place = rng.randrange(len(said))
            said[place] = ")" if said[place] == "(" else "("
        else:
            rng.shuffle(said)
    heights = [said[: end + 1].count("(") * 2 - end - 1 for end in range(len(said))]
    right = heights[-1] == 0 and min(heights) >= 0
    return Question((BOS, *said, "?"), ("yes" if right else "no",))


CLOSING_BRACKET = Recipe(
    "closing_bracket", _closing_bracket, (5, 6, 7, 8, 9, 10), _ask_closing_bracket
)
BALANCED = Recipe("balanced", _balanced, (6, 8, 10), _ask_balanced)
