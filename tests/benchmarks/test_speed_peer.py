"""The comparison with circuit-tracer: same nodes, and differences where there are some."""

import json
import os
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from benchmarks.speed import peer
from benchmarks.speed.cases import Shape, random_ids, random_model
from benchmarks.speed.clock import clocked_with_memory
from benchmarks.speed.direct import relu_transcoders
from replacement.model import ReplacementModel

TINY = Shape(
    tokens=6, layers=3, width=32, heads=2, vocabulary=50, positions=8, features=128, active=12
)


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel(random_model(TINY), None, relu_transcoders(TINY))


def as_theirs(model: ReplacementModel) -> tuple[peer.Ours, dict[str, torch.Tensor]]:
    """What they would answer if they had our numbers: no features or errors at position 0."""
    ids, n_pos, n_layers = random_ids(TINY), TINY.tokens, TINY.layers
    features = []
    for number, layer in enumerate(model.run(ids).layers):
        active = layer.mlp.active
        here = torch.stack([torch.full_like(active.pos, number), active.pos, active.index], dim=1)
        features.append(here[active.pos > 0])
    theirs = {"features": torch.cat(features)[::2], "logits": torch.tensor([3, 7])}
    ours = peer.turn(model, ids, theirs)
    sources = ours.effects.sources
    keys = {
        (kind, layer, pos, index): number
        for number, (kind, layer, pos, index) in enumerate(
            sources[["kind", "layer", "pos", "index"]].itertuples(index=False)
        )
        if kind != "bias"
    }
    columns = [
        keys["feature", layer, pos, index] for layer, pos, index in theirs["features"].tolist()
    ]
    columns += [keys["error", layer, pos, -1] for layer in range(n_layers) for pos in range(n_pos)]
    tokens = sources.index[sources["kind"].eq("token")]
    rows = torch.from_numpy(ours.effects.matrix()[:, [*columns, *tokens]].toarray())
    first_error = len(theirs["features"])
    rows[:, first_error : first_error + n_layers * n_pos : n_pos] = 0
    return ours, {**theirs, "rows": rows}


def test_equal_rows_have_no_difference_and_others_do(model: ReplacementModel) -> None:
    ours, theirs = as_theirs(model)
    assert ours.effects.matrix().shape[0] == len(theirs["features"]) + 2
    assert set(peer.differences(ours, ours.effects.matrix(), theirs).values()) == {0.0}
    n_features, n_errors = len(theirs["features"]), TINY.layers * TINY.tokens
    for column in (0, n_features + 1, n_features + n_errors + 1):
        changed = theirs["rows"].clone()
        row = int(changed[:, column].abs().argmax())
        changed[row, column] *= 1.5
        assert (
            peer.differences(ours, ours.effects.matrix(), {**theirs, "rows": changed})[
                "largest difference"
            ]
            > 1e-3
        )
    shifted = {**theirs, "rows": theirs["rows"].roll(1, dims=0)}
    assert peer.differences(ours, ours.effects.matrix(), shifted)["difference of norms"] > 0.1


def test_a_feature_that_only_they_have_is_counted_and_left_out(model: ReplacementModel) -> None:
    _, theirs = as_theirs(model)
    run = model.run(random_ids(TINY))
    active = run.layers[0].mlp.active
    off = next(index for index in range(128) if index not in active.index[active.pos == 2])
    features = torch.cat([torch.tensor([[0, 2, off]]), theirs["features"]])
    _, common = peer.nodes_of(run, features)
    assert common.tolist() == [False] + [True] * len(theirs["features"])
    rows = torch.nn.functional.pad(theirs["rows"], (1, 0, 1, 0), value=9.0)
    ours = peer.turn(model, random_ids(TINY), {**theirs, "features": features})
    found = peer.differences(
        ours, ours.effects.matrix(), {**theirs, "features": features, "rows": rows}
    )
    assert set(found.values()) == {0.0}


def test_memory_at_its_peak_is_seen() -> None:
    result, wall, cpu, grown = clocked_with_memory(lambda: len(torch.ones(50_000_000)))
    assert result == 50_000_000
    assert wall > 0 and cpu > 0
    if grown is not None:
        assert 190 < grown < 400
        assert (clocked_with_memory(lambda: None)[3] or 0) < 50


def test_runs_are_added_to_a_file(tmp_path: Path) -> None:
    kept = tmp_path / "runs.json"
    for command, number in (("a", 1), ("b", 2), ("a", 3)):
        peer._add(kept, {"command": command, "turns": number})
    runs = json.loads(kept.read_text())["runs"]
    assert [(run["command"], run["turns"]) for run in runs] == [("b", 2), ("a", 3)]


def test_without_an_interpreter_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(peer.INTERPRETER, raising=False)
    app = Typer()
    app.command()(peer.main)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert "make originals" in done.output


@pytest.mark.skipif(peer.INTERPRETER not in os.environ, reason="needs circuit-tracer")
def test_rows_are_circuit_tracers(tmp_path: Path) -> None:
    """All features, and some that it chose; with and without its default batch."""
    ids = peer.write_folder(tmp_path, TINY)
    model = ReplacementModel(random_model(TINY), None, relu_transcoders(TINY))
    with peer.peer_of(os.environ[peer.INTERPRETER], tmp_path, threads=1) as other:
        for targets, batch in ((None, 4), (9, 4), (None, None)):
            found = peer.compare(other, model, ids, targets, batch)
            assert found["of theirs only"] == 0
            assert found["largest difference"] < 1e-4
            assert targets is None or found["targets"] == targets
