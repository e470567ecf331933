"""Task examples as tensors: one padded batch a task, every position that is asked marked."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from jaxtyping import Bool, Int

from benchmarks.tasks import FIVE_TASKS, Example, Split
from benchmarks.tasks.vocabulary import BOS, PAD, spell, token_strings


@cache
def token_ids() -> dict[str, int]:
    """Return every token's id: of a word that both bundled models read, the same in both."""
    return {token: index for index, token in enumerate(token_strings(sequences=True))}


BOS_ID: Final = token_ids()[BOS]
PAD_ID: Final = token_ids()[PAD]


@dataclass(frozen=True)
class Batch:
    """Examples of one task: ids padded on the right."""

    ids: Int[torch.Tensor, "batch pos"]
    asked: Bool[torch.Tensor, "batch pos"]
    """True where the next token is an answer."""

    @property
    def real(self) -> Bool[torch.Tensor, "batch pos"]:
        """True at every position that is not padding."""
        return self.ids != PAD_ID


def example_ids(example: Example) -> list[int]:
    """Return the token ids of a whole example, BOS first."""
    ids = token_ids()
    return [BOS_ID, *(ids[spell(word)] for word in example.words)]


def collate(examples: Sequence[Example]) -> Batch:
    """Return the examples as one padded batch."""
    rows = [example_ids(example) for example in examples]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD_ID)
    asked = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, (row, example) in enumerate(zip(rows, examples, strict=True)):
        ids[index, : len(row)] = torch.tensor(row)
        asked[index, [answer.pos for answer in example.answers]] = True
    return Batch(ids, asked)


def draw(task: str, split: Split, count: int, *, seed: str) -> list[Example]:
    """Return `count` examples of a task; the same seed gives the same examples on every machine."""
    rng = random.Random(f"{seed}/{task}/{split}")
    return [FIVE_TASKS[task](rng, split) for _ in range(count)]
