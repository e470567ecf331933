"""`trace_many` in several processes: the same files as one, and killed again and again."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb")

from circuits import averaging
from circuits.average import AverageCircuit
from tests.circuits.test_averaging import FILES, averaged, rows
from tests.ranks import ended, started

COUNT, KILLS = 14, 12


def many() -> list[dict[str, Any]]:
    source = random.Random(3)
    return rows([[source.randrange(1, 10) for _ in range(4)] for _ in range(2 * COUNT - 1)])


def share_of_a_job(folder: Path, pace: float) -> None:
    write, rank, count = averaging._Job._write, os.environ["RANK"], os.environ["WORLD_SIZE"]

    def paced(job: Any, place: Path, *given: Any) -> None:
        time.sleep(pace)
        write(job, place, *given)
        (folder / "made").mkdir(exist_ok=True)
        (folder / "made" / f"{place.name} by {rank} of {count}").touch()

    averaging._Job._write = paced
    mean = averaged(many(), folder=folder)
    assert len(mean.prompts) == len(many())


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_two_processes_share_the_prompts_and_write_the_same_files(tmp_path: Path) -> None:
    alone = averaged(many(), folder=tmp_path / "alone")
    assert ended(started(2, share_of_a_job, tmp_path / "two", 0.0)) == {0}
    assert content(tmp_path / "two") == content(tmp_path / "alone")
    made = sorted(path.name for path in (tmp_path / "two" / "made").iterdir())
    expected = [f"block-{number:06} by {number % 2} of 2" for number in range(COUNT)]
    assert made == expected, "each block once, by the one whose it is"
    together = AverageCircuit.read(tmp_path / "two")
    assert together.nodes.equals(alone.nodes) and together.edges.equals(alone.edges)


def test_killed_again_and_again_they_write_the_same_files(tmp_path: Path) -> None:
    """kill -9 of one rank or both at seeded moments; what was finished is kept."""
    averaged(many(), folder=tmp_path / "alone")
    moments, hits, there, rounds = random.Random(2), 0, set(), 0
    folder, codes = tmp_path / "killed", {1}
    while codes != {0}:
        ranks = started(
            moments.choice([1, 2, 2]), share_of_a_job, folder, 0.1 if hits < KILLS else 0.0
        )
        if hits < KILLS:
            time.sleep(moments.uniform(0.2, 1.2))
            alive = [rank for rank in ranks if rank.is_alive()]
            victims = moments.sample(alive, moments.randint(1, len(alive))) if alive else []
            for rank in [*victims, *alive]:  # torchrun ends the others
                rank.kill()
        codes, rounds = ended(ranks), rounds + 1
        assert codes <= {0, -signal.SIGKILL} and rounds < 60
        hits += -signal.SIGKILL in codes
        before, there = there, set((folder / "blocks").glob("block-*"))
        assert before <= there
        if codes == {0} and hits < KILLS:
            codes = {1}
            for path in sorted(there)[::2]:  # gaps, as another number of ranks leaves
                path.rename(tmp_path / f"{rounds} {path.name}")
            there = set((folder / "blocks").glob("block-*"))
    assert hits >= KILLS
    assert content(folder) == content(tmp_path / "alone")
    assert not list((folder / "blocks").glob(".*"))


def test_a_gap_of_another_size_is_refused(tmp_path: Path) -> None:
    averaged(many(), folder=tmp_path)
    gap = tmp_path / "blocks" / "block-000001"
    gap.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="prompt 5 in it is another one"):
        averaged(many(), folder=tmp_path, block=3)
    assert not gap.exists() or len(list(gap.iterdir())) == 3


def test_ranks_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "joined", lambda: JOINED)
    with pytest.raises(ValueError, match=r"trace_many\(folder=None\): 2 processes"):
        averaged(many())


class _Joined:
    """Two processes, of which this is one."""

    def __enter__(self) -> Any:
        return averaging.Ranks(0, 2)

    def __exit__(self, *_: object) -> None:
        return None


JOINED = _Joined()
