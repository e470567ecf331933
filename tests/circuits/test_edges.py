"""`trace(edges=...)`: direct edges conserve the target, and "both" adds effects to the flows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.direct_effects import direct_effects
from circuits import read, trace
from graphs.nodes import INTERIOR
from replacement.held import HeldFeatures
from tests.samples import HEADS, LEARNED, REPLACED, TARGETS, Case, random_run

EXACT = 1e-9
NAMES = ("difference", "combination", "scores and logits")
SKIPS = Case("two layers", "relu", skip=True)
some_cases = pytest.mark.parametrize("case", [*HEADS[::3], *LEARNED, REPLACED[3]], ids=str)


@some_cases
@pytest.mark.parametrize(("threshold", "gate"), [(0.0, "absolute"), (0.05, "signed")])
def test_direct_edges_conserve_the_target(case: Case, threshold: float, gate: str) -> None:
    """Identities 1 and 2 of a graph without heads, and its held knock-outs."""
    for name in NAMES:
        target = TARGETS[name](random_run(case))
        circuit = trace(target, threshold, gate=gate, edges="direct", progress=False)
        assert circuit.meta["checks"]["closure"] <= EXACT
        assert circuit.meta["checks"]["conservation"] <= EXACT
        assert not circuit.nodes["kind"].isin(["head", "skip"]).any()
        assert not circuit.edges["effect"].isna().any()
        assert abs(circuit.explained.sum() - target.value) <= 1e-8 * max(1, abs(target.value))
    assert circuit.test(progress=False).deviation <= EXACT


def test_limit_counts_no_heads() -> None:
    for case in (SKIPS, HEADS[0]):
        target = TARGETS["difference"](random_run(case))
        circuit = trace(target, 0, max_nodes=5, edges="direct", progress=False)
        assert circuit.nodes["kind"].isin(INTERIOR).sum() == 5
        assert circuit.meta["checks"]["conservation"] <= EXACT
        assert circuit.nodes["in_pruned"].abs().max() > 1e-3


@some_cases
def test_both_adds_effects_to_the_flows(case: Case) -> None:
    run = random_run(case)
    target = TARGETS["difference"](run)
    flow = trace(target, 0.02, progress=False)
    both = trace(target, 0.02, edges="both", progress=False)
    moved = both.edges[both.edges["flow"] != 0]
    columns = ["source", "target", "via", "flow"]
    expected = flow.edges.sort_values(["target", "source"])[columns].to_numpy().tolist()
    assert moved.sort_values(["target", "source"])[columns].to_numpy().tolist() == expected
    assert both.nodes.equals(flow.nodes)
    effects, to_target = direct_effects(run), direct_effects(run, target)
    names = ["kind", "layer", "sublayer", "pos", "index"]
    rows = {tuple(row): number for number, row in enumerate(effects.targets[names].to_numpy())}
    columns_of = {
        tuple(row): number for number, row in enumerate(effects.sources[names].to_numpy())
    }
    matrix, last = effects.matrix().toarray(), to_target.matrix().toarray()[0]
    keys = [tuple(row) for row in both.nodes[names].to_numpy()]
    interior = both.nodes["kind"].isin([*INTERIOR, "token", "position"]).to_numpy()
    scalar = interior & ~both.nodes["kind"].isin(["head", "skip"]).to_numpy()
    found = both.matrix("effect").toarray()
    size = max(np.abs(matrix).max(), np.abs(last).max())
    seen = 0
    for edge in both.edges.itertuples(index=False):
        source, reader = keys[edge.source], keys[edge.target]
        if not (scalar[edge.source] and (scalar[edge.target] or reader[0] == "target")):
            assert np.isnan(edge.effect)
            continue
        row = last if reader[0] == "target" else matrix[rows[reader]]
        right = row[columns_of[source]] if source in columns_of else 0.0
        assert abs((0 if np.isnan(edge.effect) else edge.effect) - right) <= EXACT * size
        seen += 1
    assert seen > 0
    for reader in np.flatnonzero(scalar & both.nodes["kind"].isin(["feature", "neuron"])):
        row = matrix[rows[keys[reader]]]
        kept = [
            columns_of[keys[node]] for node in np.flatnonzero(scalar) if keys[node] in columns_of
        ]
        direct = np.nansum(np.where(np.isnan(found[reader]), 0, found[reader]))
        assert abs(direct - row[kept].sum()) <= EXACT * np.abs(row).sum() + EXACT
        assert np.count_nonzero(np.nan_to_num(found[reader])) == np.count_nonzero(row[kept])


def test_with_lorsa_everywhere_direct_edges_are_the_flows() -> None:
    """Identity 4 seen from the edge table: the same edges and the same flows."""
    target = TARGETS["difference"](random_run(LEARNED[1]))
    flow, direct = (
        trace(target, 0.02, edges=edges, progress=False).edges.sort_values(["target", "source"])
        for edges in ("flow", "direct")
    )
    assert direct[["source", "target"]].to_numpy().tolist() == (
        flow[["source", "target"]].to_numpy().tolist()
    )
    np.testing.assert_allclose(direct["flow"], flow["flow"], rtol=0, atol=1e-12)


def test_files_pruning_attachment_and_attention_know_direct_edges(tmp_path: Path) -> None:
    run = random_run(LEARNED[2])
    for edges in ("direct", "both"):
        circuit = trace(TARGETS["difference"](run), 0.0, edges=edges, progress=False)
        again = read(circuit.save(tmp_path / f"{edges}.circuit"))
        assert again.meta["edges"] == edges
        assert again.edges.equals(circuit.edges)
        small = again.attach(run.model).prune(0.6)
        assert abs(small.explained.sum() - circuit.value) <= 1e-8
        assert small.test(progress=False).deviation <= 1e-6
        lorsa = circuit.nodes[circuit.nodes["kind"].eq("lorsa")]
        node = int(lorsa["attribution"].abs().idxmax())
        moved = circuit.attention(node, keys=0).attribution
        assert moved == pytest.approx(lorsa.loc[node, "attribution"], abs=1e-10)


def test_wrong_weights_break_conservation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: u · gate a hundredth too large shows in the checks."""
    target = TARGETS["difference"](random_run(SKIPS))
    right = HeldFeatures.coefficients
    monkeypatch.setattr(HeldFeatures, "coefficients", lambda *given: 1.01 * right(*given))
    circuit = trace(target, 0, max_nodes=5, edges="direct", progress=False)
    assert circuit.meta["checks"]["conservation"] > 1e-4


def test_float32_conserves() -> None:
    for case in (SKIPS, LEARNED[2]):
        target = TARGETS["combination"](random_run(case, torch.float32))
        circuit = trace(target, 0.02, edges="direct", progress=False)
        assert max(circuit.meta["checks"].values()) <= 1e-4
