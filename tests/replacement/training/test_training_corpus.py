"""Prompts as training batches: every prompt once an epoch, the same ones at the same step."""

import pytest
import torch

from replacement.training import TokenBatch, prompt_batches

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11], [12, 13, 14]]


def rows(batch: TokenBatch) -> list[list[int]]:
    """The real tokens of a batch: the first and those that weigh."""
    kept = batch.weight.bool()
    kept[:, 0] = True
    return [ids[real].tolist() for ids, real in zip(batch.ids, kept, strict=True)]


def test_a_step_gives_the_same_batch_however_often_it_is_asked_for() -> None:
    one, other = prompt_batches(PROMPTS, 2, seed=3), prompt_batches(PROMPTS, 2, seed=3)
    other(7)
    for step in (-4, 0, 11):
        assert torch.equal(one(step)[0].ids, other(step)[0].ids)
    steps = [prompt_batches(PROMPTS, 2, seed=seed)(0)[0] for seed in range(8)]
    assert len({str(rows(batch)) for batch in steps}) > 1


def test_every_prompt_comes_once_an_epoch() -> None:
    batches = prompt_batches(PROMPTS, 2)
    for first in (-5, 0, 5):  # five steps of two are two epochs of five
        seen = [row for step in range(first, first + 5) for row in rows(batches(step)[0])]
        assert sorted(seen[:5]) == sorted(seen[5:]) == PROMPTS
    assert seen[:5] != seen[5:]


def test_padding_and_first_tokens_weigh_nothing() -> None:
    (batch,) = prompt_batches([[1, 2, 3], [4, 5]], 2, pad=99)(0)
    found = sorted(zip(batch.ids.tolist(), batch.weight.tolist(), strict=True))
    assert found == [([1, 2, 3], [0.0, 1.0, 1.0]), ([4, 5, 99], [0.0, 1.0, 0.0])]


def test_long_prompts_are_split() -> None:
    batches = prompt_batches([list(range(7))], 2, longest=3)
    assert sorted(rows(batches(0)[0])) == [
        [0, 1, 2],
        [3, 4, 5],
    ]  # the last is left out


@pytest.mark.parametrize("prompts", [[], [[1]], [[], [2]]])
def test_nothing_to_train_on_is_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="has two tokens or more"):
        prompt_batches(prompts, 2)


def test_batches_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        prompt_batches(PROMPTS, 0)
