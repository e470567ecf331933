"""Node attributions, leaves and every edge, against one difference followed forwards by hand."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from circuits import Circuit, trace
from tests.hooked import layers_of
from tests.samples import SHAPES, Case, random_gpt2
from tests.secant.pairs import RULES, pair_of, runs_of
from tests.secant.slow_secant import WAYS, SlowSecant

CASES = [
    Case("two layers", "neurons"),
    Case("two layers", "topk", skip=True, attention="lorsa", seed=1),
    Case("two layers", "topk gated", attention="heads | lorsa rotary", seed=2),
]
EXACT = 1e-9
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@lru_cache
@torch.no_grad()
def slow_of(case: Case) -> SlowSecant:
    model = random_gpt2(SHAPES[case.shape], case.seed).requires_grad_(False)
    return SlowSecant(model, runs_of(case, "all tokens"), layers_of(case), RULES["mixed"])


@lru_cache
def circuit_of(case: Case) -> Circuit:
    """Everything kept."""
    clean, _ = runs_of(case, "all tokens")
    target = pair_of(case, "all tokens", "mixed").difference(clean.logit(2) - clean.logit(5))
    return trace(target, threshold=0, max_nodes=100_000, progress=False)


def end(logits: Tensor) -> float:
    return float(logits[2] - logits[5])


@lru_cache
@torch.no_grad()
def reach(case: Case, stage: int) -> Tensor:
    """Return what one unit of every number that nodes hold makes of the target."""
    slow = slow_of(case)
    nodes = torch.zeros_like(slow.differences(stage))
    none = torch.zeros_like(slow.normed(stage)[0])
    found = torch.zeros_like(nodes)
    for place in np.ndindex(*nodes.shape):
        one = nodes.clone()
        one[place] = 1
        found[place] = end(slow.follow(stage + 1, slow.written(stage, one, none)))
    return found


def by_node(numbers: Tensor) -> Tensor:
    """Return one number a position and node: of a head, the sum over what it mixes."""
    return numbers.sum(-1) if numbers.ndim == 3 else numbers


def rows(circuit: Circuit, stage: int) -> pd.DataFrame:
    nodes, name = circuit.nodes, "mlp" if stage % 2 else "attn"
    here = nodes["layer"].eq(stage // 2) & nodes["sublayer"].eq(name)
    return nodes[here & nodes["kind"].isin(["head", "neuron", "feature", "lorsa"])]


def size(circuit: Circuit) -> float:
    leaves = circuit.nodes["kind"].isin(["token", "error", "switch"])
    return float(circuit.nodes.loc[leaves, "attribution"].abs().sum())


@each_case
def test_attributions_are_what_a_difference_does_further_on(case: Case) -> None:
    circuit, slow = circuit_of(case), slow_of(case)
    for stage in range(4):
        expected = by_node(slow.differences(stage) * reach(case, stage))
        found = rows(circuit, stage)
        exact = [float(expected[p, i]) for p, i in zip(found["pos"], found["index"], strict=True)]
        off = np.abs(found["attribution"] - exact)
        assert len(found) and off.max() <= EXACT * size(circuit)
        # and no other node would have had an attribution
        assert abs(np.sum(exact) - float(expected.sum())) <= EXACT * size(circuit)


@each_case
@torch.no_grad()
def test_leaves_are_what_tokens_errors_and_switches_do(case: Case) -> None:
    circuit, slow = circuit_of(case), slow_of(case)
    clean, other = slow.runs
    nodes, none = circuit.nodes, torch.zeros_like(clean.token_writes)

    def assert_row(kind: str, stage: int, pos: int, expected: float) -> None:
        name = "" if stage < 0 else ("mlp" if stage % 2 else "attn")
        layer = -1 if stage < 0 else stage // 2
        chosen = nodes["kind"].eq(kind) & nodes["pos"].eq(pos)
        found = nodes[chosen & nodes["layer"].eq(layer) & nodes["sublayer"].eq(name)]
        assert abs(float(found["attribution"].sum()) - expected) <= EXACT * size(circuit)

    for pos in range(len(clean.tokens)):
        at = none.clone()
        at[pos] = (clean.token_writes - other.token_writes)[pos]
        assert_row("token", -1, pos, end(slow.follow(0, at)))
        for stage in range(4):
            if slow.layers.get(slow.places[stage]) is None:
                assert_row("error", stage, pos, 0.0)
                assert_row("switch", stage, pos, 0.0)
                continue
            name = "mlp" if stage % 2 else "attention"
            parts = [getattr(run.layers[stage // 2], name) for run in slow.runs]
            wrong = [
                run.residuals[stage + 1] - run.residuals[stage] - part.output
                for run, part in zip(slow.runs, parts, strict=True)
            ]
            at = none.clone()
            at[pos] = (wrong[0] - wrong[1])[pos]
            assert_row("error", stage, pos, end(slow.follow(stage + 1, at)))
            expected = (slow.switched(stage) * reach(case, stage))[pos].sum()
            assert_row("switch", stage, pos, float(expected))


def sources(circuit: Circuit, slow: SlowSecant) -> dict[int, tuple[int, Tensor]]:
    """Return every node that writes, the stage its difference enters at, and that difference."""
    none = torch.zeros_like(slow.runs[0].token_writes)
    tokens = slow.runs[0].token_writes - slow.runs[1].token_writes
    found = {}
    for node, pos in circuit.nodes.query("kind == 'token'")["pos"].items():
        found[node] = (0, none.clone())
        found[node][1][pos] = tokens[pos]
    for stage in range(4):
        changes = slow.differences(stage)
        for node, row in rows(circuit, stage).iterrows():
            one = torch.zeros_like(changes)
            one[row["pos"], row["index"]] = changes[row["pos"], row["index"]]
            found[node] = (stage + 1, slow.written(stage, one, none))
    return found


@each_case
@torch.no_grad()
def test_every_edge_is_one_step_by_its_way(case: Case) -> None:
    """Node n gets what s wrote at its position, by v, q, k or mlp alone; then n is followed."""
    circuit, slow = circuit_of(case), slow_of(case)
    flows = circuit.edges.set_index(["source", "target", "via"])["flow"].to_dict()
    last = circuit.data.target
    within, seen = EXACT * size(circuit), 0
    for source, (first, written) in sources(circuit, slow).items():
        end_of = slow.at_norm(4, written)[-1] @ slow.model.lm_head.weight.T
        assert abs(flows.pop((source, last, "residual"), 0.0) - end(end_of)) <= within
        for stage in range(first, 4):
            for way in ("mlp",) if stage % 2 else WAYS:
                expected = by_node(slow.nodes(stage, written, way) * reach(case, stage))
                for node, row in rows(circuit, stage).iterrows():
                    flow = flows.pop((source, node, way), 0.0)
                    assert abs(flow - float(expected[row["pos"], row["index"]])) <= within
                    seen += flow != 0
    skips = set(circuit.nodes.query("kind == 'skip'").index)
    assert all({source, reader} & skips for source, reader, _ in flows), "edges from nowhere"
    assert seen > 100


def test_it_is_the_model_that_is_followed() -> None:
    """All differences of tokens, errors and switches together make the logits' difference."""
    for case in CASES:
        slow, circuit = slow_of(case), circuit_of(case)
        clean, other = slow.runs
        change = (clean.logits - other.logits)[-1]
        assert circuit.value == pytest.approx(end(change), abs=1e-12)
        if not slow.layers:
            made = slow.follow(0, clean.token_writes - other.token_writes)
            assert (made - change).abs().max() <= EXACT * change.abs().max()
