"""Single nodes: patched as the library patches them, estimated exactly where a model is linear."""

from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.baselines.nodes import (
    Nodes,
    component_nodes,
    differentiated,
    feature_nodes,
    integrated,
    patched_each,
    swept,
)
from benchmarks.edges import EdgeModel, Pairs, Rules
from benchmarks.report.agreement import as_pair, pearson
from benchmarks.report.bases import changed_nodes, strengths
from benchmarks.role_circuits import Asked, ask
from circuits import load
from replacement.edits import Node
from replacement.edits.keeping import kept_values, values_of
from replacement.edits.running import patches
from tests.benchmarks.edge_models import edge_model, linear_model, random_pairs


@cache
def sentence(mlp: str, attention: str) -> Asked:
    (one,) = ask(load("four-tasks", mlp=mlp, attention=attention), "ioi", 1)
    return one


@cache
def components() -> EdgeModel:
    return EdgeModel(load("four-tasks", mlp="neurons", attention="heads"))


def some(nodes: Nodes, count: int = 5) -> Nodes:
    found = nodes.strongest(count)
    assert 0 < len(found.pos) <= count
    return found


def one_pair() -> Pairs:
    return random_pairs(1)


@pytest.mark.parametrize(("mlp", "attention"), [("neurons", "heads"), ("transcoders", "lorsa")])
def test_patching_agrees_with_the_library(mlp: str, attention: str) -> None:
    """Every neuron, feature, Lorsa head and error whose write changed most, of each sublayer."""
    one = sentence(mlp, attention)
    names = {"neurons": "neuron", "features": "feature", "Lorsa heads": "lorsa", "errors": "error"}
    values, others = values_of(one.run), values_of(one.other)
    for nodes in feature_nodes(one.run, one.other):
        own = one.run.sublayers[nodes.part - 1]
        chosen, kind = some(nodes), names[nodes.kind]
        part = (own.layer, own.name, "error" if kind == "error" else "nodes")
        change, write = values[part] - others[part], own.features.write
        rows = []
        for pos, wrote in zip(chosen.pos.tolist(), chosen.change, strict=True):
            made = change[pos] if kind == "error" else change[pos, :, None] * write
            index = int((made - wrote).norm(dim=-1).argmin())
            rows.append(Node(kind, own.layer, own.name, pos, index if kind != "error" else -1))
        wanted = one.target.value - patches(one.target, one.other, rows)
        found = patched_each(components(), as_pair(one), chosen)
        assert torch.allclose(found, wanted, atol=2e-4), (nodes.kind, own.layer)


def test_a_patched_token_is_the_counterfactual() -> None:
    """One token differs, so patching it is the whole difference; and so is its contrast."""
    one = sentence("neurons", "heads")
    pair = as_pair(one)
    tokens = component_nodes(components(), pair)[0].strongest(100)
    (fallen,) = patched_each(components(), pair, tokens).tolist()
    assert fallen == pytest.approx(one.difference.value, rel=1e-4)
    derivative = swept(one.difference)[0][tokens.pos]
    assert float((tokens.change * derivative).sum()) == pytest.approx(fallen, rel=1e-4)


@pytest.mark.parametrize("part", range(5))
def test_every_derivative_is_exact_where_the_model_is_linear(part: int) -> None:
    model, pair = linear_model(), one_pair()
    nodes = some(component_nodes(model, pair)[part])
    truth = patched_each(model, pair, nodes)
    for found in (
        differentiated(model, pair),
        differentiated(model, pair, rules=Rules(norms=True, gates=True)),
        integrated(model, pair),
    ):
        score = (nodes.change * found[part][nodes.pos]).sum(-1)
        assert torch.allclose(score, truth, rtol=1e-6, atol=1e-9)


def test_derivatives_differ_where_it_is_not() -> None:
    model, pair = edge_model("GPT-2"), one_pair()
    nodes = some(component_nodes(model, pair)[2])
    truth = patched_each(model, pair, nodes)
    clean, relp, path = (
        (nodes.change * found[2][nodes.pos]).sum(-1)
        for found in (
            differentiated(model, pair),
            differentiated(model, pair, rules=Rules(norms=True, gates=True)),
            integrated(model, pair),
        )
    )
    for one in (clean, relp, path):
        assert not torch.allclose(one, truth, rtol=1e-3)
    assert not torch.allclose(clean, relp, rtol=1e-3)
    assert not torch.allclose(clean, path, rtol=1e-3)


@pytest.mark.parametrize("mlp", ["neurons", "transcoders"])
def test_all_changed_nodes_are_the_prompt_and_none_the_counterfactual(mlp: str) -> None:
    """Tokens stay, so that nothing kept is the counterfactual but for the token's own way out."""
    one = sentence(mlp, "heads")
    nodes, errors = changed_nodes(one)
    assert bool(errors.any()) == (mlp == "transcoders")
    kept = torch.stack([torch.ones(len(nodes)), torch.zeros(len(nodes))]).bool()
    never = torch.zeros(2, dtype=torch.bool)
    whole, empty = kept_values(one.target, nodes, kept, never, values_of(one.other)).tolist()
    assert whole == pytest.approx(one.target.value, abs=1e-3)
    assert empty == pytest.approx(one.target.value - one.difference.value, abs=1e-2)
    strength = strengths(one, nodes, swept(one.difference))
    assert strength.shape == (len(nodes),)
    strongest, weakest = (strength.argsort(descending=way)[:100] for way in (True, False))
    masks = torch.zeros(2, len(nodes), dtype=torch.bool)
    masks[0, strongest], masks[1, weakest] = True, True
    good, bad = kept_values(one.target, nodes, masks, never, values_of(one.other)).tolist()
    assert good - empty > 0.8 * (whole - empty)
    assert abs(bad - empty) < 0.3 * (whole - empty)


def test_a_correlation_is_over_all_nodes_together() -> None:
    source = np.random.default_rng(0)
    parts = [torch.tensor(source.normal(size=(2, count))) for count in (3, 5)]
    together = np.concatenate([part.numpy() for part in parts], axis=1)
    found = pearson([part[0] for part in parts], [part[1] for part in parts])
    assert found == pytest.approx(np.corrcoef(together)[0, 1])
    assert pearson([torch.ones(1)], [torch.ones(1)]) is None
    assert pearson([torch.ones(3)], [torch.arange(3.0)]) is None
