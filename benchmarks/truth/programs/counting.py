"""Programs that count: histogram, how many were greater, a later year, proportions.

A head that looks equally at `<bos>` and at c other places moves 1 / (1 + c) of it; neurons make
the number of that.
"""

import random

import torch

from benchmarks.truth.program import LOUD, SHARP, Question, Recipe
from benchmarks.truth.programs.matrices import between, flag, picked, row, stepped, steps
from benchmarks.truth.wiring import ONE, Head, Neurons, Wiring

BOS = "<bos>"
NUMBERS = tuple(str(number) for number in range(8))
MOST = 7


def _counted(words: tuple[str, ...], wanted: torch.Tensor) -> Wiring:
    """How many tokens `k` were seen for which `wanted[last token, k]`, by a head and neurons."""
    size = len(words)
    # of `share` = 1 / (1 + c), c = MOST first: a step further is one less
    shares = [1 / (1 + count) for count in range(MOST, -1, -1)]
    middles = [(a + b) / 2 for a, b in zip([0.0, *shares], shares, strict=False)]
    labels = [words.index(NUMBERS[count]) for count in range(MOST, -1, -1)]
    read, bias = steps(middles, slope=120.0)
    looks = SHARP * wanted
    looks[:, 0] = SHARP
    return Wiring(
        words,
        9,
        {"share": 1},
        heads=[
            Head(
                0,
                query={"token": looks},
                key={"token": picked(size, range(size))},
                value={"token": flag(size, [0])},
                writes={"share": row([1.0])},
            )
        ],
        neurons=[
            Neurons(
                0,
                reads={"share": read, **bias},
                writes={"answer": stepped(LOUD * between(labels, size))},
            )
        ],
    )


def _count_greater() -> Wiring:
    """How many numbers before the last one are greater than it."""
    words = (BOS, *NUMBERS)
    greater = torch.ones(len(words), len(words), dtype=torch.float64).triu(1)
    greater[0] = 0
    return _counted(words, greater)


def _ask_count_greater(rng: random.Random, length: int) -> Question:
    said = [rng.choice(NUMBERS) for _ in range(length - 1)]
    greater = sum(int(one) > int(said[-1]) for one in said)
    return Question((BOS, *said), (str(greater),))


SYMBOLS = tuple("wxyz")


def _histogram() -> Wiring:
    """How often the last token occurred, itself included."""
    words = (BOS, *SYMBOLS, *NUMBERS)
    return _counted(words, torch.eye(len(words), dtype=torch.float64))


def _ask_histogram(rng: random.Random, length: int) -> Question:
    said = [rng.choice(SYMBOLS) for _ in range(length - 1)]
    return Question((BOS, *said), (str(said.count(said[-1])),))


CENTURIES, YEARS = ("16", "17", "18"), tuple(f"{year:02d}" for year in range(1, 11))


def _later_year() -> Wiring:
    """A head fetches the year; neurons make every later one louder: greater-than."""
    words = (BOS, "from", "to", *CENTURIES, *YEARS)
    size = len(words)
    years = [words.index(year) for year in YEARS]
    number = torch.zeros(size, 1, dtype=torch.float64)
    number[years, 0] = torch.arange(1, len(YEARS) + 1, dtype=torch.float64)
    # steps of minus the year seen: year y is loud where that is below y
    read, bias = steps([0.5 - year for year in range(1, len(YEARS) + 1)], slope=2.0)
    louder = picked(size, years, LOUD).T.contiguous()
    return Wiring(
        words,
        8,
        {"year": 1},
        heads=[
            Head(
                0,
                query={ONE: row([SHARP, SHARP / 2])},
                key={"token": torch.cat([flag(size, years), flag(size, [0])], dim=1)},
                value={"token": number},
                writes={"year": row([1.0])},
            )
        ],
        neurons=[Neurons(0, reads={"year": -read, **bias}, writes={"answer": stepped(louder)})],
    )


def _ask_later_year(rng: random.Random, length: int) -> Question:
    century, start = rng.choice(CENTURIES), rng.randrange(len(YEARS) - 1)
    fillers = rng.choices(("from", "to"), k=length - 5)
    words = (BOS, "from", century, YEARS[start], *fillers, century)
    return Question(words, YEARS[start + 1 :], wrong=YEARS[: start + 1])


def _proportions() -> Wiring:
    """The share of "x" among the letters so far, as the logit of one word."""
    words = (BOS, "share", "x", "y", "z")
    size = len(words)
    return Wiring(
        words,
        9,
        {"is_x": 1},
        heads=[
            Head(
                1,
                query={ONE: row([SHARP])},
                key={"token": flag(size, [0], -1.0)},
                value={"is_x": row([1.0])},
                writes={"answer": picked(size, [1]).T},
            )
        ],
        neurons=[Neurons(0, reads={"token": flag(size, [2])}, writes={"is_x": row([1.0])})],
    )


def _ask_proportions(rng: random.Random, length: int) -> Question:
    said = ["x", *(rng.choice("xyz") for _ in range(length - 2))]
    rng.shuffle(said)
    return Question((BOS, *said), ("share",))


COUNT_GREATER = Recipe("count_greater", _count_greater, (5, 6, 7, 8), _ask_count_greater)
HISTOGRAM = Recipe("histogram", _histogram, (5, 6, 7, 8), _ask_histogram)
LATER_YEAR = Recipe("later_year", _later_year, (6, 7, 8), _ask_later_year)
PROPORTIONS = Recipe("proportions", _proportions, (6, 7, 8, 9), _ask_proportions, single=True)
