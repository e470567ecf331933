"""Each task's prompts beside counterfactuals of equal length, by the published rules.

Clean prompts are held out; a counterfactual need not be. BOS stands in front of every prompt, at
position 0.

* ioi: S2 → IO, which flips the answer (MIB's default), S2 → a third name (EAP-IG), or both names
  exchanged throughout. Metric: logit(IO) − logit(S).
* greater_than: YY → 02. The paper's 01 is a token of our vocabulary but stands in no training text
  (start years run from 02), so that a model has learned nothing of it. Metric: Σ p(later years) −
  Σ p(others).
* induction: in the first copy, the word that is to be repeated → a random word that stands nowhere
  in the text. Metric: logit(that word) − logit(the word in its place).
* bracket: the opening bracket to be closed → one of another kind. Metric: logit(its closing
  bracket) − logit(the other kind's).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import torch

from benchmarks.edges.pairs import Pairs
from benchmarks.tasks.bracket import bracket, by_depth
from benchmarks.tasks.example import Example
from benchmarks.tasks.greater_than import START_YEARS, greater_than
from benchmarks.tasks.induction import induction
from benchmarks.tasks.ioi import ioi
from benchmarks.tasks.vocabulary import IOI_NAMES, PAIRS, WORD_POOL, YEARS, spell
from replacement.prompts import single_token

EARLIEST: Final = YEARS[START_YEARS[0]]


@dataclass(frozen=True)
class Counterfactual:
    """A prompt and another of equal length."""

    task: str
    clean: tuple[str, ...]
    """Words up to where the answer is predicted, without BOS."""
    corrupt: tuple[str, ...]
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    """What the metric sets against each other."""
    probability: bool
    """True where the metric is a difference of probabilities, False where of logits."""
    roles: Mapping[str, tuple[int, ...]]
    """Positions by part, BOS being 0; "END" predicts the answer, "CHANGED" differs. A position can
    have several names."""


def _changed(
    example: Example,
    end: int,
    changed: int,
    word: str,
    metric: tuple[Sequence[str], Sequence[str]],
    roles: Mapping[str, tuple[int, ...]],
) -> Counterfactual:
    """The prompt up to `end` beside the one with another word at position `changed`."""
    clean = example.words[:end]
    corrupt = (*clean[: changed - 1], word, *clean[changed:])
    parts = {"END": (end,), "CHANGED": (changed,)}
    return Counterfactual(
        example.task,
        clean,
        corrupt,
        tuple(metric[0]),
        tuple(metric[1]),
        example.task == "greater_than",
        MappingProxyType({**roles, **parts}),
    )


def ioi_flip(rng: random.Random) -> Counterfactual:
    """Return a sentence beside the one in which the other name is repeated."""
    return _ioi(rng, lambda io, _subject: io)


def ioi_random(rng: random.Random) -> Counterfactual:
    """Return a sentence beside one in which no name is repeated."""

    def third(io: str, subject: str) -> str:
        return rng.choice([name for name in IOI_NAMES if name not in (io, subject)])

    return _ioi(rng, third)


def ioi_swapped(rng: random.Random) -> Counterfactual:
    """Return a sentence beside the one in which either name stands wherever the other did."""
    one = ioi_flip(rng)
    (io,), (subject,) = one.right, one.wrong
    other = {io: subject, subject: io}
    changed = [pos for pos, word in enumerate(one.clean, start=1) if word in other]
    corrupt = tuple(other.get(word, word) for word in one.clean)
    return replace(one, corrupt=corrupt, roles={**one.roles, "CHANGED": tuple(changed)})


def _ioi(rng: random.Random, instead: Callable[[str, str], str]) -> Counterfactual:
    example = ioi(rng, "held_out")
    (answer,), (s2,) = example.answers, example.roles["S2"]
    (io,), (subject,) = answer.right, answer.wrong
    metric = (answer.right, answer.wrong)
    return _changed(example, answer.pos, s2, instead(io, subject), metric, example.roles)


def greater_than_earliest(rng: random.Random) -> Counterfactual:
    """Return a sentence beside one that begins in the earliest year."""
    while True:
        example = greater_than(rng, "held_out")
        (answer,), (year,) = example.answers, example.roles["YY"]
        if example.words[year - 1] != EARLIEST:
            metric = (answer.right, answer.wrong)
            roles = {**example.roles, **_by_word(example.words[: answer.pos])}
            return _changed(example, answer.pos, year, EARLIEST, metric, roles)


def _by_word(words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The position of every word, of a word's second occurrence "to 2"."""
    seen: dict[str, int] = {}
    found = {}
    for pos, word in enumerate(words, start=1):
        seen[word] = seen.get(word, 0) + 1
        found[word if seen[word] == 1 else f"{word} {seen[word]}"] = (pos,)
    return found


def induction_other(rng: random.Random) -> Counterfactual:
    """Return a text beside one whose first copy has another word where the answer comes from."""
    example = induction(rng, "held_out")
    first, second = example.roles["FIRST"], example.roles["SECOND"]
    place = rng.randrange(len(first) - 1)
    changed, end = first[place + 1], second[place]
    word = rng.choice([word for word in WORD_POOL if word not in example.words])
    copies = {"FIRST": first, "SECOND": tuple(pos for pos in second if pos <= end)}
    roles = {"PREVIOUS": (first[place],), "SOURCE": (changed,), **copies}
    metric = ((example.words[changed - 1],), (word,))
    return _changed(example, end, changed, word, metric, roles)


def bracket_other(rng: random.Random) -> Counterfactual:
    """Return a text beside one in which the bracket to be closed is of another kind."""
    example = bracket(rng, "held_out")
    closing = [number for number, one in enumerate(example.answers) if one.kind == "close"]
    number = rng.choice(closing)
    opener = example.roles["OPENER"][number]
    kind = example.words[opener - 1]
    other = rng.choice([one for one in PAIRS if one != kind])
    end = example.answers[number].pos
    metric = ((PAIRS[kind],), (PAIRS[other],))
    roles = {"OPENER": (opener,), **by_depth(example.words[:end])}
    return _changed(example, end, opener, other, metric, roles)


RULES: Final[Mapping[str, Callable[[random.Random], Counterfactual]]] = MappingProxyType(
    {
        "ioi": ioi_flip,
        "induction": induction_other,
        "bracket": bracket_other,
        "greater_than": greater_than_earliest,
    }
)
"""Each task's rule; IOI's others are `ioi_random` and `ioi_swapped`."""


def counterfactuals(task: str, count: int, *, seed: int = 0) -> list[Counterfactual]:
    """Return `count` pairs of a task; the same seed gives the same ones on every machine.

    Raises KeyError for an unknown task.
    """
    rule, rng = RULES[task], random.Random(f"counterfactuals/{seed}/{task}")
    return [rule(rng) for _ in range(count)]


def pairs_of(chosen: Sequence[Counterfactual], tokenizer: Any, d_vocab: int) -> Pairs:
    """Return counterfactuals of one task as a batch.

    Raises ValueError where a word is not one token of the tokenizer.
    """
    number = cache(lambda word: single_token(spell(word), tokenizer, d_vocab))
    clean = [[tokenizer.bos_token_id, *map(number, one.clean)] for one in chosen]
    corrupt = [[tokenizer.bos_token_id, *map(number, one.corrupt)] for one in chosen]
    longest = max(map(len, clean))
    weights = torch.zeros(len(chosen), d_vocab)
    for row, one in enumerate(chosen):
        for words, sign in ((one.right, 1.0), (one.wrong, -1.0)):
            share = sign if one.probability else sign / len(words)
            weights[row, [number(word) for word in words]] = share
    return Pairs(
        clean=torch.tensor([ids + [ids[0]] * (longest - len(ids)) for ids in clean]),
        corrupt=torch.tensor([ids + [ids[0]] * (longest - len(ids)) for ids in corrupt]),
        end=torch.tensor([len(ids) - 1 for ids in clean]),
        weights=weights,
        probability=chosen[0].probability,
    )
