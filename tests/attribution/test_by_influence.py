"""Selection by influence against a slow greedy loop over a dense matrix; scores against one too."""

from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from attribution import by_influence
from attribution.by_influence import influence_scores, nodes_by_influence
from attribution.direct_effects import direct_effects
from circuits import trace
from replacement.held import HeldFeatures
from replacement.run import Run
from replacement.target import Target
from tests.samples import Case, random_run

CASES = [
    Case("deep", "topk", seed=2),
    Case("two layers", "relu", skip=True),
    Case("full context", "topk gated", attention="lorsa rotary", seed=1),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def dense(run: Run) -> tuple[np.ndarray, list[int], Any]:
    """Shares [row, source] of all nodes and the target (last), the nodes' columns, the sources."""
    every = [
        torch.arange(layer.n_active) if isinstance(layer, HeldFeatures) else None
        for layer in run.sublayers
    ]
    effects = direct_effects(run, [*every, run.logit(1)])
    size = np.abs(effects.matrix().toarray())
    size[:, effects.sources["kind"].eq("bias").to_numpy()] = 0
    total = size.sum(1, keepdims=True)
    columns = [int(column) for nodes in effects.nodes for column in nodes]
    return size / np.where(total > 0, total, 1), columns, effects


def influence_by_hand(shares: np.ndarray, columns: list[int], known: list[int]) -> np.ndarray:
    """From the target down: every node passes on what reached it, latest first."""
    reached = shares[-1].copy()
    for row in reversed(range(len(columns))):  # rows are in the order in which nodes are computed
        if row in known:
            reached += reached[columns[row]] * shares[row]
    return reached


def step_by_step(target: Target, count: int) -> list[Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(by_influence, "LEAST", 1)
        patched.setattr(by_influence, "AT_ONCE", 10**6)
        return nodes_by_influence(target, count)


@each_case
def test_it_is_the_greedy_order(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node at a time; all at once is another set, so the order of expansion matters."""
    run = random_run(case)
    shares, columns, effects = dense(run)
    count = len(columns) // 2
    chosen: list[int] = []
    for _ in range(count):
        reached = influence_by_hand(shares, columns, chosen)[columns]
        reached[chosen] = 0
        if not reached.any():
            break
        chosen.append(int(np.argmax(reached)))
    masks = step_by_step(run.logit(1), count)
    found = [
        int(column)
        for mask, nodes in zip(masks, effects.nodes, strict=True)
        for column in nodes[mask[: len(nodes)].nonzero().flatten()]
    ]
    assert sorted(found) == sorted(columns[row] for row in chosen)
    if case == CASES[0]:
        many = run.logit(1)
        monkeypatch.setattr(by_influence, "LEAST", 10**6)
        differ = [
            any(
                (one != other).any()
                for one, other in zip(
                    nodes_by_influence(many, number), step_by_step(many, number), strict=True
                )
            )
            for number in range(2, min(len(columns), 12))
        ]
        assert any(differ)


@each_case
def test_scores_are_those_of_the_definition(case: Case) -> None:
    run = random_run(case)
    shares, columns, effects = dense(run)
    reached = influence_by_hand(shares, columns, list(range(len(columns))))
    scores = influence_scores(effects)
    np.testing.assert_allclose(scores.influence.to_numpy(), reached, rtol=1e-9, atol=1e-12)
    kind = effects.sources["kind"].to_numpy()
    token, error = np.isin(kind, ["token", "position"]), kind == "error"
    got, lost = reached[token].sum(), reached[error].sum()
    assert scores.replacement == pytest.approx(got / (got + lost))
    used = np.concatenate([reached[columns], [1.0]])
    spared = reached.sum() - reached[columns].sum()  # tokens and errors get nothing
    right = (used * (1 - shares[:, error].sum(1))).sum() + spared
    assert scores.completeness == pytest.approx(right / (used.sum() + spared))
    assert 0 < scores.replacement < 1 and 0 < scores.completeness < 1


def test_a_circuit_of_chosen_nodes_adds_up() -> None:
    run = random_run(CASES[0])
    circuit = trace(run.logit(1), 0.9, edges="direct", select="influence", max_nodes=5)
    assert circuit.meta["select"] == "influence"
    assert len(circuit.nodes[circuit.nodes["kind"].eq("feature")]) == 5
    assert circuit.meta["checks"]["closure"] < 1e-9
    assert circuit.meta["checks"]["conservation"] < 1e-9
    assert circuit.test(progress=False).deviation < 1e-9


def test_effects_without_targets_have_no_influence() -> None:
    with pytest.raises(ValueError, match=r"no row is a target.*after the nodes"):
        influence_scores(direct_effects(random_run(CASES[0])))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"select": "best"}, '"attribution" or "influence"'),
        ({"select": "influence"}, 'edges="direct" and max_nodes'),
        ({"select": "influence", "edges": "direct"}, "max_nodes=None"),
    ],
    ids=str,
)
def test_a_selection_that_makes_no_sense_is_refused(
    given: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="select=") as problem:
        trace(random_run(CASES[0]).logit(1), **given)
    assert says in str(problem.value)
