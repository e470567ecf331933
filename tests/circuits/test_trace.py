"""From a target to a circuit: what the two tables promise, for random models read in every way."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from attribution.sweep import GateRule
from circuits import Circuit, read, trace
from graphs.nodes import EDGE_COLUMNS, INTERIOR, LEAVES, NODE_COLUMNS, SOURCES
from replacement.layers import Lorsa, ReLU, Transcoder
from replacement.model import ReplacementModel
from replacement.run import Run
from tests.random_layers import random_transcoder
from tests.samples import (
    LEARNED,
    REPLACED,
    TARGETS,
    Case,
    random_gpt2,
    random_run,
)

ROOT = Path(__file__).parents[2]
EXACT = 1e-9
CASES = [
    Case("two layers", "neurons"),
    Case("deep", "neurons", seed=1),
    Case("two layers", "topk"),
    Case("deep", "jumprelu", skip=True, seed=1),
    Case("width is vocabulary", "relu", skip=True, seed=3),
    Case("one token", "batchtopk", skip=True, seed=4),
    LEARNED[2],
    REPLACED[0],
]
PARTS = ["token", "position", "error", "bias", "pruned"]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_target = pytest.mark.parametrize("target", TARGETS)
each_threshold = pytest.mark.parametrize("threshold", [0.0, 0.005, 0.3, 1e6])


def traced(case: Case, target: str = "combination", **settings: Any) -> Circuit:
    return trace(TARGETS[target](random_run(case)), progress=False, **settings)


def interior(circuit: Circuit) -> pd.DataFrame:
    nodes = circuit.nodes
    return nodes[nodes["kind"].isin(INTERIOR)]


def size(circuit: Circuit) -> float:
    """Sum of |leaf|: what deviations are a share of."""
    ends = circuit.nodes["kind"].isin([*SOURCES, *LEAVES])
    return float(circuit.nodes.loc[ends, "attribution"].abs().sum())


def assert_conserved(circuit: Circuit) -> None:
    """Identity 2, from the tables alone: at each node in = attribution = out."""
    nodes, edges = circuit.nodes, circuit.edges
    into = edges.groupby("target")["flow"].sum().reindex(nodes.index, fill_value=0.0)
    out = edges.groupby("source")["flow"].sum().reindex(nodes.index, fill_value=0.0)
    into += nodes["in_bias"] + nodes["in_error"] + nodes["in_pruned"]
    out += nodes["out_pruned"]
    reads, writes = ([*INTERIOR, "target"], [*SOURCES, *INTERIOR])
    for sums, kinds in ((into, reads), (out, writes)):
        off = (sums - nodes["attribution"])[nodes["kind"].isin(kinds)].abs()
        assert (off <= EXACT * max(size(circuit), abs(circuit.value))).all()


# ---------------------------------------------------------------- sums


@each_case
@each_threshold
def test_leaves_add_up_to_the_target(case: Case, threshold: float) -> None:
    circuit = traced(case, threshold=threshold)
    ends = circuit.nodes["kind"].isin([*SOURCES, *LEAVES])
    total = circuit.nodes.loc[ends, "attribution"].sum()
    assert abs(total - circuit.value) <= EXACT * size(circuit)
    assert circuit.meta["checks"]["closure"] <= EXACT


@each_case
@each_threshold
def test_every_node_passes_on_what_it_gets(case: Case, threshold: float) -> None:
    circuit = traced(case, threshold=threshold)
    assert_conserved(circuit)
    assert circuit.meta["checks"]["conservation"] <= EXACT


@each_target
def test_both_laws_hold_for_every_kind_of_target(target: str) -> None:
    circuit = traced(Case("deep", "jumprelu", skip=True, seed=1), target, threshold=0.02)
    assert_conserved(circuit)
    assert circuit.meta["checks"]["closure"] <= EXACT


@each_case
def test_explained_is_the_sum_of_the_leaves_of_each_kind(case: Case) -> None:
    circuit = traced(case, threshold=0.05)
    rows = circuit.nodes.groupby("kind")["attribution"].sum().reindex(PARTS, fill_value=0.0)
    off = (circuit.explained - rows).abs()
    assert circuit.explained.index.tolist() == PARTS
    assert off.max() <= EXACT * size(circuit)


@each_case
@pytest.mark.parametrize("share", [1.0, 0.8, 0.3])
def test_pruning_keeps_the_books(case: Case, share: float) -> None:
    circuit = traced(case, threshold=0.01)
    small = circuit.prune(share)
    assert small.explained.index.tolist() == PARTS
    assert abs(small.explained.sum() - small.value) <= EXACT * size(circuit)
    assert set(small.nodes.index) <= set(circuit.nodes.index)
    assert len(small.edges) <= len(circuit.edges)
    assert_conserved(small)


def test_float32_holds_to_one_in_ten_thousand() -> None:
    run = random_run(Case("deep", "topk", skip=True), torch.float32)
    circuit = trace(TARGETS["combination"](run), progress=False)
    assert max(circuit.meta["checks"].values()) <= 1e-4
    assert circuit.meta["dtype"] == "float32"
    assert circuit.test(progress=False).deviation <= 1e-4


# ---------------------------------------------------------------- what is kept


def reachable(run: Run) -> int:
    """How many nodes the last position's logit can be reached from, counted by hand.

    In the last layer only nodes at the last position are read; below it attention reads them all,
    or as many as its window shows.
    """
    n_pos, places, count = len(run.tokens), 1, 0
    for layer, block in zip(reversed(run.layers), reversed(run.weights.layers), strict=True):
        of_attention = layer.attention.active
        if of_attention is None:
            count += places * block.heads.n_heads
        for active in (of_attention, layer.mlp.active):
            count += 0 if active is None else int((active.pos >= n_pos - places).sum())
        count += places if layer.mlp.skip_output is not None else 0
        window = block.attention.query_key.window if isinstance(block.attention, Lorsa) else None
        places = n_pos if window is None else min(places + window - 1, n_pos)
    return count


@each_case
def test_threshold_zero_keeps_everything_reachable(case: Case) -> None:
    circuit = traced(case, "logit", threshold=0)
    assert len(interior(circuit)) == reachable(random_run(case))
    assert "pruned" not in set(circuit.nodes["kind"])
    assert circuit.nodes["in_pruned"].abs().max() <= EXACT * size(circuit)
    np.testing.assert_array_equal(circuit.nodes["attribution"], circuit.nodes["ungated"])


@each_case
def test_kept_nodes_reach_the_threshold_and_pruned_are_booked(case: Case) -> None:
    circuit = traced(case, threshold=0.05)
    nodes = interior(circuit)
    strong = nodes[nodes["kind"] != "skip"]["attribution"].abs() >= circuit.meta["cutoff"]
    assert strong.all()
    everything = traced(case, threshold=0)
    assert len(nodes) < len(interior(everything)) or len(nodes) == len(interior(everything)) <= 4


def test_a_higher_threshold_keeps_fewer_nodes() -> None:
    counts = [
        len(interior(traced(Case("two layers", "neurons"), threshold=threshold)))
        for threshold in (0.0, 0.01, 0.1, 1.0, 1e6)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[-1] == 0


@pytest.mark.parametrize("limit", [1, 2, 5, 17, 1000])
@pytest.mark.parametrize("mlp", ["neurons", "topk"])
def test_max_nodes_keeps_the_strongest(mlp: str, limit: int) -> None:
    """Fewer only where a strong node is read by none that is kept."""
    case = Case("two layers", mlp)
    strength = interior(traced(case, threshold=0))["ungated"].abs().sort_values(ascending=False)
    kept = interior(traced(case, threshold=0, max_nodes=limit))["ungated"].abs()
    assert limit / 2 <= len(kept) <= limit or len(kept) == len(strength)
    assert set(kept) <= set(strength.iloc[:limit])


@pytest.mark.parametrize("limit", [1, 3, 12])
def test_max_nodes_bounds_features_and_heads_beside_skips(limit: int) -> None:
    """Skips are always kept; the bound is for what can be chosen."""
    kept = interior(traced(Case("two layers", "topk", skip=True), threshold=0, max_nodes=limit))
    assert (kept["kind"] != "skip").sum() <= limit


def twins() -> list[Transcoder]:
    """Layers whose features 2k and 2k + 1 are the same."""
    layers = []
    for number in range(2):
        single = random_transcoder("relu", n_features=10, seed=number)
        double = {
            name: getattr(single, name).repeat_interleave(2, 0)
            for name in ("read", "write", "read_bias")
        }
        layers.append(Transcoder(**double, write_bias=single.write_bias, activation=ReLU()))
    return layers


@pytest.mark.parametrize("limit", range(1, 14))
def test_ties_are_broken_by_node_order(limit: int) -> None:
    model = ReplacementModel(random_gpt2(), mlps=twins())
    circuit = trace(model.run([3, 1, 4, 1, 5]).logit(2), 0, max_nodes=limit, progress=False)
    features = circuit.nodes[circuit.nodes["kind"] == "feature"]
    chosen = set(zip(features["layer"], features["pos"], features["index"], strict=True))
    alone = {place for place in chosen if (*place[:2], place[2] ^ 1) not in chosen}
    assert all(index % 2 == 0 for _, _, index in alone)
    assert len(interior(circuit)) <= limit


@each_case
def test_the_signed_gate_keeps_positive_nodes_and_the_books(case: Case) -> None:
    circuit = traced(case, threshold=0.02, gate="signed")
    kept = interior(circuit)
    assert (kept[kept["kind"] != "skip"]["attribution"] >= circuit.meta["cutoff"]).all()
    assert circuit.meta["gate"] == "signed"
    assert abs(circuit.explained.sum() - circuit.value) <= EXACT * size(circuit)
    assert_conserved(circuit)


GATES: list[GateRule] = ["absolute", "signed"]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("zero", ["difference with itself", "nothing of it"])
def test_a_target_that_is_zero(zero: str, gate: GateRule, tmp_path: Path) -> None:
    logit = random_run(CASES[0]).logit(3)
    circuit = trace(logit - logit if zero.startswith("diff") else 0 * logit, gate=gate)
    assert circuit.value == circuit.explained.abs().sum() == 0
    assert len(circuit.paths()) == 0
    assert circuit.test(progress=False).deviation == 0
    assert "0.0000" in repr(circuit.prune(0.5))
    circuit.save(tmp_path / "zero.svg")
    assert read(circuit.save(tmp_path / "zero.circuit")).value == 0


def test_a_target_that_happens_to_be_zero_keeps_no_rounding_errors() -> None:
    """The cutoff is then a share of the sum of |leaf|, not of a value of 1e-17."""
    run = random_run(CASES[0])
    stream = run.residuals[-1][-1]
    vector = torch.randn(stream.shape, generator=torch.Generator().manual_seed(1)).to(stream)
    vector -= stream * (vector @ stream) / (stream @ stream)
    circuit = trace(run.direction(vector, run.weights.n_layers), threshold=0.1)
    assert abs(circuit.value) < 1e-14
    assert circuit.meta["cutoff"] == pytest.approx(1e-4 * size(traced_again(circuit)), rel=1e-9)
    assert_conserved(circuit)


def traced_again(circuit: Circuit) -> Circuit:
    """The same target in one ungated sweep."""
    run = random_run(CASES[0])
    return trace(run.target(circuit.meta["target"]["terms"]), 0)


# ---------------------------------------------------------------- files


TWICE = """
import sys
from circuits import trace
from tests.samples import TARGETS, Case, random_run
circuit = trace(TARGETS["combination"](random_run(Case("two layers", "topk", skip=True))))
circuit.prune(0.8).save(sys.argv[1] + "/small.circuit")
circuit.save(sys.argv[1] + "/all.circuit")
circuit.save(sys.argv[1] + "/all.svg")
"""


def test_two_traces_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for _ in range(2):
        circuit = traced(Case("two layers", "topk", skip=True))
        files = [circuit.save(tmp_path / "here" / name) for name in ("all.circuit", "all.svg")]
        files.append(circuit.prune(0.8).save(tmp_path / "here" / "small.circuit"))
        before = [file.read_bytes() for file in files]
        random_run.cache_clear()
    subprocess.run(
        [sys.executable, "-c", TWICE, str(tmp_path / "there")],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "42", "TZ": "Asia/Tokyo"},
    )
    for file, content in zip(files, before, strict=True):
        assert (tmp_path / "there" / file.name).read_bytes() == content, file.name


def test_nothing_in_a_circuit_is_a_time_or_a_place(tmp_path: Path) -> None:
    facts = traced(CASES[0]).meta
    where_from = {
        "model",
        "layers",
        "errors",
        "prompt",
        "token_ids",
        "tokens",
        "n_layers",
        "target",
    }
    how = {"threshold", "gate", "edges", "max_nodes", "cutoff", "dtype", "weights", "checks"}
    how |= {"versions", "select"}
    assert set(facts) == where_from | how
    saved = traced(CASES[0]).save(tmp_path / "a.circuit").read_bytes()
    assert str(tmp_path).encode() not in saved and str(Path.home()).encode() not in saved


@each_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_target_survives_saving(target: str, dtype: torch.dtype, tmp_path: Path) -> None:
    run = random_run(Case("two layers", "topk"), dtype)
    circuit = trace(TARGETS[target](run), threshold=0.02, progress=False)
    again = read(circuit.save(tmp_path / "a.circuit")).attach(run.model)
    assert again.value == circuit.value
    assert_frame_equal(again.nodes, circuit.nodes)
    assert_frame_equal(again.edges, circuit.edges)
    assert again.meta == circuit.meta
    before, after = (each.test(progress=False).table for each in (circuit, again))
    assert_frame_equal(before, after, rtol=1e-12, atol=1e-12)


def test_attaching_and_pruning_leave_a_circuit_as_it_was() -> None:
    circuit = traced(CASES[0])
    nodes, edges, facts = circuit.nodes, circuit.edges, circuit.meta
    circuit.prune(0.5)
    circuit.attach(circuit.model)
    table = circuit.nodes
    table["attribution"] = 0.0
    circuit.meta["target"]["value"] = 0.0
    assert_frame_equal(circuit.nodes, nodes)
    assert_frame_equal(circuit.edges, edges)
    assert circuit.meta == facts


def test_the_tables_have_the_columns_they_promise() -> None:
    circuit = traced(CASES[0])
    assert circuit.nodes.columns.tolist() == list(NODE_COLUMNS)
    assert circuit.edges.columns.tolist() == list(EDGE_COLUMNS)
    assert circuit.nodes.index.is_unique and circuit.nodes.index.name == "node"
    assert (circuit.edges["flow"] != 0).all()
    assert circuit.edges["effect"].isna().all()
    assert circuit.graph.number_of_edges() == len(circuit.edges)
