"""Gates that trap methods which patch one thing at a time: OR, AND, a negative head, a backup."""

import random

import torch

from benchmarks.truth.program import LOUD, SHARP, Question, Recipe
from benchmarks.truth.programs.matrices import beside, flag, none, picked, row
from benchmarks.truth.wiring import ONE, Head, Neurons, Wiring

BOS = "<bos>"
SWITCHES = (BOS, "a1", "b1", "a0", "b0", "out")


def _gate(neurons: list[Neurons]) -> Wiring:
    """Two heads, each of which says whether a switch is on; neurons write the answer."""
    size = len(SWITCHES)

    def reader(off: int, on: int, variable: str) -> Head:
        return Head(
            0,
            query={ONE: row([SHARP])},
            key={"token": flag(size, [off, on])},
            value={"token": flag(size, [on])},
            writes={variable: row([1.0])},
        )

    return Wiring(
        SWITCHES, 4, {"a": 1, "b": 1}, heads=[reader(3, 1, "a"), reader(4, 2, "b")], neurons=neurons
    )


def _or() -> Wiring:
    """a + b − relu(a + b − 1)."""
    out = picked(len(SWITCHES), [5, 5]).T
    reads = {"a": row([1.0, 1.0]), "b": row([1.0, 1.0]), ONE: row([0.0, -1.0])}
    return _gate([Neurons(0, reads=reads, writes={"answer": LOUD * out * row([1.0, -1.0]).T})])


def _and() -> Wiring:
    """relu(a + b − 1)."""
    out = picked(len(SWITCHES), [5]).T
    reads = {"a": row([1.0]), "b": row([1.0]), ONE: row([-1.0])}
    return _gate([Neurons(0, reads=reads, writes={"answer": LOUD * out})])


def _ask_gate(rng: random.Random, _length: int) -> Question:
    said = ["a1", "b1"]
    rng.shuffle(said)
    return Question((BOS, *said), ("out",))


def _switched_off(question: Question, _rng: random.Random) -> Question:
    return Question(tuple(word.replace("1", "0") for word in question.words), question.answers)


LETTERS = tuple("abcdefgh")
WORDS = (BOS, "?", *LETTERS)


def _copier(layer: int, loud: float) -> Head:
    """A head that copies the only letter of the prompt."""
    size, letters = len(WORDS), range(2, len(WORDS))
    return Head(
        layer,
        query={ONE: row([SHARP])},
        key={"token": flag(size, letters)},
        value={"token": picked(size, letters)},
        writes={"answer": picked(size, letters, loud).T},
    )


def _negative() -> Wiring:
    """Two heads copy the letter; a third looks for what is about to be said and takes it back."""
    size, letters = len(WORDS), range(2, len(WORDS))
    answer = picked(size, letters, SHARP / LOUD)
    negative = Head(
        1,
        query={
            "answer": beside(answer, none(size, 1)),
            ONE: beside(none(1, len(LETTERS)), row([SHARP / 2])),
        },
        key={"token": beside(picked(size, letters), flag(size, [0]))},
        value={"token": picked(size, letters)},
        writes={"answer": picked(size, letters, -LOUD / 2).T},
    )
    heads = [_copier(0, LOUD / 2), _copier(0, LOUD / 2), negative]
    return Wiring(WORDS, 6, {}, heads=heads)


def _backup() -> Wiring:
    """A head copies the letter; another does so only where nobody has said anything."""
    size, letters = len(WORDS), range(2, len(WORDS))
    said = torch.cat([none(size, 1), flag(size, letters, 1.5 * SHARP / LOUD)], dim=1)
    backup = Head(
        1,
        query={"answer": said, ONE: row([SHARP, 0.0])},
        key={"token": beside(flag(size, letters), flag(size, [0]))},
        value={"token": picked(size, letters)},
        writes={"answer": picked(size, letters, LOUD).T},
    )
    return Wiring(WORDS, 6, {}, heads=[_copier(0, LOUD), backup])


def _ask_copy(rng: random.Random, length: int) -> Question:
    letter = rng.choice(LETTERS)
    rest = ["?"] * (length - 2)
    rest.insert(rng.randrange(len(rest)), letter)
    return Question((BOS, *rest), (letter,))


OR = Recipe("or_gate", _or, (3,), _ask_gate, single=True, flip=_switched_off)
AND = Recipe("and_gate", _and, (3,), _ask_gate, single=True, flip=_switched_off)
NEGATIVE = Recipe("negative_head", _negative, (4, 5, 6), _ask_copy)
BACKUP = Recipe("backup_head", _backup, (4, 5, 6), _ask_copy)
