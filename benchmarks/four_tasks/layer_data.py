"""The data of the replacement layers: the four tasks, each with the same weight in every step.

BOS counts in training: with the original replaced at every position, every later key and every MLP
above reads what the layers make of it. Metrics leave BOS out: it is one easy case, and would
flatter every figure.
"""

from collections.abc import Callable

from benchmarks.four_tasks.batches import Batch, collate, draw
from benchmarks.tasks import TASKS, Split
from replacement.training import TokenBatch

EXAMPLES = {"ioi": 32, "induction": 16, "bracket": 24, "greater_than": 40}
"""Examples of each task in one step: about as many tokens of each."""


def weighted(batch: Batch, *, bos: bool) -> TokenBatch:
    """Return the batch with weights that sum to 1 over its words; BOS counts like a word or not."""
    real = batch.real.float()
    words = real[:, 1:].sum()
    if not bos:
        real[:, 0] = 0.0
    return TokenBatch(batch.ids, real / words)


def training_batches(seed: int) -> Callable[[int], list[TokenBatch]]:
    """Return the token batches of a step, by the step's number."""
    return lambda step: [
        weighted(collate(draw(task, "train", count, seed=f"transcoders/{seed}/{step}")), bos=True)
        for task, count in EXAMPLES.items()
    ]


def held_out_batches(count: int, *, seed: int = 0, split: Split = "held_out") -> list[TokenBatch]:
    """Return `count` examples of every task, BOS left out."""
    size = 100
    batches = [
        collate(draw(task, split, min(size, count - start), seed=f"measure/{seed}/{start}"))
        for task in TASKS
        for start in range(0, count, size)
    ]
    return [weighted(batch, bos=False) for batch in batches]
