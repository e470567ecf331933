"""`trace(target, against=...)`: what the tables of a contrast promise, and that patching agrees."""

from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import Tensor

from attribution.flow import flow_edges
from attribution.plan import edges_among
from attribution.sweep import sweep
from circuits import Circuit, load, plan, read, trace
from graphs.nodes import INTERIOR
from replacement.run import Run
from tests.circuits.test_trace import EXACT, assert_conserved, size
from tests.hooked import Place, hooked_pass, layers_of, measured
from tests.samples import LEARNED, REPLACED, SHAPES, TARGETS, Case, random_gpt2
from tests.secant.pairs import RULES, difference, pair_of, runs_of

CASES = [
    Case("two layers", "neurons"),
    Case("deep", "jumprelu", skip=True, seed=1),
    LEARNED[1],
    LEARNED[2],
    LEARNED[6],
    LEARNED[8],
    REPLACED[0],
]
PROMPTS = (
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def traced(case: Case, name: str = "difference", threshold: float = 0.02, **asked: Any) -> Circuit:
    clean, other = runs_of(case, "all tokens")
    target = TARGETS[name](clean)
    return trace(target, threshold, against=other, progress=False, **asked)


# ---------------------------------------------------------------- sums


@each_case
@pytest.mark.parametrize("threshold", [0.0, 0.05, 1e6])
def test_the_laws_hold(case: Case, threshold: float) -> None:
    for name in ("difference", "scores and logits"):
        circuit = traced(case, name, threshold)
        assert_conserved_with_switch(circuit)
        assert max(circuit.meta["checks"].values()) <= EXACT
        assert circuit.data.conservation() <= EXACT
        assert abs(circuit.explained.sum() - circuit.value) <= EXACT * size(circuit)


def assert_conserved_with_switch(circuit: Circuit) -> None:
    """Identity 2 from the tables alone, what was switched counted as what was cut is."""
    nodes = circuit.nodes
    nodes["in_pruned"] += nodes["in_switch"]
    nodes["in_switch"] = 0.0
    data = type(circuit.data)(nodes, circuit.edges, circuit.meta)
    assert_conserved(Circuit(data))


@each_case
def test_edges_say_by_which_way(case: Case) -> None:
    """Into attention q, k and v, into MLPs mlp, into the target residual; all of them occur."""
    circuit = traced(case, threshold=0.0, max_nodes=100_000)
    nodes, edges = circuit.nodes, circuit.edges
    readers = nodes.loc[edges["target"]]
    for kinds, ways in (
        (readers["kind"].eq("target"), {"residual"}),
        (readers["sublayer"].eq("mlp"), {"mlp"}),
        (readers["sublayer"].eq("attn"), {"q", "k", "v"}),
    ):
        assert set(edges["via"][kinds.to_numpy()]) == ways
    places = nodes["pos"]
    by_query = edges[edges["via"] == "q"]
    where = places.loc[by_query["source"]].to_numpy(), places.loc[by_query["target"]].to_numpy()
    assert (where[0] == where[1]).all(), "a query is made where it stands"


@each_case
def test_the_count_of_edges_is_a_close_bound(case: Case) -> None:
    """Edges by queries and keys are counted before any is made."""
    target = difference(pair_of(case, "all tokens"), "scores and logits")
    sublayers = target.run.sublayers
    swept = sweep(target, sublayers)
    flow = flow_edges(target, sublayers, swept)
    places = [layer.positions()[kept] for layer, kept in zip(sublayers, swept.kept(), strict=True)]
    assert 0.5 * edges_among(sublayers, places) <= len(flow.via) <= edges_among(sublayers, places)
    assert plan(target).passes["forward"] == 2


def test_the_graph_keeps_the_ways_apart() -> None:
    circuit = traced(CASES[0])
    assert isinstance(circuit.graph, networkx.MultiDiGraph)
    ways = {via for _, _, via in circuit.graph.edges(keys=True)}
    assert ways == {"residual", "mlp", "q", "k", "v"}
    total = circuit.matrix().sum()
    assert total == pytest.approx(circuit.edges["flow"].sum())


@each_case
@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
def test_pruning_keeps_the_books(case: Case, share: float) -> None:
    circuit = traced(case)
    small = circuit.prune(share)
    assert_conserved_with_switch(small)
    assert abs(small.explained.sum() - small.value) <= EXACT * size(circuit)
    assert set(small.nodes.index) <= set(circuit.nodes.index)


def test_nothing_differs_between_equal_prompts() -> None:
    clean, same = runs_of(CASES[0], "no token")
    circuit = trace(clean.logit(3), against=same, progress=False)
    assert circuit.value == circuit.explained.abs().sum() == len(circuit.edges) == 0
    assert not circuit.nodes["attribution"].any()
    assert (
        "Δ logit" in repr(circuit)
        and circuit.test(progress=False).table["free"].abs().max() <= 1e-12
    )


def test_a_counterfactual_is_a_run_a_text_or_token_ids() -> None:
    model = load("four-tasks", mlp="neurons", attention="heads")
    run = model.run(PROMPTS[0])
    target, other = run.logit(" Mary") - run.logit(" John"), model.run(PROMPTS[1])
    given = [trace(target, against=one, progress=False) for one in (other, PROMPTS[1])]
    given.append(trace(target, against=other.token_ids.tolist(), progress=False))
    for circuit in given:
        assert_frame_equal(circuit.nodes, given[0].nodes)
        assert circuit.meta["against"]["tokens"] == other.tokens
    there = other.logit(" Mary") - other.logit(" John")
    assert given[0].meta["against"]["value"] == pytest.approx(there.value, abs=1e-4)
    assert given[0].value == pytest.approx(target.value - there.value, abs=1e-4)
    assert [circuit.meta["against"]["prompt"] for circuit in given] == [*[PROMPTS[1]] * 2, None]


@each_case
def test_the_condition_figure(case: Case) -> None:
    circuit = traced(case)
    condition, nodes = circuit.meta["condition"], traced(case, threshold=0.0).nodes
    assert set(condition) == {"leaves", "switch", "slope"}
    ends = nodes["kind"].isin(["token", "error", "switch", "pruned"])
    magnitude = traced_magnitude(circuit)
    assert condition["leaves"] == pytest.approx(magnitude / abs(circuit.value))
    switched = circuit.nodes.query("kind == 'switch'")["attribution"].abs().sum()
    assert condition["switch"] == pytest.approx(switched / magnitude)
    assert ends.any() and condition["slope"] > 0


def traced_magnitude(circuit: Circuit) -> float:
    kinds = ["token", "position", "error", "bias", "pruned", "switch"]
    leaves = circuit.nodes["kind"].isin(kinds)
    # what was pruned is one row a sublayer and position, as the sweep's leaves are
    return float(circuit.nodes.loc[leaves, "attribution"].abs().sum())


# ---------------------------------------------------------------- files


@each_case
def test_a_contrast_survives_saving(case: Case, tmp_path: Path) -> None:
    circuit = traced(case)
    again = read(circuit.save(tmp_path / "a.circuit"))
    assert_frame_equal(again.nodes, circuit.nodes)
    assert_frame_equal(again.edges, circuit.edges)
    assert again.meta == circuit.meta and repr(again) == repr(circuit)
    attached = again.attach(circuit.model)
    assert_frame_equal(
        attached.test(progress=False).table, circuit.test(progress=False).table, rtol=1e-12
    )
    assert attached.run.rule == circuit.run.rule
    assert circuit.save(tmp_path / "a.svg").read_text().startswith("<svg")
    with pytest.raises(ValueError, match="in a contrast"):
        attached.attention(0)


def test_the_rule_survives_saving(tmp_path: Path) -> None:
    clean, other = runs_of(CASES[0], "all tokens")
    circuit = trace(clean.logit(3), against=other, rule=RULES["mixed"], progress=False)
    saved = circuit.save(tmp_path / "a.circuit")
    assert read(saved).attach(clean.model).run.rule == RULES["mixed"]


def test_a_contrast_is_attached_to_its_own_model_only(tmp_path: Path) -> None:
    saved = traced(CASES[0]).save(tmp_path / "a.circuit")
    stranger = runs_of(Case("two layers", "neurons", seed=5), "all tokens")[0].model
    with pytest.raises(ValueError, match="the target was saved as"):
        read(saved).attach(stranger)


# ---------------------------------------------------------------- patches


def written(case: Case, run: Run, row: Any, width: int) -> dict[Place, Tensor]:
    """Return what one node of a table wrote in a run, by place, from its weights and activation."""
    model, pos = random_gpt2(SHAPES[case.shape], case.seed), int(row["pos"])
    layer, name = int(row["layer"]), str(row["sublayer"])
    if row["kind"] == "token":
        return {(-1, ""): run.token_writes[pos]}
    if row["kind"] == "head":
        mixed = run.layers[layer].attention.mixed
        assert mixed is not None
        d_head = mixed.shape[-1]
        rows = slice(row["index"] * d_head, (row["index"] + 1) * d_head)
        weight = model.transformer.h[layer].attn.c_proj.weight[rows]
        return {(layer, name): mixed[pos, row["index"]] @ weight}
    part = getattr(run.layers[layer], "attention" if name == "attn" else "mlp")
    if row["kind"] == "error":
        return {(layer, name): part.error[pos]}
    found = (part.active.pos == pos) & (part.active.index == row["index"])
    activation = part.active.activation[found].sum()
    reading = layers_of(case).get((layer, name))
    if reading is None:
        return {
            (layer, name): activation * model.transformer.h[layer].mlp.c_proj.weight[row["index"]]
        }
    vectors = (activation * reading.write[row["index"]]).split(width)
    return {(layer + later, name): vector for later, vector in enumerate(vectors)}


@pytest.mark.parametrize("case", [CASES[0], LEARNED[1], LEARNED[8], REPLACED[0]], ids=str)
@torch.no_grad()
def test_patches_are_those_of_hooks(case: Case) -> None:
    """A node's vector of the other run in its place, by a plain pass with hooks."""
    clean, other = runs_of(case, "all tokens")
    target, circuit = TARGETS["difference"](clean), traced(case)
    model = random_gpt2(SHAPES[case.shape], case.seed)
    layers = {} if case.errors else layers_of(case)
    before = hooked_pass(model, clean.token_ids, layers, {})
    table = circuit.test(progress=False).table
    rows = circuit.nodes.loc[table.index]
    assert (table["predicted"] == -rows["attribution"]).all()
    shown = [kind for kind in INTERIOR if kind != "skip"]
    tried = 0
    for node, row in rows[rows["kind"].isin([*shown, "token", "error"])].iterrows():
        lost: dict[Place, Tensor] = {}
        width = clean.token_writes.shape[1]
        here, there = (written(case, run, row, width) for run in (clean, other))
        for place in here:
            lost[place] = torch.zeros_like(clean.token_writes)
            lost[place][row["pos"]] = here[place] - there[place]
        after = hooked_pass(model, clean.token_ids, layers, lost)
        change = measured(target, model, after, before) - measured(target, model, before, before)
        assert abs(change - table.loc[node, "free"]) <= EXACT * size(circuit)
        tried += 1
    assert tried > 10
    assert table["free"].abs().max() > 1e-3


def test_patching_all_tokens_is_the_other_run() -> None:
    """In a model of one token its difference is all there is, predicted and measured."""
    clean = runs_of(Case("one token", "neurons", seed=5), "all tokens")[0]
    other = clean.model.run([(int(clean.token_ids[0]) + 1) % 13])
    circuit = trace(clean.logit(2) - clean.logit(5), 0, against=other, progress=False)
    table = circuit.test(progress=False).table
    token = table[circuit.nodes.loc[table.index, "kind"].eq("token")]
    assert float(token["predicted"].sum()) == pytest.approx(-circuit.value, abs=1e-9)
    assert float(token["free"].sum()) == pytest.approx(-circuit.value, abs=1e-9)


def test_patches_say_how_well_they_agree() -> None:
    result = traced(CASES[0]).test(progress=False)
    assert isinstance(result.table, pd.DataFrame)
    assert result.table.columns.tolist() == ["name", "predicted", "free"]
    assert -1 <= result.correlation <= 1
    assert f"correlates {result.correlation:.2f}" in repr(result)
    assert "patched one at a time" in repr(result) and np.isfinite(result.table["free"]).all()
