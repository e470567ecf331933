"""Sequence continuation (Lan et al. 2023, arXiv 2311.04131): what comes after four members?

"Van done in 1. Hat done in 2. Ring done in 3. Desk done in 4. Sun done in" is continued by 5;
likewise with number words and months. Half of the examples show members at random, none the
successor of the one before, so that the last member alone does not say what follows.
"""

import itertools
import random
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from benchmarks.tasks.example import Answer, Example, Split, belongs
from benchmarks.tasks.vocabulary import MEMBERS, THINGS

SHOWN: Final = 4
"""Members in front of the one that is asked."""


def sentences(things: Sequence[str], members: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a text that shows members, one a thing, and asks for the next.

    >>> " ".join(sentences(["Van", "Sun"], ["1"]))
    'Van done in 1 . Sun done in'
    """
    shown = zip(things, members, strict=False)
    done = [word for thing, one in shown for word in (thing, "done", "in", one, ".")]
    return (*done, things[len(members)], "done", "in")


def unordered(rng: random.Random, members: Sequence[str], count: int = SHOWN) -> list[str]:
    """Return members at random, none the successor of the one before."""
    while True:
        drawn = rng.sample(members, count)
        places = [members.index(one) for one in drawn]
        if not any(later == one + 1 for one, later in itertools.pairwise(places)):
            return drawn


def sequence(rng: random.Random, split: Split) -> Example:
    """Return a random text of the split: a run of successors, or members in no order."""
    while True:
        kind, things = rng.choice(list(MEMBERS)), rng.sample(THINGS, SHOWN + 1)
        members = MEMBERS[kind]
        start = rng.randrange(len(members) - SHOWN)
        key = (kind, members[start], *things[:2])
        if belongs(key, split):
            break
    ordered = rng.random() < 0.5
    drawn = members[start : start + SHOWN + 1] if ordered else unordered(rng, members, SHOWN + 1)
    words = (*sentences(things, drawn[:SHOWN]), drawn[SHOWN], ".")
    places = [5 * number + 3 for number in range(SHOWN + 1)]
    asked = [
        Answer(places[number], (drawn[number],), _without(members, drawn[number]), kind)
        for number in range(2, SHOWN + 1)
        if ordered
    ]
    roles = {"MEMBERS": tuple(pos + 1 for pos in places[:SHOWN]), "END": (places[SHOWN],)}
    return Example("sequence", words, tuple(asked), MappingProxyType(roles), key)


def _without(members: Sequence[str], left_out: str) -> tuple[str, ...]:
    return tuple(one for one in members if one != left_out)
