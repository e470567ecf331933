"""Many prompts: one or more processes, killed at any moment, give the same files; bad lines."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import jaxtyping
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from circuits import ReplacementModel, load, read, trace
from circuits import many as module
from circuits.cli import app
from circuits.many import INDEX, lines_of, trace_lines
from tests.circuits.folders import PROMPT, save_text_model, text_model, text_transcoders, tokenizer
from tests.ranks import ended, started

ROOT = Path(__file__).parent.parent.parent
KILLS = 24
WORDS = ("Mary", "John", "store", "gave", "drink", "went")
IDS = tokenizer()("Mary went to", add_special_tokens=False)["input_ids"]
ONE = {"prompt": PROMPT, "explain": " Mary", "minus": " John"}


@pytest.fixture(autouse=True)
def as_users_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of the tests, which refuse in words of their own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def written(path: Path, *lines: Any) -> Path:
    """A file of lines, objects as JSON and text as it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def prompts(count: int) -> list[dict[str, Any]]:
    """Seeded word salad of the tiny model's vocabulary, half of it explained against the mean."""
    chosen = random.Random(0)
    found: list[dict[str, Any]] = []
    for number in range(count):
        words = chosen.choices(WORDS, k=chosen.randint(3, 14))
        line: dict[str, Any] = {"prompt": " ".join(words), "explain": f" {chosen.choice(WORDS)}"}
        found.append(line if number % 2 else {**line, "minus": " to"})
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


# ---------------------------------------------------------------- one and two processes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_processes_give_the_files_of_one(dtype: str, tmp_path: Path) -> None:
    """A dozen prompts of the bundled model, at the shell; each circuit is that of `trace`."""
    stored = resources.files("replacement") / "bundled" / "four-tasks" / "prompts.json"
    examples = json.loads(stored.read_text(encoding="utf-8"))
    lines = [{name: one[name] for name in ONE} for one in examples]
    assert len(lines) == 12
    words = ["trace", "four-tasks", str(written(tmp_path / "a.jsonl", *lines)), "--dtype", dtype]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "circuits", *words, "-o", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote 12 circuits") == 1, "only one rank speaks"
    model = load("four-tasks", dtype=dtype)
    trace_lines(model, lines_of(tmp_path / "a.jsonl"), tmp_path / "one", progress=False)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    run = model.run(lines[3]["prompt"])
    alone = trace(run.logit(lines[3]["explain"]) - run.logit(lines[3]["minus"]))
    alone.save(tmp_path / "alone.circuit")
    alone_bytes = (tmp_path / "alone.circuit").read_bytes()
    assert alone_bytes == (tmp_path / "two" / "line-000004.circuit").read_bytes()


# ---------------------------------------------------------------- killed


def share_of_a_job(model: Path, file: Path, folder: Path) -> None:
    trace_lines(load(str(model)), lines_of(file), folder, progress=False)


def test_killed_again_and_again_it_gives_the_same_files(tmp_path: Path) -> None:
    """kill -9 of one rank or of both at seeded moments, until two dozen have hit."""
    save_text_model(tmp_path / "model")
    file = written(tmp_path / "a.jsonl", *prompts(40))

    def start(count: int, folder: Path) -> list[Any]:
        return started(count, share_of_a_job, tmp_path / "model", file, folder)

    assert ended(start(1, tmp_path / "whole")) == {0}
    began = time.monotonic()
    assert ended(start(2, tmp_path / "again")) == {0}
    usual = time.monotonic() - began
    whole = content(tmp_path / "whole")
    assert len(whole) == 41 and content(tmp_path / "again") == whole
    moments, hits, broken_off = random.Random(1), 0, 0
    folder, there = tmp_path / "killed", {}
    while hits < KILLS:
        ranks = start(moments.choice([1, 2, 2]), folder)
        time.sleep(moments.uniform(0.3, 1.0) * usual)
        alive = [rank for rank in ranks if rank.is_alive()]
        victims = moments.sample(alive, moments.randint(1, len(alive))) if alive else []
        for rank in [*victims, *(alive if victims else [])]:  # torchrun ends the others
            rank.kill()
        codes = ended(ranks)
        assert codes <= {0, -signal.SIGKILL}
        hits += sum(rank.exitcode == -signal.SIGKILL for rank in victims)
        before, there = there, inodes(folder)
        assert before.items() <= there.items(), "what was finished is kept"
        if codes == {0}:
            assert content(folder) == whole
            shutil.rmtree(folder)
            there = {}
        broken_off += 0 < len(there) < len(whole) - 1
    assert broken_off >= 5, "kills hit jobs at work"
    assert ended(start(2, folder)) == {0}
    assert content(folder) == whole


def inodes(folder: Path) -> dict[str, int]:
    """Of every circuit: a file written anew is another one."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.circuit")}


# ---------------------------------------------------------------- what is kept, what is not


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ReplacementModel:
    return load(str(save_text_model(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture
def traced(model: ReplacementModel, tmp_path: Path) -> Path:
    """The folder of three lines, traced."""
    trace_lines(model, three(tmp_path), tmp_path / "out", progress=False)
    return tmp_path / "out"


def three(folder: Path) -> Any:
    return lines_of(written(folder / "a.jsonl", *prompts(3)))


def test_finished_lines_are_not_traced_again(
    model: ReplacementModel, traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(traced)
    (traced / "line-000002.circuit").write_bytes(before["line-000002.circuit"][:-100])
    (traced / ".0123.part").write_bytes(b"half")
    (traced / INDEX).unlink()
    done: list[int] = []
    monkeypatch.setattr(
        module,
        "trace",
        lambda target, *rest, **named: done.append(1) or trace(target, *rest, **named),
    )
    result = trace_lines(model, three(tmp_path), traced, progress=False)
    assert len(done) == 1 and result.kept == 2 and "2 of them were there" in str(result)
    assert content(traced) == before


CHANGES = {
    "threshold": ({"threshold": 0.02}, None, 3),
    "bound": ({"max_nodes": 4}, None, 3),
    "edges": ({"edges": "direct"}, None, 3),
    "a prompt": ({}, {"prompt": "Mary went", "explain": " to"}, 1),
    "a token": ({}, {**prompts(3)[1], "explain": " to"}, 1),
    "a difference": ({}, {**prompts(3)[1], "minus": " store"}, 1),
    "a counterfactual": ({}, {**prompts(3)[1], "against": prompts(3)[1]["prompt"]}, 1),
    "nothing": ({}, None, 0),
}


def test_a_line_against_another_prompt_is_a_contrast_and_kept(
    model: ReplacementModel, tmp_path: Path
) -> None:
    one, other, _ = prompts(3)
    line = {**one, "against": model.run(other["prompt"]).token_ids.tolist()}
    line["against"] = (line["against"] * 9)[: len(model.run(one["prompt"]).tokens)]
    asked = lines_of(written(tmp_path / "c.jsonl", line))
    for kept in (0, 1):
        result = trace_lines(model, asked, tmp_path / "of", progress=False)
        assert result.kept == kept and not result.problems
    circuit = read(tmp_path / "of" / "line-000001.circuit")
    assert circuit.meta["against"]["token_ids"] == line["against"]
    changed = {**line, "against": line["against"][::-1]}
    again = lines_of(written(tmp_path / "d.jsonl", changed))
    assert trace_lines(model, again, tmp_path / "of", progress=False).kept == 0


def test_lines_taken_together_are_those_taken_alone(
    model: ReplacementModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to rounding; a line that fails and a contrast among them; one made anew as it was."""
    lines: list[Any] = prompts(9)
    for first, same in ((0, 1), (0, 2), (7, 6)):
        lines[same]["prompt"] = " ".join(lines[first]["prompt"].split()[::-1])
    lines[3] = {"prompt": "Mary", "explain": " Mary Mary"}
    lines[4] = "{"
    lines[5] |= {"against": lines[5]["prompt"].replace("Mary", "John").replace("went", "gave")}
    asked = lines_of(written(tmp_path / "t.jsonl", *lines))
    lengths: list[int] = []
    record = model.tracer.record
    monkeypatch.setattr(
        model.tracer, "record", lambda ids, *rest: lengths.append(len(ids)) or record(ids, *rest)
    )
    alone = trace_lines(model, asked, tmp_path / "alone", progress=False)
    assert set(lengths) == {1}
    found = trace_lines(model, asked, tmp_path / "four", together=4, progress=False)
    assert max(lengths) > 1 and found.problems == alone.problems and len(found.problems) == 2
    for one, other in zip(alone.rows, found.rows, strict=True):
        assert one.keys() == other.keys()
        for name in {*one} - {"closure", "conservation"}:
            close = isinstance(one[name], float)
            wanted = pytest.approx(other[name], rel=1e-4, abs=1e-5) if close else other[name]
            assert one[name] == wanted, name
    before = content(tmp_path / "four")
    (tmp_path / "four" / "line-000002.circuit").unlink()
    again = trace_lines(model, asked, tmp_path / "four", together=4, progress=False)
    assert again.kept == 6 and content(tmp_path / "four") == before
    with pytest.raises(ValueError, match=r"together=0: how many lines"):
        trace_lines(model, asked, tmp_path / "four", together=0)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_what_was_asked_is_made_anew(
    change: str, model: ReplacementModel, traced: Path, tmp_path: Path
) -> None:
    options, line, anew = CHANGES[change]
    lines = prompts(3)
    if line is not None:
        lines[1] = line
    asked = lines_of(written(tmp_path / "b.jsonl", *lines))
    result = trace_lines(model, asked, traced, progress=False, **options)
    assert result.kept == 3 - anew and not result.problems
    trace_lines(model, asked, tmp_path / "fresh", progress=False, **options)
    assert content(traced) == content(tmp_path / "fresh")


def test_circuits_of_other_weights_are_not_kept(
    model: ReplacementModel, traced: Path, tmp_path: Path
) -> None:
    """The name and the folder are the same, the weights were trained on."""
    other = text_model()
    names: Any = {"name": model.name, "read_as": model.read_as}
    for factor, kept in ((1.0, 3), (1.1, 0)):
        with torch.no_grad():
            other.transformer.h[0].attn.c_attn.weight *= factor
        changed = ReplacementModel(other, tokenizer(), text_transcoders(), **names)
        assert trace_lines(changed, three(tmp_path), traced, progress=False).kept == kept


# ---------------------------------------------------------------- the table, bad lines


def test_the_index_is_one_table_of_all(traced: Path) -> None:
    table = pd.read_json(traced / INDEX, lines=True)
    assert table["line"].tolist() == [1, 2, 3]
    for row in table.itertuples():
        circuit = read(traced / str(row.file))
        assert row.value == pytest.approx(circuit.value) and row.nodes == len(circuit.nodes)
        total = row.token + row.position + row.error + row.bias + row.pruned
        assert total == pytest.approx(circuit.value, rel=1e-4)


BAD = {
    "no JSON": ("Mary went", "not JSON"),
    "a list": ("[1]", "list: [1]"),
    "no prompt": ({"explain": " to"}, "no 'prompt' in it (it has: explain)"),
    "nothing explained": ({"prompt": "Mary went", "explain": None}, "no 'explain' in it"),
    "a misspelt key": ({**ONE, "mimus": " John"}, "an unknown 'mimus' in it"),
    "an unknown word": ({"prompt": "Zebediah went", "explain": " to"}, "'Zebediah'"),
    "an unknown token": ({"prompt": "Mary went", "explain": " Zebediah"}, "' Zebediah'"),
    "no token": ({"prompt": "Mary went", "explain": 1.5}, "a token is text or an integer id"),
    "too long": ({"prompt": "Mary " * 99, "explain": " to"}, "context is 24"),
    "a number": ({"prompt": 3, "explain": " to"}, "3"),
}


def test_bad_lines_do_not_lose_the_others(
    model: ReplacementModel, traced: Path, tmp_path: Path
) -> None:
    """At the shell: exit code 1, every bad line named with its reason, the good ones traced."""
    bad = [line for line, _ in BAD.values()]
    file = written(tmp_path / "b.jsonl", ONE, *bad, "", {"prompt": IDS, "explain": IDS[-1]})
    result = command("trace", model.name, str(file), "-o", str(traced), "--threshold", "0.01")
    assert result.exit_code == 1, result.output
    assert "wrote 2 circuits" in result.stdout
    told = [line for line in result.stderr.splitlines() if line.startswith("circuits: ")]
    assert len(told) == len(BAD)
    for number, (line, (_, says)) in enumerate(zip(told, BAD.values(), strict=True), 2):
        assert line.startswith(f"circuits: line {number}: ") and says in line, line
        assert len(line) < 900
    names = sorted(path.name for path in traced.iterdir())
    assert names == [INDEX, "line-000001.circuit", f"line-{len(BAD) + 3:06}.circuit"]
    rows = pd.read_json(traced / INDEX, lines=True)
    assert rows["problem"].notna().sum() == len(BAD) and rows["line"].is_monotonic_increasing


def test_a_sum_that_does_not_close_is_told(
    model: ReplacementModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attribution.sweep.Leaves.total", lambda _: 1e6)
    result = trace_lines(model, three(tmp_path), tmp_path / "out", progress=False)
    assert len(result.problems) == 3 and "closure" in result.problems[0]


def test_ranks_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = [module.Ranks(rank=number, count=4, local=number) for number in range(4)]
    assert [one.device(None) for one in ranks] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert ranks[1].device("cpu") == "cpu" and ranks[1].device("cuda:0") == "cuda:0"
    assert module.Ranks().device(None) is None
