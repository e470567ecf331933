"""Which of the processes of `torchrun` this is, as it says in the environment."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

WAIT = timedelta(days=30)
"""How long a rank that is done waits for the others; a dead one ends the run by torchrun."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is, as torchrun says in the environment."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Which of the processes on this machine."""

    @classmethod
    def of_environment(cls) -> "Ranks":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return cls(
            *(int(os.environ.get(name, one)) for name, one in zip(names, "010", strict=True))
        )

    def device(self, asked: str | None) -> str | None:
        """Return the device to load on: ranks of one machine each take a GPU of their own."""
        if self.count == 1 or asked not in (None, "cuda") or not torch.cuda.is_available():
            return asked
        return f"cuda:{self.local % torch.cuda.device_count()}"

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def all_of(self, own: list[Any]) -> list[Any]:
        """Return what every rank has, rank by rank."""
        if self.count == 1:
            return own
        shares: list[Any] = [None] * self.count
        dist.all_gather_object(shares, own)
        return [one for share in shares for one in share]


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Give which process this is, joined with the others of torchrun, if there are any."""
    ranks = Ranks.of_environment()
    ours = ranks.count > 1 and not dist.is_initialized()
    if ours:
        dist.init_process_group(timeout=WAIT)
    try:
        yield ranks
    finally:
        if ours:
            dist.destroy_process_group()
