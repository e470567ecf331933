"""Prompts of the four tasks, each with what is measured and the role of every position."""

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.tasks import TASKS
from benchmarks.tasks.bracket import MAX_DEPTH, by_depth
from benchmarks.tasks.example import Example, Split
from benchmarks.tasks.vocabulary import WORD_POOL, spell
from replacement.prompts import single_token
from replacement.run import Run
from replacement.target import Target, sum_of

BOS = "BOS"
OTHER = "other"
ROLES = {
    "ioi": (BOS, OTHER, "IO", "S1", "S1+1", "S2", "END"),
    "induction": (BOS, OTHER, "FIRST", "SECOND", "PREVIOUS", "SOURCE", "END"),
    "bracket": (
        BOS,
        *(f"open {depth + 1}" for depth in range(MAX_DEPTH)),
        *(f"shut {depth}" for depth in range(MAX_DEPTH)),
        "close",
        ":",
        "OPENER",
        "END",
    ),
    "greater_than": tuple(map(str, range(13))),
}
"""Roles of positions; what has no other is "other". Of greater-than every position is one. Brackets
have the depth that they leave, since what is at one depth is not at another."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, which words its metric sets against each other, and what plays which part."""

    words: tuple[str, ...]
    """Without BOS."""
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    roles: tuple[str, ...]
    """Of every position, BOS being the first."""


def prompts(task: str, split: Split, count: int, *, seed: int = 0) -> list[Prompt]:
    """Return so many prompts of a split; the same seed gives the same ones on every machine.

    Raises KeyError for an unknown task.
    """
    rng = random.Random(f"selection/{seed}/{split}/{task}")
    return [_prompt(task, rng, split) for _ in range(count)]


def _prompt(task: str, rng: random.Random, split: Split) -> Prompt:
    example = TASKS[task](rng, split)
    if task == "greater_than":
        answer, end = example.answers[0], example.answers[0].pos
        return Prompt(example.words[:end], answer.right, answer.wrong, ROLES[task])
    if task == "ioi":
        answer = example.answers[0]
        named = {name: places[0] for name, places in example.roles.items()}
        return _named(task, example, answer.right, answer.wrong, named)
    if task == "induction":
        first, second = example.roles["FIRST"], example.roles["SECOND"]
        place = rng.randrange(len(first) - 1)
        wrong = rng.choice([word for word in WORD_POOL if word not in example.words])
        copies = {(name, pos): pos for name in ("FIRST", "SECOND") for pos in example.roles[name]}
        named = {"PREVIOUS": first[place], "SOURCE": first[place + 1], "END": second[place]}
        right = example.words[first[place + 1] - 1]
        return _named(task, example, (right,), (wrong,), {**copies, **named})
    asked = [number for number, one in enumerate(example.answers) if one.kind == "close"]
    number = rng.choice(asked)
    answer = example.answers[number]
    depths = by_depth(example.words).items()
    kinds = {(name, pos): pos for name, places in depths for pos in places}
    named = {"OPENER": example.roles["OPENER"][number], "END": answer.pos}
    return _named(task, example, answer.right, answer.wrong, {**kinds, **named})


def _named(
    task: str,
    example: Example,
    right: tuple[str, ...],
    wrong: tuple[str, ...],
    named: dict[Any, int],
) -> Prompt:
    """The words up to END, positions named by the last name that claims them."""
    end = named["END"]
    roles = [BOS, *[OTHER] * end]
    for name, pos in named.items():
        if pos <= end:
            roles[pos] = name[0] if isinstance(name, tuple) else name
    assert set(roles) <= set(ROLES[task]), f"{task}: {roles}"
    return Prompt(example.words[:end], right, wrong, tuple(roles))


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt that was run: what is measured, and the slot (number of the role) of positions."""

    target: Target
    logit_weights: Float[Tensor, " d_vocab"]
    """The target as a vector: its value is their product with the logits at the end."""
    slots: Int[Tensor, " pos"]
    probability: bool
    """Whether the metric is a difference of probabilities, and not the target itself."""

    @property
    def run(self) -> Run:
        return self.target.run

    def metric(self, logits: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row"]:
        """Return the task's metric: greater-than's probability on later less that on other years,
        for the other tasks the target."""
        if self.probability:
            return logits.softmax(-1) @ self.logit_weights.sign()
        return logits @ self.logit_weights


@torch.no_grad()
def asked(model: Any, task: str, prompt: Prompt) -> Asked:
    """Return a prompt's run and target: mean logit of the right words less that of the wrong."""
    number = _numbers(model)
    run = model.run([model.tokenizer.bos_token_id, *map(number, prompt.words)])
    weights, terms = run.next_logits.new_zeros(run.weights.d_vocab), []
    for words, sign in ((prompt.right, 1.0), (prompt.wrong, -1.0)):
        for word in words:
            weights[number(word)] = sign / len(words)
            terms.append(sign / len(words) * run.logit(number(word)))
    slots = torch.tensor([ROLES[task].index(role) for role in prompt.roles])
    return Asked(sum_of(terms), weights, slots, task == "greater_than")


@cache
def _numbers(model: Any) -> Any:
    return cache(lambda word: single_token(spell(word), model.tokenizer, model.weights.d_vocab))
