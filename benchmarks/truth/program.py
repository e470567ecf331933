"""What an exact program is: a way to ask it, a wiring that answers, and pairs to compare."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel

from benchmarks.truth.compiling import compiled
from benchmarks.truth.components import Edge
from benchmarks.truth.wiring import Wiring, used_edges

SHARP = 50.0
"""Score by which heads look: what is not meant gets at most exp(−SHARP / 2), 1.4e-11."""
LOUD = 10.0
"""What an answer adds to its logit."""


class Question(NamedTuple):
    """A prompt's words, `<bos>` first, and the words of which any may come next."""

    words: tuple[str, ...]
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    """Words to compare the answers with, where that is not a counterfactual's business."""


@dataclass(frozen=True)
class Pair:
    """A prompt and a counterfactual of equal length, as token ids, and what is asked of both."""

    clean: list[int]
    other: list[int]
    answers: frozenset[int]
    """Tokens of which any may come next."""
    target: Mapping[int, float]
    """Weights of logits at the last position: of answers and of what they are compared with."""

    def metric(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """Return the target's value for every row of logits."""
        weights = logits.new_tensor(list(self.target.values()))
        return logits[:, list(self.target)] @ weights


@dataclass(frozen=True)
class Program:
    """A program compiled to a model."""

    name: str
    model: GPT2LMHeadModel
    circuit: frozenset[Edge]
    """Every edge by which what one component writes is read by another (`used_edges`)."""
    pairs: list[Pair]


@dataclass(frozen=True)
class Recipe:
    """A program to be compiled, with or without a random basis and dummy parts."""

    name: str
    wiring: Callable[[], Wiring]
    lengths: tuple[int, ...]
    """Tokens of a prompt, `<bos>` included."""
    ask: Callable[[random.Random, int], Question]
    """A random question of a given length."""
    single: bool = False
    """True: the target is the answer's logit; else that less the counterfactual answer's, or, where
    the question names wrong words, the mean of the right ones less the mean of these."""
    flip: Callable[[Question, random.Random], Question] | None = None
    """The counterfactual of a question; else another question of its length and other answer."""
    sharpness: float = 1.0
    """What every score is multiplied by: below 1, heads look less decidedly."""

    def build(
        self, *, rotated: bool = False, dummies: int = 0, seed: int = 0, count: int = 20
    ) -> Program:
        """Return the program as a model, and `count` pairs of prompts; the same for one seed."""
        wiring = self.wiring().sharpened(self.sharpness)
        model = compiled(wiring, rotated=rotated, dummies=dummies, seed=seed)
        number = {word: place for place, word in enumerate(wiring.vocabulary)}
        rng = random.Random(f"{self.name}/{seed}")
        pairs = [self._pair(rng, number) for _ in range(count)]
        circuit = frozenset(used_edges(wiring, wiring.most_heads + dummies))
        return Program(self.name, model, circuit, pairs)

    def _pair(self, rng: random.Random, number: Mapping[str, int]) -> Pair:
        length = rng.choice(self.lengths)
        clean = self.ask(rng, length)
        other = self._another(rng, clean)
        target = {number[word]: 1 / len(clean.answers) for word in clean.answers}
        if not self.single:
            wrong = clean.wrong or other.answers
            target |= {number[word]: -1 / len(wrong) for word in wrong}
        ids = [[number[word] for word in one.words] for one in (clean, other)]
        return Pair(ids[0], ids[1], frozenset(number[word] for word in clean.answers), target)

    def _another(self, rng: random.Random, clean: Question) -> Question:
        if self.flip is not None:
            return self.flip(clean, rng)
        while True:
            other = self.ask(rng, len(clean.words))
            if other.words != clean.words and (self.single or other.answers != clean.answers):
                return other
