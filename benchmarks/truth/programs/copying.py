"""Programs that look a token up and copy it: induction, symbolic IOI, reverse, sorting."""

import random
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.truth.program import LOUD, SHARP, Question, Recipe
from benchmarks.truth.programs.matrices import beside, flag, none, picked, resting, row
from benchmarks.truth.wiring import ONE, Head, Neurons, Wiring

BOS, SEPARATOR = "<bos>", "|"
LETTERS = tuple("abcdefghijkl")


def _induction() -> Wiring:
    """A previous-token head, and a head that looks for the place after the last token."""
    words = (BOS, *LETTERS)
    size, places, letters = len(words), 10, range(1, len(words))
    rest_query, rest_key = resting(size, size)
    return Wiring(
        words,
        places,
        {"previous": size},
        heads=[
            Head(
                0,
                query={
                    "position": torch.eye(places, dtype=torch.float64).roll(1, dims=0).tril(-1)
                    * SHARP
                },
                key={"position": picked(places, range(places))},
                value={"token": picked(size, range(size))},
                writes={"previous": picked(size, range(size))},
            ),
            Head(
                1,
                query={
                    "token": beside(picked(size, range(size), SHARP), none(size, 1)),
                    **rest_query,
                },
                key={"previous": beside(picked(size, range(size)), none(size, 1)), **rest_key},
                value={"token": picked(size, letters)},
                writes={"answer": picked(size, letters, LOUD).T},
            ),
        ],
    )


def _ask_induction(rng: random.Random, length: int) -> Question:
    words = rng.sample(LETTERS, length - 2)
    place = rng.randrange(length - 3)
    return Question((BOS, *words, words[place]), (words[place + 1],))


NAMES = tuple(f"name{number}" for number in range(8))
FILLERS = ("gave", "and", "the")


def _symbolic_ioi() -> Wiring:
    """A duplicate-token head, an S-inhibition head, and a name mover that it steers by query."""
    words = (BOS, *NAMES, *FILLERS, "to")
    size, places, n_names = len(words), 9, len(NAMES)
    names = [words.index(name) for name in NAMES]
    one_name = picked(size, names)
    all_names = flag(n_names, range(n_names))
    rest_query, _ = resting(size, n_names + places)
    duplicate = Head(
        0,
        query={
            "token": beside(SHARP * one_name, none(size, places + 1)),
            # a name does not repeat itself
            "position": beside(
                none(places, n_names), picked(places, range(places), -SHARP), none(places, 1)
            ),
            **rest_query,
        },
        key={
            "token": beside(one_name, none(size, places), flag(size, [0])),
            "position": beside(
                none(places, n_names), picked(places, range(places)), none(places, 1)
            ),
        },
        value={"token": one_name},
        writes={"repeated": picked(n_names, range(n_names))},
    )
    inhibition = Head(
        1,
        query={ONE: row([SHARP, SHARP / 2])},
        key={
            "repeated": beside(all_names, none(n_names, 1)),
            "token": beside(none(size, 1), flag(size, [0])),
        },
        value={"repeated": picked(n_names, range(n_names))},
        writes={"inhibited": picked(n_names, range(n_names))},
    )
    mover = Head(
        2,
        query={
            ONE: beside(none(1, n_names), row([SHARP, SHARP / 2])),
            "inhibited": beside(picked(n_names, range(n_names), -2 * SHARP), none(n_names, 2)),
        },
        key={"token": beside(one_name, flag(size, names), flag(size, [0]))},
        value={"token": one_name},
        writes={"answer": LOUD * one_name.T},
    )
    variables = {"repeated": n_names, "inhibited": n_names}
    return Wiring(words, places, variables, heads=[duplicate, inhibition, mover])


def _ask_symbolic_ioi(rng: random.Random, length: int) -> Question:
    once, twice = rng.sample(NAMES, 2)
    said = [twice, twice, once]
    rng.shuffle(said)
    middle = said + [rng.choice(FILLERS) for _ in range(length - 5)]
    rng.shuffle(middle)
    return Question((BOS, *middle, "to"), (once,))


def _reverse() -> Wiring:
    """A head finds the separator; neurons reckon which position is next; a head copies it."""
    words = (BOS, "a", SEPARATOR, *LETTERS[1:8])
    size, places = len(words), 10
    letters = [words.index(letter) for letter in LETTERS[:8]]
    pairs = [(i, j) for i in range(places) for j in range(i, places) if 2 * i - j - 1 >= 1]
    goal = picked(places, [2 * i - j - 1 for i, j in pairs]).T.contiguous()
    rest_query, rest_key = resting(size, places)
    return Wiring(
        words,
        places,
        {"separator_at": places, "goal": places},
        heads=[
            Head(
                0,
                query={ONE: row([SHARP, SHARP / 2])},
                key={"token": beside(flag(size, [words.index(SEPARATOR)]), flag(size, [0]))},
                value={"position": picked(places, range(1, places))},
                writes={"separator_at": picked(places, range(1, places)).T},
            ),
            Head(
                1,
                query={
                    "goal": beside(picked(places, range(places), SHARP), none(places, 1)),
                    **rest_query,
                },
                key={
                    "position": beside(picked(places, range(places)), none(places, 1)),
                    **rest_key,
                },
                value={"token": picked(size, letters)},
                writes={"answer": picked(size, letters, LOUD).T},
            ),
        ],
        neurons=[
            Neurons(
                0,
                reads={
                    "separator_at": picked(places, [i for i, _ in pairs]),
                    "position": picked(places, [j for _, j in pairs]),
                    ONE: row([-1.0] * len(pairs)),
                },
                writes={"goal": goal},
            )
        ],
    )


def _ask_reverse(rng: random.Random, length: int) -> Question:
    last = length - 1
    at = rng.choice([at for at in range(2, last + 1) if 2 * at - last - 1 >= 1])
    said = [rng.choice(LETTERS[:8]) for _ in range(at - 1)]
    back = said[::-1]
    return Question((BOS, *said, SEPARATOR, *back[: last - at]), (back[last - at],))


DIGITS = tuple("9876543210")


def _sorting() -> Wiring:
    """One head that looks for the smallest digit above the last one."""
    words = (BOS, *DIGITS, SEPARATOR)
    size, n_digits = len(words), len(DIGITS)
    digits = range(1, 1 + n_digits)
    wanted = torch.zeros(size, n_digits, dtype=torch.float64)
    for word in range(1, size):
        # digits fall from 9: what comes before a word is greater, and all are before the separator
        for digit in range(n_digits):
            wanted[word, digit] = SHARP * (digit + 1 if digit < word - 1 else -1)
    return Wiring(
        words,
        10,
        {},
        heads=[
            Head(
                0,
                query={"token": wanted},
                key={"token": picked(size, digits)},
                value={"token": picked(size, digits)},
                writes={"answer": picked(size, digits, LOUD).T},
            )
        ],
    )


def _ask_sorting(rng: random.Random, length: int) -> Question:
    count = rng.choice([count for count in range(2, length - 1) if 2 * count > length - 2])
    said = rng.sample(DIGITS, count)
    done = sorted(said)
    made = length - 2 - count
    return Question((BOS, *said, SEPARATOR, *done[:made]), (done[made],))


def _renamed(words: tuple[str, ...]) -> Callable[[Question, random.Random], Question]:
    """The counterfactual that says every one of `words` as another one, in the same places."""

    def flip(question: Question, rng: random.Random) -> Question:
        shift = rng.randrange(1, len(words))
        other = {word: words[(place + shift) % len(words)] for place, word in enumerate(words)}
        said, answers = (tuple(other.get(one, one) for one in part) for part in question[:2])
        return Question(said, answers)

    return flip


INDUCTION = Recipe("induction", _induction, (7, 8, 9, 10), _ask_induction)
SYMBOLIC_IOI = Recipe("symbolic_ioi", _symbolic_ioi, (6, 7, 8, 9), _ask_symbolic_ioi)
REVERSE = Recipe("reverse", _reverse, (7, 8, 9, 10), _ask_reverse)
SORTING = Recipe("sorting", _sorting, (6, 7, 8, 9, 10), _ask_sorting)
INDUCTION_RENAMED = replace(INDUCTION, name="induction_renamed", flip=_renamed(LETTERS))
IOI_RENAMED = replace(SYMBOLIC_IOI, name="symbolic_ioi_renamed", flip=_renamed(NAMES))
REVERSE_RENAMED = replace(REVERSE, name="reverse_renamed", flip=_renamed(LETTERS[:8]))
INDUCTION_SOFT, IOI_SOFT, REVERSE_SOFT = (
    replace(one, name=f"{one.name}_soft", sharpness=0.2)
    for one in (INDUCTION_RENAMED, IOI_RENAMED, REVERSE_RENAMED)
)
