"""The induction circuit comes out whole on random sequences; what does not count as found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.induction_circuit import Found, find, random_sequences, shares, strongest_reader
from circuits import load, trace

ROOT = Path(__file__).parent.parent.parent
BAR = 0.9


def test_it_is_found_in_random_sequences(tmp_path: Path) -> None:
    """40 of them, with heads and with Lorsa: mover, previous-token head on the key side, current
    token on the query side. As users run it: without the type checks of the tests."""
    written = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.induction_circuit", "--count", "40"]
    done = subprocess.run(
        [*command, "-o", str(written)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())["shares"]
    assert found["heads"]["whole"] >= BAR
    assert found["heads"]["predicted"] >= BAR
    stored = json.loads((ROOT / "benchmarks" / "results" / "induction-circuit.json").read_text())
    assert stored["sequences"] >= 100
    assert found["lorsa"]["whole"] == pytest.approx(stored["shares"]["lorsa"]["whole"], abs=0.1)


def test_sequences_end_in_the_second_copy() -> None:
    for one in random_sequences(50):
        words = one.prompt.split(" ")
        assert words[-1] == words[one.earlier - 1], "the last word stood there before (BOS is 0)"
        assert f" {words[one.earlier]}" == one.follows
        assert words.count(words[-1]) == 2


def test_a_sequence_without_a_first_copy_has_no_circuit() -> None:
    """Negative control: the same tests on a text in which nothing recurs find nothing."""
    model = load("four-tasks", attention="heads")
    found = []
    for one in random_sequences(5, seed=3):
        words = one.prompt.split(" ")
        words[one.earlier - 1] = "apple" if words[one.earlier - 1] != "apple" else "lamp"
        changed = type(one)(" ".join(words), one.follows, one.earlier)
        found.append(find(model, changed))
    assert shares(found)["whole"] == 0


def test_strongest_reader_is_of_attention_and_adds() -> None:
    run = load("four-tasks", attention="heads").run("apple lamp tower apple lamp")
    circuit = trace(run.logit(" tower").centered(), progress=False)
    node = strongest_reader(circuit, 5)
    assert node is not None
    row = circuit.nodes.loc[node]
    assert row["kind"] == "head"
    assert row["pos"] == 5
    assert row["attribution"] > 0
    assert strongest_reader(circuit, 99) is None


def test_whole_needs_all_three() -> None:
    whole = Found(predicted=True, moved=True, key_side=True, query_side=True)
    part = Found(predicted=True, moved=True, key_side=False, query_side=True)
    assert whole.whole
    assert not part.whole
    assert shares([whole, part])["whole"] == 0.5
