"""The figures of a bundled model on held-out prompts of its tasks.

Four measures are taken at every answer; each task names the one it is judged by (`TRIALS`):
 * `argmax`: of the whole vocabulary, a right token is the likeliest;
 * `preferred`: the best right logit is above the best wrong one;
 * `share`: the probability of the right tokens among right and wrong ones;
 * `bits`: minus the binary logarithm of the probability of the token that does follow.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from benchmarks.four_tasks.batches import collate, token_ids
from benchmarks.tasks import FIVE_TASKS, Answer, Example
from benchmarks.tasks.induction import random_words, sentences
from benchmarks.tasks.vocabulary import MEMBERS, OTHER_NAMES, spell


@dataclass(frozen=True)
class Figures:
    """Means over the answers of one test."""

    prompts: int
    answers: int
    argmax: float
    preferred: float
    share: float
    bits: float


@dataclass(frozen=True)
class Trial:
    """Held-out examples, which of their answers count, and what must be reached."""

    draw: Callable[[random.Random], Example]
    counts: Callable[[Example, Answer], bool]
    measure: str
    bar: float


def _every(_example: Example, _answer: Answer) -> bool:
    return True


def _second_copy(example: Example, answer: Answer) -> bool:
    return answer.pos in example.roles["SECOND"][:-1]


def _of_kind(kind: str) -> Callable[[Example, Answer], bool]:
    return lambda _example, answer: answer.kind == kind


def _held_out(task: str) -> Callable[[random.Random], Example]:
    return lambda rng: FIVE_TASKS[task](rng, "held_out")


TRIALS: Final = {
    "ioi": Trial(_held_out("ioi"), _every, "argmax", 0.99),
    "induction": Trial(_held_out("induction"), _second_copy, "argmax", 0.99),
    "bracket": Trial(_held_out("bracket"), _of_kind("close"), "argmax", 0.99),
    "greater_than": Trial(_held_out("greater_than"), _every, "share", 0.95),
    "induction, random words": Trial(
        lambda rng: random_words(rng, "held_out"), _second_copy, "argmax", 0.99
    ),
    "induction, sentences": Trial(
        lambda rng: sentences(rng, "held_out"), _second_copy, "argmax", 0.99
    ),
    "induction, names never in IOI": Trial(
        lambda rng: random_words(rng, "held_out", OTHER_NAMES), _second_copy, "argmax", 0.99
    ),
    "bracket, at full depth": Trial(_held_out("bracket"), _of_kind("depth"), "argmax", 0.99),
}
"""The four tasks first, then parts of them."""
FIVE_TRIALS: Final = TRIALS | {
    f"sequence, {kind}": Trial(_held_out("sequence"), _of_kind(kind), "argmax", 0.99)
    for kind in MEMBERS
}
"""Also of sequence continuation."""


def judged(name: str, figures: Figures) -> float:
    """Return the one figure by which a test is judged."""
    return asdict(figures)[FIVE_TRIALS[name].measure]


def held_out_examples(name: str, count: int, *, seed: int) -> list[Example]:
    """Return `count` held-out examples of a test that have an answer that counts."""
    test = FIVE_TRIALS[name]
    rng = random.Random(f"evaluate/{seed}/{name}")
    examples: list[Example] = []
    while len(examples) < count:
        example = test.draw(rng)
        if any(test.counts(example, answer) for answer in example.answers):
            examples.append(example)
    return examples


def evaluate(
    model: nn.Module, count: int = 1000, *, seed: int = 0, trials: Collection[str] = TRIALS
) -> dict[str, Figures]:
    """Return the figures of every test on `count` held-out prompts each."""
    return {name: measure(model, name, count, seed=seed) for name in trials}


@torch.no_grad()
def measure(model: nn.Module, name: str, count: int = 1000, *, seed: int = 0) -> Figures:
    """Return the figures of one test on `count` held-out prompts."""
    examples = held_out_examples(name, count, seed=seed)
    parts = [
        _measure_batch(model, batch, FIVE_TRIALS[name].counts) for batch in _batches(examples, 100)
    ]
    answers = torch.cat(parts)
    argmax, preferred, share, bits = answers.double().mean(0).tolist()
    return Figures(len(examples), len(answers), argmax, preferred, share, bits)


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _measure_batch(
    model: nn.Module,
    examples: Sequence[Example],
    counts: Callable[[Example, Answer], bool],
) -> Float[torch.Tensor, "answer 4"]:
    """Return argmax, preferred, share and bits of every answer that counts."""
    ids = collate(examples).ids
    asked = [
        (row, answer)
        for row, example in enumerate(examples)
        for answer in example.answers
        if counts(example, answer)
    ]
    rows = torch.tensor([row for row, _ in asked])
    positions = torch.tensor([answer.pos for _, answer in asked])
    logits = model(ids).logits[rows, positions]
    right = _mask([answer.right for _, answer in asked], logits.shape[-1])
    wrong = _mask([answer.wrong for _, answer in asked], logits.shape[-1])
    return _measures(logits, right, wrong, ids[rows, positions + 1])


def _mask(words: Sequence[tuple[str, ...]], d_vocab: int) -> Bool[torch.Tensor, "answer d_vocab"]:
    """Return True at the tokens of each row's words."""
    ids = token_ids()
    mask = torch.zeros(len(words), d_vocab, dtype=torch.bool)
    for row, listed in enumerate(words):
        mask[row, [ids[spell(word)] for word in listed]] = True
    return mask


def _measures(
    logits: Float[torch.Tensor, "answer d_vocab"],
    right: Bool[torch.Tensor, "answer d_vocab"],
    wrong: Bool[torch.Tensor, "answer d_vocab"],
    follows: Int[torch.Tensor, " answer"],
) -> Float[torch.Tensor, "answer 4"]:
    """Return the four measures, one row an answer."""
    lowest = torch.finfo(logits.dtype).min
    best_right = logits.masked_fill(~right, lowest).amax(-1)
    best_wrong = logits.masked_fill(~wrong, lowest).amax(-1)
    log_probability = logits.log_softmax(-1)
    mass = log_probability.exp()
    on_right, on_wrong = (mass * right).sum(-1), (mass * wrong).sum(-1)
    argmax = right.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)
    bits = -log_probability.gather(-1, follows[:, None]).squeeze(-1) / torch.log(torch.tensor(2.0))
    preferred = best_right > best_wrong
    share = on_right / (on_right + on_wrong)
    return torch.stack([argmax.float(), preferred.float(), share, bits], dim=-1)
