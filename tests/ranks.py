"""Processes as torchrun starts them, without the seconds that starting Python takes."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Collection
from typing import Any

import torch

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started(count: int, job: Callable[..., None], *given: Any) -> list[Any]:
    """Return so many processes, started, that call `job(*given)` with torchrun's environment."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([job.__module__])
    port = _free_port()
    made = [(rank, rank, count, "127.0.0.1", port) for rank in range(count)]
    ranks = [server.Process(target=_one, args=(values, job, given)) for values in made]
    for rank in ranks:
        rank.start()
    return ranks


def ended(ranks: Collection[Any], seconds: int | float = 120) -> set[int]:
    """Return the exit codes of processes, waited for."""
    for rank in ranks:
        rank.join(seconds)
    return {rank.exitcode for rank in ranks}


def _one(values: tuple[Any, ...], job: Callable[..., None], given: tuple[Any, ...]) -> None:
    os.environ.update({name: str(one) for name, one in zip(NAMES, values, strict=True)})
    torch.set_num_threads(1)
    job(*given)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
