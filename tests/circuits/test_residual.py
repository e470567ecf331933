"""Residual SAEs through the front door: loaded, traced, named, drawn, saved, asked again."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.plan import plan
from circuits import load, read, trace
from circuits.circuit import Circuit
from graphs.names import node_names
from graphs.view.layout import layout
from replacement.checkpoints import save_residual_saes
from replacement.layers import ResidualSAE
from replacement.model import ReplacementModel
from tests.random_layers import random_sae
from tests.samples import RESIDUAL, SHAPES, TARGETS, Case, random_gpt2, random_ids, random_run

CASE = RESIDUAL[-1]
IDS = random_ids(SHAPES["two layers"])


def saes() -> list[ResidualSAE | None]:
    """One entering layer 1, one entering its MLP, one entering the final norm."""
    made = {stage: random_sae("relu", seed=stage, make=ResidualSAE) for stage in (2, 3, 4)}
    return [made.get(stage) for stage in range(5)]


def traced(target: str = "combination") -> Circuit:
    return trace(TARGETS[target](random_run(CASE)), 0.02, progress=False)


def test_a_folder_and_a_list_are_the_same_model(tmp_path: Path) -> None:
    save_residual_saes(saes(), tmp_path / "saes", dtype=torch.float64)
    one = load(random_gpt2(), residual=tmp_path / "saes")
    other = load(random_gpt2(), residual=saes())
    direct = ReplacementModel(random_gpt2(), residuals=saes())
    assert one.read_as == {"mlp": "neurons", "attention": "heads", "residual": "saes"}
    assert other.read_as["residual"] == ["stream", "stream", "given", "given", "given"]
    assert "residual=stream+stream+given+given+given, " in repr(other)
    assert "residual=saes" in repr(one) and "residual=given" in repr(direct)
    values = [
        model.run(IDS).feature(1, -1, 3, sublayer="mid").value for model in (one, other, direct)
    ]
    assert values[0] == values[1] == values[2]
    plain = load(random_gpt2(), residual="stream")
    assert plain.read_as == {"mlp": "neurons", "attention": "heads"}
    assert not plain.weights.streams


def test_names_say_where_a_feature_lies() -> None:
    circuit = traced()
    names, nodes = node_names(circuit.data), circuit.nodes
    for place in ("L0.resid.f", "L1.mid.f", "L2.mid.f", "L3.resid.f"):
        assert any(name.startswith(place) for name in names), place
    for row in nodes.loc[nodes["sublayer"].isin(["resid", "mid"])].itertuples():
        end = f".f{row.index}" if row.kind == "feature" else f" {row.kind}"
        assert names[int(row.Index)] == f"L{row.layer}.{row.sublayer}{end}@{row.pos}"
    target = random_run(CASE).feature(3, 1, 2, sublayer="resid")
    assert target.label == "L3.resid.f2@1"


def test_only_what_wrote_behind_the_last_of_them_reaches_the_logit() -> None:
    """The final stream is its own features, bias and error: all else has no edge to the target."""
    circuit = trace(random_run(CASE).logit(3), 0.0, progress=False)
    into = circuit.edges[circuit.edges["target"].eq(circuit.data.target)]
    writers = circuit.nodes.loc[into["source"]]
    assert len(writers) and set(writers["sublayer"]) == {"resid"} and set(writers["layer"]) == {3}
    free = trace(random_run(CASE).model.run(random_ids(SHAPES["deep"])).logit(3), 0.0)
    assert free.meta["layers"] == {"mlp": "given", "attention": "given", "residual": "given"}


def test_a_saved_circuit_is_drawn_and_asked_again(tmp_path: Path) -> None:
    circuit = traced("scores and logits")  # features of the stream among them
    again = read(circuit.save(tmp_path / "one.circuit")).attach(circuit.model)
    assert again.test(progress=False).deviation <= 1e-9
    text = circuit.save(tmp_path / "one.svg").read_text()
    for word in (">resid<", ">mid<", ">mlp<", ">L3<"):
        assert word in text
    with pytest.raises(ValueError, match="read as"):
        read(tmp_path / "one.circuit").attach(ReplacementModel(random_gpt2(SHAPES["deep"])))


def test_in_the_picture_the_stream_lies_in_front_of_what_reads_it() -> None:
    circuit = traced()
    grid, nodes = layout(circuit.data, np.arange(len(circuit.nodes))), circuit.nodes.reset_index()
    height = {
        place: [grid.spots[row].y for row in rows]
        for place, rows in nodes.groupby(["layer", "sublayer"]).groups.items()
    }
    order = [(0, "resid"), (0, "attn"), (0, "mlp"), (1, "attn"), (1, "mid"), (1, "mlp")]
    order += [(2, "attn"), (2, "mid"), (2, "mlp"), (3, "resid")]
    for below, above in pairwise(order):
        assert min(height[below]) > max(height[above]), (below, above)
    assert [band.layer for band in grid.bands] == [0, 1, 2, 3]


def test_the_plan_bounds_the_trace() -> None:
    target = random_run(CASE).logit(3)
    circuit = trace(target, 0.0, progress=False)
    assert len(circuit.edges) <= plan(target).edges


@pytest.mark.parametrize("case", RESIDUAL, ids=str)
def test_attention_is_explained_behind_a_replaced_stream(case: Case) -> None:
    """What a head moved sums to its attribution, wherever its sublayer stands in the list."""
    run = random_run(case)
    circuit = trace(run.logit(3) - run.feature(run.weights.n_layers - 1, -1, 1), 0.0)
    heads = circuit.nodes.loc[circuit.nodes["kind"].isin(["head", "lorsa"])]
    for row in heads.iloc[:: max(1, len(heads) // 5)].itertuples():
        found = circuit.attention(int(row.Index))
        scale = circuit.nodes["attribution"].abs().max()
        assert found.attribution == pytest.approx(row.attribution, rel=1e-9, abs=1e-12 * scale)


def test_a_circuit_of_a_mixed_list_says_how_to_load_its_model(tmp_path: Path) -> None:
    save_residual_saes(saes(), tmp_path / "saes", dtype=torch.float64)
    mixed = [None, None, tmp_path / "saes", None, tmp_path / "saes"]
    model = load(random_gpt2(), residual=mixed)
    saved = trace(model.run(IDS).logit(3), 0.02, progress=False).save(tmp_path / "one.circuit")
    assert read(saved).meta["layers"]["residual"] == ["stream", "stream", "saes", "stream", "saes"]
    assert read(saved).attach(model).test(progress=False).deviation <= 1e-9
    with pytest.raises(ValueError, match=r"residual=\['stream', 'stream', 'saes', 'stream', 'sae"):
        read(saved).test()
