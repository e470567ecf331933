"""One training run shared by the processes of torchrun: each has a share of every step's prompts.

With `torch.distributed` initialised all processes hold the same layers; gradients are added up
before every step of the optimiser, so that they stay the same. Without, all of this does nothing.
"""

from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from replacement.training.activations import TokenBatch
from replacement.training.restart import Given


def rank_and_count() -> tuple[int, int]:
    """Return which of how many processes this is."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def own_share(batches: list[TokenBatch]) -> list[TokenBatch]:
    """Return this process' prompts of a step: shares follow each other in the step's order.

    Raises ValueError where there are fewer prompts than processes.
    """
    rank, count = rank_and_count()
    total = sum(len(batch.ids) for batch in batches)
    if total < count:
        raise ValueError(
            f"{total} prompts a step for {count} processes. Give each one at least: a batch of "
            f"{count} or more, or fewer processes."
        )
    first, end = rank * total // count, (rank + 1) * total // count
    share, before = [], 0
    for batch in batches:
        rows = slice(max(0, first - before), max(0, end - before))
        if len(batch.ids[rows]):
            share.append(TokenBatch(batch.ids[rows], batch.weight[rows]))
        before += len(batch.ids)
    return share


def summed(amount: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the sum over processes."""
    if rank_and_count()[1] == 1:
        return amount
    amount = amount.clone()
    dist.all_reduce(amount)
    return amount


def anywhere(flag: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Return what is true in any process."""
    return summed(flag.float()) > 0


def add_up_gradients(weights: nn.Module) -> None:
    """Let every parameter's gradient be the sum over processes."""
    for weight in weights.parameters():
        if weight.grad is not None:
            weight.grad = summed(weight.grad)


def of_all(given: Given) -> Given:
    """Return what all processes saw in a step, in the step's order."""
    count = rank_and_count()[1]
    if count == 1:
        return given
    shares: list[Any] = [None] * count
    names = [field.name for field in fields(Given)]
    dist.all_gather_object(shares, [getattr(given, name).cpu() for name in names])
    tokens = {"heard": 2, "weight": 0}
    return Given(
        **{
            name: torch.cat(parts, dim=tokens.get(name, 1)).to(given.weight.device)
            for name, parts in zip(names, zip(*shares, strict=True), strict=True)
        }
    )
