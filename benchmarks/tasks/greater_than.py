"""Greater-than (Hanna et al. 2023, arXiv 2305.00586): a later year of the same century.

"The war lasted from the year 17 32 to the year 17" is followed by any year from 33 to 99, all
equally often.
"""

import random
from dataclasses import dataclass
from typing import Final

from benchmarks.tasks.example import Answer, Example, Split, belongs
from benchmarks.tasks.vocabulary import EVENTS, YEARS

CENTURIES: Final = tuple(str(number) for number in range(11, 19))
START_YEARS: Final = tuple(range(2, 99))


@dataclass(frozen=True)
class Span:
    """An event with the year it began."""

    noun: str
    century: str
    start: int

    @property
    def key(self) -> tuple[str, ...]:
        """What decides whether the span is held out."""
        return (self.noun, self.century, YEARS[self.start])


def write(span: Span, end: int) -> Example:
    """Return the sentence as an example that ends in the given year of the century."""
    start = YEARS[span.start]
    sentence = (
        f"The {span.noun} lasted from the year {span.century} {start} to the year {span.century}"
    )
    words = tuple(sentence.split())
    last = len(words)
    roles = {"NOUN": (2,), "XX1": (7,), "YY": (8,), "XX2": (last,), "END": (last,)}
    answer = Answer(last, right=YEARS[span.start + 1 :], wrong=YEARS[: span.start + 1])
    return Example("greater_than", (*words, YEARS[end], "."), (answer,), roles, span.key)


def greater_than(rng: random.Random, split: Split) -> Example:
    """Return a random sentence of the split, its end year uniform over the later years."""
    while True:
        span = Span(rng.choice(EVENTS), rng.choice(CENTURIES), rng.choice(START_YEARS))
        if belongs(span.key, split):
            return write(span, end=rng.randrange(span.start + 1, 100))
