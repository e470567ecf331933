"""Edges of circuits as input-dependent times global: rows sum to flows, and weights are global."""

import numpy as np
import pytest
import torch

from attribution.global_weights import virtual_weights
from circuits import trace
from circuits.circuit import Circuit
from replacement.model import ReplacementModel
from tests.families import CONFIGS, IDS, tiny
from tests.samples import CASES, TARGETS, Case, random_run

GATED = [name for name in CONFIGS if name.startswith(("Llama", "Gemma-2", "Gemma-3"))]
SCALAR = ("feature", "neuron", "lorsa", "token", "position", "target")
PLAIN = ("logit", "centered", "feature")


def circuit_of(case: Case, target: str) -> Circuit:
    return trace(TARGETS[target](random_run(case)), threshold=1e-6, max_nodes=10**6, progress=False)


def assert_split(circuit: Circuit) -> None:
    """Check that rows multiply out, and that those of an edge sum to its flow, for all edges
    between scalars."""
    split, nodes, edges = circuit.weights(), circuit.nodes, circuit.edges
    np.testing.assert_allclose(split["factor"] * split["weight"], split["flow"], atol=1e-12)
    parts = split["activation"] * split["to_target"] * split["held"]
    np.testing.assert_allclose(parts, split["factor"], atol=1e-12)
    scalar = nodes.index[nodes["kind"].isin(SCALAR)]
    wanted = edges[edges["source"].isin(scalar) & edges["target"].isin(scalar)]
    wanted = wanted.set_index(["source", "target"])["flow"].sort_index()
    found = split.groupby(["source", "target"])["flow"].sum().sort_index()
    assert found.index.equals(wanted.index) and len(found)
    scale = max(abs(circuit.value), float(wanted.abs().max()))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize(
    ("case", "target"),
    [(case, "difference") for case in CASES]
    + [(case, target) for case in CASES[::9] for target in PLAIN],
    ids=str,
)
def test_rows_of_an_edge_sum_to_its_flow(case: Case, target: str) -> None:
    assert_split(circuit_of(case, target))


@pytest.mark.parametrize("split", [None, "half"])
@pytest.mark.parametrize("name", GATED)
def test_gated_neurons_and_norms_behind(name: str, split: str | None) -> None:
    model = ReplacementModel(tiny(name), split=split)
    run = model.run(IDS)
    circuit = trace(run.logit(3) - run.logit(5), 1e-6, max_nodes=10**6, progress=False)
    assert_split(circuit)
    assert set(circuit.weights()["via"]) == {"residual", "gate"} if split else {"residual"}


@pytest.mark.parametrize("case", [CASES[0], CASES[11]], ids=str)
def test_weights_are_the_global_ones(case: Case) -> None:
    """The column `weight` says what `virtual_weights` says, without the run."""
    circuit = circuit_of(case, "difference")
    split, nodes = circuit.weights(), circuit.nodes
    checked = 0
    for row in split.itertuples():
        one, other = nodes.loc[row.source], nodes.loc[row.target]
        if "neuron" in (one["kind"], other["kind"]) or "feature" in (one["kind"], other["kind"]):
            if "token" in one["kind"] or "position" in one["kind"] or other["kind"] == "target":
                continue
            table = virtual_weights(
                circuit.model,
                (int(other["layer"]), other["sublayer"]),
                (int(one["layer"]), one["sublayer"]),
                readers=[int(other["index"])],
                writers=[int(one["index"])],
            )
            assert row.weight == pytest.approx(float(table), rel=1e-9)
            checked += 1
    assert checked


def test_a_pruned_circuit_keeps_its_numbers() -> None:
    circuit = circuit_of(CASES[0], "difference")
    small = circuit.prune(0.8)
    split = small.weights()
    whole = circuit.weights().set_index(["source", "target"])["flow"]
    assert 0 < len(split) < len(whole)
    pairs = list(zip(split["source"], split["target"], strict=True))
    np.testing.assert_allclose(split["flow"], whole.loc[pairs], rtol=1e-12)


def test_another_gate_would_be_noticed() -> None:
    """Control: with the held gates of a run changed the rows no longer sum to the flows."""
    circuit = circuit_of(CASES[0], "difference")
    held = circuit.run.sublayer(1, "mlp")
    before = held.active.gate.clone()
    try:
        with torch.no_grad():
            held.active.gate.mul_(1.01)
        with pytest.raises(AssertionError):
            assert_split(circuit)
    finally:
        held.active.gate.copy_(before)
    assert_split(circuit)
