"""The IOI circuit is found and confirmed on few pairs; and a circuit of chance is not."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from benchmarks import ioi_contrast
from benchmarks.baselines import contrast, recorded
from benchmarks.edges import EdgeModel
from benchmarks.ioi_contrast import PLACES, asked, averaged, confirmed, places, told
from benchmarks.tasks.counterfactuals import ioi_swapped
from benchmarks.truth.measure import RECOMMENDED
from circuits import load

ROOT = Path(__file__).parent.parent.parent
STORED: dict[str, Any] = json.loads(
    (ROOT / "benchmarks" / "results" / "ioi-contrast.json").read_text()
)
NAMES, SUPPRESS = ("a1.h0", "a1.h1", "a1.h2", "a1.h3"), ("a3.h2", "a3.h3")


@cache
def bundled() -> EdgeModel:
    return EdgeModel(load("four-tasks", mlp="neurons", attention="heads"))


def test_places_are_summed_to_the_edges_of_the_contrast() -> None:
    chosen, pairs = asked(bundled(), ioi_swapped, 3)
    found = averaged(bundled(), chosen, pairs)
    flows = contrast(bundled(), pairs, recorded(bundled(), pairs), RECOMMENDED).mean(0)
    torch.testing.assert_close(found.flows.sum((1, 2)) * found.difference, flows)
    into_output = bundled().graph.edges_of(2 * bundled().graph.n_layers)
    assert float(found.flows[into_output].sum()) == pytest.approx(1, abs=1e-4)
    layers, heads = found.looks.shape[:2]
    end = found.looks[:, :, PLACES.index("END")].sum(-1)
    torch.testing.assert_close(end, torch.ones(layers, heads))


def test_names_exchanged_throughout() -> None:
    for one in asked(bundled(), ioi_swapped, 20)[0]:
        (io,), (subject,) = one.right, one.wrong
        roles = {name: one.roles[name][0] - 1 for name in ("IO", "S1", "S2")}
        assert [one.clean[roles[name]] for name in roles] == [io, subject, subject]
        assert [one.corrupt[roles[name]] for name in roles] == [subject, io, io]
        differing = [
            pos
            for pos, pair in enumerate(zip(one.clean, one.corrupt, strict=True), 1)
            if pair[0] != pair[1]
        ]
        assert tuple(differing) == one.roles["CHANGED"]


def test_the_circuit_comes_out_on_few_pairs() -> None:
    """The same heads in the same parts as in the stored results; cutting its edges undoes the
    answer, and leaves it where the edges are drawn at random."""
    chosen, pairs = asked(bundled(), ioi_swapped, 8)
    found = averaged(bundled(), chosen, pairs)
    parts = told(bundled(), found)
    movers, marks = parts["movers"], parts["marks"]
    for head in NAMES:
        assert movers[head]["v from IO"] > 0.05 > -0.05 > movers[head]["v from S1"]
        assert movers[head]["looks at IO"] + movers[head]["looks at S1"] > 0.6
    for head in SUPPRESS:
        assert movers[head]["v from S2"] > 0.3
        assert movers[head]["looks at S2"] > 0.9
    assert max(abs(row[via]) for row in movers.values() for via in "qk") < 0.02
    assert {"a0.h0", "a1.h1", "a1.h2"} <= marks.keys()
    cut = confirmed(bundled(), found, pairs)
    assert abs(cut["named"]["left without"]) < 0.1 < 0.4 < cut["random"]["left without"]
    assert cut["named"]["left alone"] > 0.4 > 0.1 > abs(cut["random"]["left alone"])
    assert cut["named"]["mean effect"] > 10 * cut["others"]["mean effect"]


def test_another_place_marks_nothing() -> None:
    """Negative control: with the position before it for S2 nothing is read there."""
    chosen, pairs = asked(bundled(), ioi_swapped, 3)
    moved = [replace(one, roles={**one.roles, "S2": (one.roles["S2"][0] - 1,)}) for one in chosen]
    parts = told(bundled(), averaged(bundled(), moved, pairs))
    assert not parts["marks"]
    assert all(abs(row["v from S2"]) < 0.01 for row in parts["movers"].values())


def test_flows_of_other_edges_are_not_confirmed() -> None:
    """Negative control: the same shares dealt out to other edges name nothing that matters."""
    chosen, pairs = asked(bundled(), ioi_swapped, 2)
    found = averaged(bundled(), chosen, pairs)
    order = torch.randperm(len(found.sizes), generator=torch.Generator().manual_seed(1))
    cut = confirmed(bundled(), found._replace(sizes=found.sizes[order]), pairs)
    assert cut["named"]["among as many strongest"] < 0.3
    assert cut["named"]["left without"] > 0.3
    assert abs(cut["named"]["left alone"]) < 0.1


def test_places_of_one_prompt() -> None:
    (one,), _ = asked(bundled(), ioi_swapped, 1)
    at = places(one, len(one.clean) + 1)
    assert at.sum(0).tolist() == [1, 1, 1, 1, len(one.clean) - 3]
    assert at[one.roles["S2"][0]].tolist() == [0, 0, 1, 0, 0]


def test_the_command_writes_what_it_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ioi_contrast, "measured", lambda _model, count: {"pairs": count})
    app, kept = Typer(), tmp_path / "ioi.json"
    app.command()(ioi_contrast.main)
    done = CliRunner().invoke(app, ["--pairs", "7", "-o", str(kept)])
    assert done.exit_code == 0, done.output
    command = "python -m benchmarks.ioi_contrast --pairs 7 -o ioi.json"
    assert json.loads(kept.read_text()) == {"command": command, "pairs": 7}


def test_stored_results_say_what_the_document_says() -> None:
    """docs/contrast.md: heads, shares and figures of the section on IOI."""
    assert STORED["pairs"] >= 100
    text = (
        (ROOT / "docs" / "contrast.md").read_text().split("## The IOI circuit of `four-tasks`")[1]
    )
    for head in (*NAMES, *SUPPRESS):
        row, cut = STORED["movers"][head], STORED["S2 alone changed"][head]
        values = [row[f"v from {place}"] for place in ("IO", "S1", "S2")]
        looks = [row[f"looks at {place}"] for place in ("IO", "S1", "S2")]
        cells = [f"{value + 0:.2f}".replace("-0.00", "0.00") for value in (*values, *looks)]
        assert f"| `{head}` | {' | '.join(cells)} |" in text
        assert max(abs(cut[name]) for name in ("q", "k", "cut")) < 0.01
    for name in ("named", "random"):
        figures = STORED[name]
        assert f"{100 * figures['left without']:.1f} %" in text
        assert f"{100 * figures['left alone']:.1f} %" in text
