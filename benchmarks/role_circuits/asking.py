"""A task's prompts and counterfactuals as targets of recorded runs."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from benchmarks.tasks.counterfactuals import RULES, Counterfactual
from benchmarks.tasks.text_pair import TextPair, token_ids
from benchmarks.tasks.texts import text_pairs
from benchmarks.tasks.vocabulary import spell
from circuits.contrasting import contrasted
from replacement.model import ReplacementModel
from replacement.prompts import single_token
from replacement.run import Run
from replacement.target import Target

REST = "other"
"""The role of positions without one."""
DRAWS = 100
"""So many draws a wanted prompt, before a vocabulary counts as not present."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt with what is to be explained of it, and its counterfactual."""

    target: Target
    """Mean logit of the right words less that of the wrong ones, after the last word."""
    counterfactual: Sequence[int]
    """Its token ids."""
    roles: Mapping[str, Sequence[int]]
    """Positions by role, each in one; what has none is of the role `other`."""
    answer: str
    """The right word; of several, the first."""

    @property
    def run(self) -> Run:
        return self.target.run

    @cached_property
    def other(self) -> Run:
        """The counterfactual, run when it is first asked for."""
        return self.run.model.run(self.counterfactual)

    @property
    def difference(self) -> Target:
        """What the target is here more than in the counterfactual."""
        return contrasted(self.target, self.other)

    @property
    def where(self) -> dict[str, Sequence[int]]:
        """The positions of every role, `other` among them."""
        named = {pos for places in self.roles.values() for pos in places}
        rest = [pos for pos in range(len(self.run.tokens)) if pos not in named]
        return {**self.roles, REST: rest}


def ask(
    model: ReplacementModel, task: str, count: int, *, seed: int = 0, published: bool = False
) -> list[Asked]:
    """Return so many prompts of a task as targets, each beside its counterfactual.

    Prompts with words that are not one token of the model's tokenizer are left out. `published`:
    the texts of `benchmarks.tasks.texts`, with a BOS in front where the authors put one. Raises
    KeyError for an unknown task, ValueError "vocabulary not present" where hardly any is left.
    """
    if published:
        texts = text_pairs(task, model.tokenizer, count, seed=seed)
        return [_asked_text(model, one) for one in texts]
    rng, found = random.Random(f"role circuits/{seed}/{task}"), []
    for _ in range(DRAWS * count):
        if len(found) == count:
            break
        one = RULES[task](rng)
        if _fits(one, model):
            found.append(_asked(model, one))
    if len(found) < count:
        raise ValueError(
            f"{task}: vocabulary not present: {len(found)} of {DRAWS * count} prompts are one "
            f"token a word for the tokenizer of {model.name}. Give a model that reads them so."
        )
    return found


def _fits(one: Counterfactual, model: ReplacementModel) -> bool:
    try:
        for word in {*one.clean, *one.corrupt, *one.right, *one.wrong}:
            single_token(spell(word), model.tokenizer, model.weights.d_vocab)
    except ValueError:
        return False
    return True


def _asked(model: ReplacementModel, one: Counterfactual) -> Asked:
    tokenizer: Any = model.tokenizer

    def ids(words: Sequence[str]) -> list[int]:
        found = [single_token(spell(word), tokenizer, model.weights.d_vocab) for word in words]
        return [tokenizer.bos_token_id, *found]

    named = {name: places for name, places in one.roles.items() if name != "CHANGED"}
    clean, roles = model.run(ids(one.clean)), _once_each({"BOS": (0,), **named})
    right, wrong = (_mean(clean, list(map(spell, words))) for words in (one.right, one.wrong))
    return Asked(right - wrong, ids(one.corrupt), roles, one.right[0])


def _asked_text(model: ReplacementModel, one: TextPair) -> Asked:
    tokenizer: Any = model.tokenizer
    start = [tokenizer.bos_token_id] if one.bos else []
    ids, other = ([*start, *token_ids(text, tokenizer)] for text in (one.clean, one.corrupt))
    clean = model.run(ids)
    places = {name: (pos,) for name, pos in one.positions(tokenizer, bos=one.bos).items()}
    roles = {"BOS": (0,), **places} if one.bos else places
    target = _mean(clean, one.right) - _mean(clean, one.wrong)
    return Asked(target, other, _once_each(roles), one.right[0])


def _once_each(roles: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Every position in one role: where several name it, END's, else the first's."""
    found: dict[str, Sequence[int]] = {}
    taken = set[int]()
    for name, places in sorted(roles.items(), key=lambda item: item[0] != "END"):
        free = [pos for pos in places if pos not in taken]
        if free:
            found[name] = free
            taken |= {*free}
    return found


def _mean(run: Run, tokens: Sequence[str]) -> Target:
    first, *rest = (run.logit(token) for token in tokens)
    return sum(rest, start=first) / len(tokens)
