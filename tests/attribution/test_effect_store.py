"""Direct effects on disk: the same bits however often a job is killed, budgets, refusals."""

import dataclasses
import gc
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from attribution import effect_request, effect_store
from attribution.direct_effects import DirectEffects, direct_effects, plan_effects
from attribution.effect_store import MANIFEST, EffectStore, StoredBlocks
from replacement.run import Run
from tests.ranks import ended, started
from tests.samples import Case, random_run

CASES = [
    Case("two layers", "relu", skip=True),
    Case("full context", "topk gated", attention="lorsa rotary", seed=1),
    Case("deep", "neurons"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
RUN = random_run(CASES[0])
MANY_BATCHES = random_run(CASES[1])
KILLS = 8
SHARED_KILLS = 24


@pytest.fixture(autouse=True)
def as_users_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of the tests, which refuse in words of their own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def assert_same_bits(one: DirectEffects, other: DirectEffects) -> None:
    assert len(one.blocks) == len(other.blocks) > 0 and one.ways == other.ways
    for left, right in zip(one.blocks, other.blocks, strict=True):
        for name in ("row", "column", "values", "split"):
            first, second = getattr(left, name), getattr(right, name)
            assert (first is None) == (second is None), name
            assert first is None or (first.dtype, True) == (
                second.dtype,
                torch.equal(first, second),
            )


# ---------------------------------------------------------------- killed, resumed


@each_case
@pytest.mark.parametrize("via", [None, "head"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_on_disk_they_are_what_they_are_in_memory(
    case: Case, via: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    run = random_run(case, dtype)
    in_memory = direct_effects(run, via=via)
    stored = direct_effects(run, via=via, resume=tmp_path / "effects")
    assert isinstance(stored.blocks, StoredBlocks) and isinstance(in_memory.blocks, list)
    assert_same_bits(in_memory, stored)
    assert repr(stored) == repr(in_memory)
    for way in in_memory.ways or [None]:
        assert abs(in_memory.matrix(way) - stored.matrix(way)).max() == 0


def test_broken_off_after_any_batch_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every batch in turn: no finished batch is computed again, and the bits are the same."""
    whole = direct_effects(MANY_BATCHES)
    count, write = plan_effects(MANY_BATCHES).batches, EffectStore.write
    assert count >= 8
    written: list[int] = []

    def dying(store: EffectStore, batch: int, blocks: Any) -> None:
        if len(written) > batch - 1 and batch and batch not in died:
            died.add(batch)
            raise KeyboardInterrupt
        written.append(batch)
        write(store, batch, blocks)

    died: set[int] = set()
    monkeypatch.setattr(EffectStore, "write", dying)
    for _ in range(count - 1):
        with pytest.raises(KeyboardInterrupt):
            direct_effects(MANY_BATCHES, resume=tmp_path)
    assert_same_bits(direct_effects(MANY_BATCHES, resume=tmp_path), whole)
    assert written == list(range(count)) and len(died) == count - 1
    monkeypatch.setattr(effect_request.EffectRows, "blocks", None)
    assert_same_bits(direct_effects(MANY_BATCHES, resume=tmp_path), whole)


def at_a_pace(seconds: float) -> None:
    """Wait before every batch is written, in this process."""
    write = EffectStore.write

    def paced(store: EffectStore, batch: int, blocks: Any) -> None:
        time.sleep(seconds)
        write(store, batch, blocks)

    EffectStore.write = paced


def job_alone(folder: Path) -> None:
    """Direct effects at a pace that a kill can hit."""
    at_a_pace(0.1)
    direct_effects(MANY_BATCHES, resume=folder)


def test_killed_it_goes_on(tmp_path: Path) -> None:
    """kill -9 at seeded moments of a process of its own, whose bits are those of this one."""
    moments, hits, there = random.Random(0), 0, set()
    job = None
    while job is None or job.exitcode != 0:
        (job,) = started(1, job_alone, tmp_path / "effects")
        job.join(moments.uniform(0.1, 0.6) if hits < KILLS else 60)
        job.kill()
        job.join()
        assert job.exitcode in (0, -signal.SIGKILL)
        hits += job.exitcode != 0
        before, there = there, set((tmp_path / "effects").glob("batch-*"))
        assert before <= there
    assert hits >= 4
    assert_same_bits(
        direct_effects(MANY_BATCHES, resume=tmp_path / "effects"), direct_effects(MANY_BATCHES)
    )
    assert not list((tmp_path / "effects").glob(".*.part"))


def share_of_a_job(folder: Path, pace: float) -> None:
    at_a_pace(pace)
    dist.init_process_group("gloo")
    effects = direct_effects(MANY_BATCHES, resume=folder)
    dist.destroy_process_group()
    assert len(effects.blocks) == len(direct_effects(MANY_BATCHES).blocks)


def test_ranks_share_the_rows_and_are_killed(tmp_path: Path) -> None:
    """Two processes fill one folder; one of them, or both, killed -9 until two dozen have hit."""
    moments, hits, rounds = random.Random(1), 0, 0
    folder = tmp_path / "effects"
    exits: list[Any] = []
    while not exits or any(exits):
        ranks = started(2, share_of_a_job, folder, 0.3 if hits < SHARED_KILLS else 0.0)
        if hits < SHARED_KILLS:
            time.sleep(moments.uniform(0.05, 0.5))
            both = moments.random() < 0.5
            for rank in ranks[: 2 if both else 1]:
                rank.kill()
            ranks[0].join()
            for rank in ranks[1:]:
                rank.kill()  # as torchrun ends the others
        ended(ranks)
        exits, rounds = [rank.exitcode for rank in ranks], rounds + 1
        hits += -signal.SIGKILL in exits
        alone = {1} if -signal.SIGKILL in exits else set()  # the other was gone, and it saw that
        assert set(exits) <= {0, -signal.SIGKILL} | alone and rounds < 60
    assert hits >= SHARED_KILLS
    assert_same_bits(direct_effects(MANY_BATCHES, resume=folder), direct_effects(MANY_BATCHES))
    assert not list(folder.glob(".*.part"))


def test_every_batch_is_one_rank_s(tmp_path: Path) -> None:
    store = EffectStore(tmp_path, {})
    owners = []
    for store.rank in range(3):
        store.n_ranks = 3
        owners.append({batch for batch in range(20) if store.is_mine(batch)})
    assert set.union(*owners) == set(range(20)) and sum(map(len, owners)) == 20


def test_a_damaged_batch_is_computed_again(tmp_path: Path) -> None:
    whole = direct_effects(MANY_BATCHES, resume=tmp_path)
    expected = [block.values.clone() for block in whole.blocks]
    file = tmp_path / "batch-000002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    again = direct_effects(MANY_BATCHES, resume=tmp_path)
    assert all(
        torch.equal(block.values, values)
        for block, values in zip(again.blocks, expected, strict=True)
    )


def test_blocks_are_read_when_looked_at(tmp_path: Path) -> None:
    stored = direct_effects(RUN, resume=tmp_path)
    before = stored.blocks[0].values.clone()
    path = tmp_path / "batch-000000.safetensors"
    tensors = load_file(path)
    tensors["values.0"] += 1
    path.unlink()
    save_file(tensors, path)
    assert torch.equal(stored.blocks[0].values, before + 1)
    assert len(stored.blocks[1:3]) == 2


# ---------------------------------------------------------------- the budget


@each_case
def test_what_exceeds_the_budget_stays_on_disk(case: Case) -> None:
    """The same bits; and the temporary folder goes when the effects do."""
    run = random_run(case)
    planned = plan_effects(run)
    budget = planned.working_bytes + planned.bytes // 2
    assert plan_effects(run, memory=budget).on_disk
    assert not plan_effects(run, memory=planned.working_bytes + planned.bytes).on_disk
    effects = direct_effects(run, memory=budget)
    assert isinstance(effects.blocks, StoredBlocks)
    folder = effects.blocks[0:1] and effects.blocks._places[0][0].parent
    assert isinstance(folder, Path) and folder.is_dir()
    assert_same_bits(effects, direct_effects(run))
    del effects
    gc.collect()
    assert not folder.exists()


@each_case
def test_a_small_budget_makes_small_batches(case: Case) -> None:
    """Down to the least that is named in the refusal of less."""
    run, planned = random_run(case), plan_effects(random_run(case))
    with pytest.raises(MemoryError, match=r"Give memory=(\d+) or more") as refused:
        direct_effects(run, memory=1000)
    named = re.search(r"memory=(\d+) or", str(refused.value))
    assert named is not None
    least = plan_effects(run, memory=int(named[1]))
    assert least.working_bytes <= int(named[1]) < planned.working_bytes
    assert least.batch_rows < planned.batch_rows and least.batches > planned.batches
    with pytest.raises(MemoryError):
        plan_effects(run, memory=int(named[1]) - 1)
    effects, whole = direct_effects(run, memory=int(named[1])), direct_effects(run)
    assert abs(effects.matrix() - whole.matrix()).max() <= 1e-12 * abs(whole.matrix()).max()


# ---------------------------------------------------------------- the plan


@each_case
@pytest.mark.parametrize("via", [None, "head"])
def test_the_plan_says_what_comes(case: Case, via: str | None) -> None:
    run = random_run(case)
    planned, effects = plan_effects(run, via=via), direct_effects(run, via=via)
    tables = 1 + len(effects.ways)
    count = sum(block.values.numel() for block in effects.blocks)
    assert (planned.rows, planned.effects) == (len(effects.targets), tables * count)
    assert planned.bytes == 8 * planned.effects
    assert planned.seconds is not None and 0 < planned.seconds < 1
    for shown in (f"{planned.effects:,}", f"{planned.rows:,} targets", "free on cpu", "at least"):
        assert shown in str(planned)


def test_twice_the_rows_take_twice_as_long() -> None:
    run = random_run(CASES[0])
    asked = effect_request.asked_of(run, [run.logit(1)], None, None)
    more = effect_request.asked_of(run, [run.logit(1), run.logit(2)], None, None)
    assert more.operations() == 2 * asked.operations()


def test_what_fits_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effect_request, "free_bytes", lambda _: 10_000)
    monkeypatch.setattr(effect_request, "disk_bytes", lambda _: 9_000)
    with pytest.raises(MemoryError, match=r"10\.0 kB are free\. .*the disk, by resume=FOLDER"):
        plan_effects(RUN)
    with pytest.raises(MemoryError, match=r"9\.0 kB are free on disk.*another disk"):
        direct_effects(RUN, resume=tmp_path / "effects")
    assert not (tmp_path / "effects").exists()


# ---------------------------------------------------------------- refusals


def other_weights(run: Run) -> Run:
    return dataclasses.replace(run, next_logits=run.next_logits + 1e-9)


MISMATCHES = {
    "run": (lambda folder: direct_effects(other_weights(RUN), resume=folder), "another run"),
    "targets": (lambda folder: direct_effects(RUN, RUN.logit(1), resume=folder), "other targets"),
    "sources": (
        lambda folder: direct_effects(RUN, None, [None, [0], None, None], resume=folder),
        "other sources",
    ),
    "via": (lambda folder: direct_effects(RUN, via="head", resume=folder), "another via"),
    "memory": (
        lambda folder: direct_effects(
            RUN, resume=folder, memory=plan_effects(RUN).working_bytes - 1
        ),
        "batches of another size",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_blocks_of_something_else_are_not_taken(name: str, tmp_path: Path) -> None:
    """What was there stays; of what differs only that is named."""
    direct_effects(RUN, resume=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    call, says = MISMATCHES[name]
    with pytest.raises(ValueError, match=says) as refused:
        call(tmp_path)
    message = str(refused.value)
    others = [words for entry, words in effect_store.SAYS.items() if words in message]
    assert others == [effect_store.SAYS["batch_rows" if name == "memory" else name]], message
    assert "give another folder" in message and "\n" not in message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_no_such_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \(there is no effects.json"):
        direct_effects(RUN, resume=tmp_path)
    with pytest.raises(ValueError, match="is a file; give a folder"):
        direct_effects(RUN, resume=tmp_path / "notes.txt")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="another format"):
        direct_effects(RUN, resume=tmp_path)


@pytest.mark.parametrize("memory", ["much", "4 GiB", 0, -3, float("inf"), True, "0 GB", [4]])
def test_a_budget_is_a_number_of_bytes(memory: Any) -> None:
    with pytest.raises(ValueError, match='such as "4 GB"') as refused:
        direct_effects(RUN, memory=memory)
    assert f"memory={memory!r}" in str(refused.value)
