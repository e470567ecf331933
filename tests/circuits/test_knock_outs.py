"""`circuit.test()`: what it predicts, what it measures, and that it would notice an error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import circuits.testing
from attribution.sweep import Sweep, sweep
from circuits import Circuit, trace
from graphs.graph import Graph
from graphs.nodes import INTERIOR, SOURCES
from replacement.model import ReplacementModel
from replacement.run import Run
from tests.samples import (
    LEARNED,
    REPLACED,
    RESIDUAL,
    SHAPES,
    TARGETS,
    Case,
    mlps_of,
    random_gpt2,
    random_ids,
    random_run,
)

EXACT = 1e-9
CASES = [
    Case("two layers", "neurons"),
    Case("two layers", "jumprelu"),
    Case("deep", "topk", skip=True, seed=1),
    Case("width is vocabulary", "relu", skip=True, seed=3),
    Case("one token", "batchtopk", skip=True, seed=4),
    LEARNED[2],
    RESIDUAL[-1],
    REPLACED[0],
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_target = pytest.mark.parametrize("target", TARGETS)
PLACE = ["kind", "layer", "sublayer", "pos", "index"]


def traced(case: Case, target: str = "combination", threshold: float = 0.02) -> Circuit:
    return trace(TARGETS[target](random_run(case)), threshold, progress=False)


def size(circuit: Circuit) -> float:
    return float(circuit.nodes["attribution"].abs().max()) + abs(circuit.value)


# ---------------------------------------------------------------- predicted is measured


@each_case
@pytest.mark.parametrize("share", [None, 1.0, 0.9, 0.5])
def test_every_held_knock_out_does_what_was_predicted(case: Case, share: float | None) -> None:
    circuit = traced(case)
    result = (circuit if share is None else circuit.prune(share)).test(progress=False)
    off = (result.table["predicted"] - result.table["held"]).abs()
    assert (off <= EXACT * size(circuit)).all()
    assert result.deviation <= EXACT


@each_target
def test_it_holds_for_every_kind_of_target(target: str) -> None:
    for case in CASES[:3]:
        circuit = traced(case, target)
        assert circuit.test(progress=False).deviation <= EXACT
        assert circuit.prune(0.7).test(progress=False).deviation <= EXACT


@each_case
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1e6])
def test_it_holds_at_every_threshold(case: Case, threshold: float) -> None:
    assert traced(case, threshold=threshold).test(progress=False).deviation <= EXACT


@pytest.mark.parametrize("settings", [{"gate": "signed"}, {"max_nodes": 7}])
def test_it_holds_for_every_way_of_choosing_nodes(settings: dict[str, Any]) -> None:
    for case in CASES:
        target = TARGETS["combination"](random_run(case))
        assert (
            trace(target, 0.02, progress=False, **settings).test(progress=False).deviation <= EXACT
        )


@each_case
def test_what_is_predicted_is_what_the_table_says(case: Case) -> None:
    circuit = traced(case)
    table = circuit.test(progress=False).table
    stated = -circuit.nodes.loc[table.index, "attribution"]
    assert ((table["predicted"] - stated).abs() <= EXACT * size(circuit)).all()


@each_case
def test_every_node_is_tested(case: Case) -> None:
    circuit = traced(case)
    nodes = circuit.nodes
    strong = nodes["attribution"].abs() >= circuit.meta["cutoff"]
    wanted = nodes["kind"].isin([*INTERIOR, *SOURCES]) | (nodes["kind"].eq("error") & strong)
    tested = circuit.test(progress=False).table
    assert tested.index.tolist() == nodes.index[wanted].tolist()
    assert tested["name"].is_unique
    assert tested.columns.tolist() == [
        "name",
        "predicted",
        "held",
        "ungated",
        "patterns",
        "free",
    ]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_batch_size_changes_nothing(batch: int) -> None:
    circuit = traced(CASES[2])
    numbers = circuit.test(batch=batch, progress=False).table.drop(columns="name")
    expected = circuit.test(batch=10_000, progress=False).table.drop(columns="name")
    np.testing.assert_allclose(numbers, expected, rtol=0, atol=EXACT * size(circuit))


# ---------------------------------------------------------------- what could react


@each_case
def test_ungated_is_the_knock_out_with_every_node_free_to_react(case: Case) -> None:
    """The same node of the circuit that keeps everything; and there the held pass agrees."""
    circuit, everything = traced(case), traced(case, threshold=0)
    table = circuit.test(progress=False).table
    np.testing.assert_array_equal(table["ungated"], -circuit.nodes.loc[table.index, "ungated"])
    rows = everything.nodes.set_index(PLACE)["attribution"]
    stated = rows.loc[pd.MultiIndex.from_frame(circuit.nodes.loc[table.index, PLACE])]
    held = everything.test(progress=False).table["held"]
    held.index = pd.MultiIndex.from_frame(everything.nodes.loc[held.index, PLACE])
    measured = held.reindex(stated.index)
    assert (np.abs(table["ungated"].to_numpy() + stated.to_numpy()) <= EXACT * size(circuit)).all()
    known = measured.notna().to_numpy()
    assert known.mean() > 0.9
    off = table["ungated"].to_numpy()[known] - measured.to_numpy()[known]
    assert (np.abs(off) <= EXACT * size(circuit)).all()


def embedding_of(model: Any, run: Run, kind: str, pos: int) -> Tensor:
    if kind == "token":
        return model.transformer.wte.weight[run.token_ids[pos]]
    return model.transformer.wpe.weight[pos]


def neuron_write(model: Any, run: Run, row: Any) -> Tensor:
    """What one neuron wrote, from the model's own modules."""
    mlp = model.transformer.h[row.layer].mlp
    kept: list[Tensor] = []
    hook = mlp.act.register_forward_hook(lambda _, __, output: kept.append(output))
    model(run.token_ids[None])
    hook.remove()
    return kept[0][0, row.pos, row.index] * mlp.c_proj.weight[row.index]


def head_write(model: Any, run: Run, row: Any) -> Tensor:
    """What one head wrote: its slice of what the output projection reads."""
    projection = model.transformer.h[row.layer].attn.c_proj
    kept: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    model(run.token_ids[None])
    hook.remove()
    width = projection.weight.shape[0] // model.config.n_head
    part = slice(row.index * width, (row.index + 1) * width)
    return kept[0][0, row.pos, part] @ projection.weight[part]


def place_of(model: Any, row: Any) -> nn.Module:
    """The module whose output the node is part of."""
    if row.kind in SOURCES:
        return model.transformer.drop
    block = model.transformer.h[row.layer]
    return block.attn.c_proj if row.sublayer == "attn" else block.mlp.c_proj


def without(model: Any, run: Run, row: Any, vector: Tensor) -> Tensor:
    """The logits of the model with `vector` taken out of one module's output at one position."""

    def subtract(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[0, row.pos] -= vector
        return changed

    hook = place_of(model, row).register_forward_hook(subtract)
    logits = model(run.token_ids[None]).logits[0]
    hook.remove()
    return logits


WRITES: dict[str, Callable[[Any, Run, Any], Tensor]] = {
    "token": lambda model, run, row: embedding_of(model, run, "token", row.pos),
    "position": lambda model, run, row: embedding_of(model, run, "position", row.pos),
    "neuron": neuron_write,
    "head": head_write,
}


@torch.no_grad()
@pytest.mark.parametrize("shape", ["two layers", "deep", "width is vocabulary"])
def test_free_is_the_real_model_with_the_vector_taken_out(shape: str) -> None:
    """Against plain PyTorch hooks on a model that this library never saw."""
    hf_model = random_gpt2(SHAPES[shape], seed=5)
    run = ReplacementModel(random_gpt2(SHAPES[shape], seed=5)).run(random_ids(SHAPES[shape]))
    circuit = trace(run.logit(2) - 0.5 * run.logit(5, pos=1).centered(), 0, progress=False)
    free = circuit.test(progress=False).table["free"]
    nodes = circuit.nodes.loc[free.index]
    assert set(nodes["kind"]) == set(WRITES)
    for kind, rows in nodes.groupby("kind"):
        for row in rows.iloc[:: max(1, len(rows) // 4)].itertuples():
            logits = without(hf_model, run, row, WRITES[str(kind)](hf_model, run, row))
            first = logits[1, 5] - logits[1].mean()
            change = float(logits[-1, 2] - 0.5 * first) - circuit.value
            assert free[row.Index] == pytest.approx(change, abs=EXACT * size(circuit)), row


@torch.no_grad()
def test_free_of_a_feature_takes_its_own_vector_out() -> None:
    case = Case("two layers", "topk")
    layers = mlps_of(case)
    assert layers is not None
    hf_model = random_gpt2()
    run = ReplacementModel(random_gpt2(), mlps=layers).run(random_ids(SHAPES["two layers"]))
    circuit = trace(run.logit(2), 0, progress=False)
    free = circuit.test(progress=False).table["free"]
    features = circuit.nodes.loc[circuit.nodes["kind"] == "feature"]
    for row in features.iloc[::5].itertuples():
        vector = row.activation * layers[row.layer].write[row.index]
        change = float(without(hf_model, run, row, vector)[-1, 2]) - circuit.value
        assert free[row.Index] == pytest.approx(change, abs=EXACT * size(circuit))


# ---------------------------------------------------------------- it would notice


def test_a_wrong_attribution_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attribution of the sweep through a pruned circuit off by a hundredth of the target."""
    circuit = traced(CASES[0]).prune(0.9)
    assert circuit.test(progress=False).deviation <= EXACT

    def slightly_wrong(*given: Any, **settings: Any) -> Sweep:
        swept = sweep(*given, **settings)
        strongest = max(swept.attribution, key=lambda attribution: float(attribution.abs().max()))
        strongest[strongest.abs().argmax()] += 0.01 * circuit.value
        return swept

    monkeypatch.setattr(circuits.testing, "sweep", slightly_wrong)
    assert circuit.test(progress=False).deviation > 1e-3


def test_a_table_that_was_changed_is_noticed() -> None:
    circuit = traced(CASES[0])
    nodes = circuit.nodes
    head = nodes.index[nodes["kind"] == "head"][0]
    nodes.loc[head, "attribution"] += 0.01 * circuit.value
    changed = Circuit(Graph(nodes, circuit.edges, circuit.meta)).attach(circuit.model)
    assert changed.test(progress=False).deviation > 1e-3
    assert changed.data.conservation() > 1e-5


@pytest.mark.parametrize("weight", ["attn.c_proj.weight", "mlp.c_proj.weight", "mlp.c_fc.weight"])
def test_a_weight_changed_after_the_run_is_noticed(weight: str) -> None:
    model = random_gpt2()
    run = ReplacementModel(model).run(random_ids(SHAPES["two layers"]))
    circuit = trace(run.logit(3), 0.01, progress=False)
    assert circuit.test(progress=False).deviation <= EXACT
    with torch.no_grad():
        model.transformer.h[1].get_submodule(weight.removesuffix(".weight")).weight.mul_(1.05)
    assert circuit.test(progress=False).deviation > 1e-4


# ---------------------------------------------------------------- what it says


def test_the_result_shows_the_strongest_nodes_and_both_verdicts() -> None:
    result = traced(CASES[0]).test(progress=False)
    text = repr(result)
    strongest = result.table["predicted"].abs().idxmax()
    assert result.table.loc[strongest, "name"] in text
    assert f"{len(result.table)} nodes" in text
    assert "held: predicted = measured to" in text and "free: the real model" in text
    assert len(text.splitlines()) <= 14
    assert -1 <= result.correlation <= 1


def test_where_nothing_varies_there_is_no_correlation() -> None:
    logit = random_run(CASES[0]).logit(3)
    result = trace(logit - logit, progress=False).test(progress=False)
    assert result.deviation == 0 and np.isnan(result.correlation)


def test_effects_predicted_as_zero_and_measured_otherwise_are_a_deviation() -> None:
    """The scale is the larger of both columns, so that no prediction at all is no agreement."""
    table = pd.DataFrame({"name": ["a"], "predicted": [0.0], "held": [2.0], "free": [0.0]})
    assert circuits.testing.KnockOuts(table, 1.0).deviation == 1.0
