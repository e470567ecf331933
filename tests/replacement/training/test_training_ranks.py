"""Processes that share the prompts of every step end in the layers that one process trains."""

import dataclasses
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from replacement.training import (
    LorsaSettings,
    TokenBatch,
    TopKSettings,
    train_lorsa,
    train_transcoders,
)
from replacement.training.ranks import own_share
from tests.ranks import ended, started
from tests.replacement.training.models_made import SMALL, batches, tiny_model

SETTINGS = {
    "transcoders": dataclasses.replace(SMALL, steps=25, checkpoint_every=4),
    "lorsa": LorsaSettings(
        **{**dataclasses.asdict(SMALL), "steps": 25, "checkpoint_every": 4, "n_features": 32}
    ),
}
TRAIN: dict[str, Any] = {"transcoders": train_transcoders, "lorsa": train_lorsa}


def of_double(step: int) -> list[TokenBatch]:
    return [TokenBatch(one.ids, one.weight.double()) for one in batches(step)]


def halves(step: int) -> list[TokenBatch]:
    """The first half of a step's prompts: what one of two processes has alone."""
    first = of_double(step)
    return [first[0], TokenBatch(first[1].ids[:4], first[1].weight[:4])]


def trained(kind: str, folder: Path, data: Any = of_double) -> dict[str, Tensor]:
    settings: TopKSettings = SETTINGS[kind]
    layers = TRAIN[kind](tiny_model().double(), data, settings, folder)
    names = ("read", "write", "read_bias", "write_bias")
    found = {
        f"{number}.{name}": getattr(layer, name).detach().contiguous()
        for number, layer in enumerate(layers)
        for name in names
    }
    if kind == "lorsa":
        found |= {f"{n}.query": one.query_key.query.detach() for n, one in enumerate(layers)}
    return found


def share_of_a_job(kind: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    folder.mkdir(exist_ok=True)
    save_file(trained(kind, folder), folder / f"rank-{dist.get_rank()}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def off(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("kind", TRAIN)
def test_three_processes_train_the_layers_of_one(kind: str, tmp_path: Path) -> None:
    """Restarts of dead features, at tokens that any process saw, included."""
    alone = trained(kind, tmp_path / "alone")
    assert ended(started(3, share_of_a_job, kind, tmp_path / "three")) == {0}
    for rank in range(3):
        assert off(load_file(tmp_path / "three" / f"rank-{rank}.safetensors"), alone) < 1e-9
    assert off(trained(kind, tmp_path / "half", halves), alone) > 1e-3, "data do matter"


def test_killed_it_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    began = time.monotonic()
    assert ended(started(2, share_of_a_job, "transcoders", tmp_path / "whole")) == {0}
    usual, moments, hits = time.monotonic() - began, random.Random(2), 0
    while hits < 2:
        ranks = started(2, share_of_a_job, "transcoders", tmp_path / "killed")
        time.sleep(moments.uniform(0.3, 0.9) * usual)
        victim = moments.choice(ranks)
        victim.kill()
        for rank in ranks:
            rank.kill()  # as torchrun ends the others
        ended(ranks)
        hits += victim.exitcode == -signal.SIGKILL
    assert ended(started(2, share_of_a_job, "transcoders", tmp_path / "killed")) == {0}
    whole, again = (
        load_file(tmp_path / name / "rank-1.safetensors") for name in ("whole", "killed")
    )
    assert off(whole, again) == 0


def test_shares_are_all_prompts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    given, seen = batches(0), []
    for rank in range(3):
        monkeypatch.setattr("replacement.training.ranks.rank_and_count", lambda r=rank: (r, 3))
        seen += [row.tolist() for one in own_share(given) for row in one.ids]
    assert seen == [row.tolist() for one in given for row in one.ids]
    monkeypatch.setattr("replacement.training.ranks.rank_and_count", lambda: (0, 41))
    with pytest.raises(ValueError, match="40 prompts a step for 41 processes"):
        own_share(given)
