"""Prompts of any text as training data: batches by the step's number."""

from collections.abc import Sequence

import torch

from replacement.training.activations import TokenBatch, TokenBatches


def prompt_batches(
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    *,
    seed: int = 0,
    longest: int | None = None,
    pad: int = 0,
) -> TokenBatches:
    """Return a function that gives each training step its prompts, every one once an epoch.

    The order of an epoch is drawn from the seed and the epoch's number, so the same step always has
    the same prompts. They are padded on the right with the id `pad`. Real tokens weigh 1, the first
    of a prompt 0, and padding 0. Prompts of more than `longest` tokens are split; pieces
    of one token are left out.

    Raises ValueError where no prompt has two tokens, since none would count.

    >>> batches = prompt_batches([[5, 6, 7], [8, 9]], batch_size=2)
    >>> batches(0)[0].weight.sum().item()
    3.0
    """
    if batch_size < 1 or (longest is not None and longest < 2):
        raise ValueError(
            f"prompt_batches(batch_size={batch_size}, longest={longest}): give at least one prompt "
            "a batch and two tokens a prompt."
        )
    pieces = [piece for prompt in prompts for piece in _split(prompt, longest) if len(piece) > 1]
    if not pieces:
        raise ValueError(
            f"none of the {len(prompts)} prompts has two tokens or more. The first token of a "
            "prompt is left out of the loss, so nothing is there to train on; give longer texts."
        )

    def order(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch % 1_000_003)
        return torch.randperm(len(pieces), generator=generator).tolist()

    def batch(step: int) -> list[TokenBatch]:
        places = [divmod(step * batch_size + row, len(pieces)) for row in range(batch_size)]
        orders = {epoch: order(epoch) for epoch, _ in places}
        return [_padded([pieces[orders[epoch][place]] for epoch, place in places], pad)]

    return batch


def each_once(
    prompts: Sequence[Sequence[int]], batch_size: int, *, longest: int | None = None, pad: int = 0
) -> list[TokenBatch]:
    """Return every prompt (or piece of one) in one batch, to measure on; weights as in training.

    Raises ValueError where none has three tokens: with the first left out, no other would have a
    next one to predict.

    >>> [batch.ids.shape[0] for batch in each_once([[5, 6, 7], [8, 9], [1, 2, 3, 4]], 2)]
    [2, 1]
    """
    pieces = [piece for prompt in prompts for piece in _split(prompt, longest) if len(piece) > 1]
    if not any(len(piece) > 2 for piece in pieces):
        raise ValueError(
            f"none of the {len(prompts)} held-out prompts has three tokens or more, so nothing "
            "could be measured at the end; give longer texts."
        )
    starts = range(0, len(pieces), batch_size)
    return [_padded(pieces[start : start + batch_size], pad) for start in starts]


def _split(prompt: Sequence[int], longest: int | None) -> list[Sequence[int]]:
    size = longest or max(1, len(prompt))
    return [prompt[start : start + size] for start in range(0, len(prompt), size)]


def _padded(rows: list[Sequence[int]], pad: int) -> TokenBatch:
    """The rows as one batch: real tokens but the first weigh 1."""
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    weight = torch.zeros(ids.shape)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(list(row))
        weight[index, 1 : len(row)] = 1.0
    return TokenBatch(ids, weight)
