"""Each method against its description, where the answer is known."""

import dataclasses

import pytest
import torch

from attribution.flow import flow_edges
from attribution.sweep import sweep
from benchmarks.baselines import (
    acdc,
    contrast,
    eap,
    eap_ig_activations,
    eap_ig_inputs,
    eliminated,
    exhaustive_edges,
    exhaustive_nodes,
    flow_tables,
    gradient_activation,
    held,
    metric_difference,
    node_scores,
    random_scores,
    recorded,
    relp,
)
from benchmarks.baselines.gradients import reader_gradients
from benchmarks.edges import EdgeModel, Pairs, Patching, Rules
from replacement.secant import RunPair, SecantRule
from tests.benchmarks.edge_models import edge_model, linear_model, random_pairs

RULES = {"means": SecantRule(0.5, 0.5), "one-sided": SecantRule(1.0, 0.0, 0.3, 0.8)}


def into_output(model: EdgeModel, scores: torch.Tensor) -> torch.Tensor:
    return scores[..., [via == "residual" for via in model.graph.via]].sum(-1)


def metric_change(model: EdgeModel, pairs: Pairs) -> torch.Tensor:
    runs = Patching(model, pairs)
    every = torch.ones(model.graph.n_edges, dtype=torch.float64)
    return runs.metric(every) - runs.metric(0 * every)


@pytest.mark.parametrize("method", [eap, relp, eap_ig_inputs, exhaustive_edges])
def test_in_a_linear_model_all_agree_with_the_product_of_maps(method) -> None:
    """Also against patching by mask, which shares no code with single-edge patching."""
    model, pairs = linear_model(), random_pairs()
    runs = Patching(model, pairs)
    every = torch.ones(model.graph.n_edges, dtype=torch.float64)
    masks = every - torch.eye(len(every), dtype=torch.float64)
    truth = torch.stack([(runs.metric(every) - runs.metric(mask)).mean() for mask in masks])
    assert truth.abs().max() > 0.1
    assert torch.allclose(method(model, pairs), truth, atol=1e-9)


def test_in_a_linear_model_an_activation_path_sees_the_readers_behind_it() -> None:
    """Of the 2·layers + 1 sublayers set in turn, those before a reader give it EAP's gradient."""
    model, pairs = linear_model(), random_pairs()
    graph = model.graph
    share = torch.cat(
        [
            torch.full((graph.edges_of(group).stop - graph.edges_of(group).start,), group + 1.0)
            for group in range(graph.n_groups)
        ]
    )
    expected = eap(model, pairs) * share / graph.n_groups
    assert torch.allclose(eap_ig_activations(model, pairs, 3), expected, atol=1e-9)


@pytest.mark.parametrize("probability", [False, True])
@pytest.mark.parametrize("family", ["GPT-2", "Llama, grouped keys", "GPT-NeoX"])
def test_eap_is_the_derivative_by_the_mask(family: str, probability: bool) -> None:
    model, pairs = edge_model(family), random_pairs(probability=probability)
    mask = torch.ones(model.graph.n_edges, dtype=torch.float64, requires_grad=True)
    pairs.metric(Patching(model, pairs).logits(mask)).mean().backward()
    assert mask.grad is not None
    assert torch.allclose(eap(model, pairs), mask.grad, atol=1e-10)
    assert not torch.allclose(relp(model, pairs), mask.grad, atol=1e-6)


def test_integrated_gradients_become_complete() -> None:
    """Σ over edges from the input is the metric's difference, up to an error like 1/steps."""
    model, pairs = edge_model("GPT-2"), random_pairs()
    whole = float(metric_change(model, pairs).mean())
    missed = [
        abs(float(node_scores(model.graph, eap_ig_inputs(model, pairs, steps))[0]) - whole)
        for steps in (5, 30, 200)
    ]
    assert missed[2] < 0.05 * abs(whole)
    assert missed[2] < missed[1] / 4 < missed[0] / 8
    assert abs(float(node_scores(model.graph, eap(model, pairs))[0]) - whole) > 5 * missed[2]


def test_relp_with_patterns_held_is_the_held_map() -> None:
    """All its rules on what the clean run wrote give our held attributions, and no q or k."""
    model, pairs = edge_model("GPT-2"), random_pairs()
    rules = Rules(norms=True, gates=True, patterns=True)
    passed, gradients = reader_gradients(model, pairs, model.entering(pairs.clean), rules=rules)
    graph = model.graph
    tables = [
        torch.einsum("brpd,bwpd->brw", one, passed.written[:, : graph.n_visible(group)]).flatten(1)
        for group, one in enumerate(gradients)
    ]
    found = held(model, pairs, recorded(model, pairs))
    assert torch.allclose(torch.cat(tables, 1).detach(), found, atol=1e-10)
    looks = torch.tensor([via in ("q", "k") for via in graph.via])
    assert (relp(model, pairs, hold_patterns=True)[looks] == 0).all()
    assert (relp(model, pairs)[looks] != 0).any()


def test_half_of_a_gated_product_goes_through_each_branch() -> None:
    """With the half rule a gated MLP is linear in its input and conserves the metric."""
    model, pairs = edge_model("Llama, grouped keys"), random_pairs()
    rules = Rules(norms=True, gates=True, patterns=True)
    passed, gradients = reader_gradients(model, pairs, model.entering(pairs.clean), rules=rules)
    layer = model.graph.n_layers - 1
    group = 2 * layer + 1
    read = (gradients[group] * model.stream(group, passed.parts)).sum()
    wrote = (gradients[-1] * passed.parts[group + 1]).sum()
    assert torch.allclose(read, wrote)


def test_gradient_times_activation_ignores_the_counterfactual() -> None:
    model, pairs = linear_model(), random_pairs()
    other = dataclasses.replace(pairs, corrupt=pairs.clean)
    found = gradient_activation(model, pairs)
    assert torch.equal(found, gradient_activation(model, other))
    assert (eap(model, other) == 0).all()
    zero = exhaustive_edges(model, pairs, "zero")
    last = model.graph.edges_of(2 * model.graph.n_layers)  # elsewhere ReLUs would switch off
    assert torch.allclose(found[last], zero[last], rtol=1e-9)


def test_node_patching_is_a_hook_on_the_model() -> None:
    model, pairs = edge_model("GPT-2"), random_pairs()
    mlp = model.source.hf_model.transformer.h[0].mlp
    kept: list[torch.Tensor] = []
    clean = pairs.metric(model.logits(Patching(model, pairs).clean.final, pairs.end))
    handle = mlp.register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.no_grad():
        model.source.hf_model(pairs.corrupt)
        handle.remove()
        handle = mlp.register_forward_hook(lambda _m, _i, _o: kept[0])
        logits = model.source.hf_model(pairs.clean).logits[torch.arange(3), pairs.end]
        handle.remove()
    fallen = float((clean - pairs.metric(logits)).mean())
    nodes = exhaustive_nodes(model, pairs)
    assert nodes[model.graph.writers.index("m0")] == pytest.approx(fallen, abs=1e-10)
    assert nodes[0] == pytest.approx(float(metric_change(model, pairs).mean()), abs=1e-10)


def test_acdc_finds_the_only_path() -> None:
    """The answer's position is the same in both prompts: what differs reaches it by one head."""
    model, pairs = linear_model(one_path=True), random_pairs()
    true = {"input->a0.h1<v>", "a0.h1->output"}
    for by_metric in (False, True):
        positive = pairs if not by_metric else _helping(model, pairs)
        found = acdc(model, positive, 1e-9, by_metric=by_metric)
        names = {name for name, kept in zip(model.graph.names, found, strict=True) if kept}
        assert names == true
    assert not acdc(model, pairs, 1e9).any(), "a threshold nothing reaches takes everything"


def test_elimination_leaves_the_only_path_to_the_end() -> None:
    model, pairs = linear_model(one_path=True), random_pairs()
    true = {"input->a0.h1<v>", "a0.h1->output"}
    for share in (0.5, 0.2):
        when = eliminated(model, pairs, share)
        assert sorted(when.tolist()) == torch.linspace(0, 1, len(when), dtype=when.dtype).tolist()
        last = when.argsort(descending=True)[:2].tolist()
        assert {model.graph.names[edge] for edge in last} == true
    with pytest.raises(ValueError, match="share=0"):
        eliminated(model, pairs, 0)


def test_elimination_keeps_more_than_scores_do() -> None:
    """On the pairs it saw: what single patches miss, edges that stand in for one another, it sees.
    The order turned round keeps nothing."""
    model, pairs = edge_model("GPT-2"), random_pairs()
    when, patched = eliminated(model, pairs, 0.25), exhaustive_edges(model, pairs)
    off = dict.fromkeys(("elimination", "patching", "turned round"), 0.0)
    for name, scores in zip(off, (when, patched.abs(), 1 - when), strict=True):
        for count in range(2, model.graph.n_edges, 20):
            mask = torch.zeros_like(when)
            mask[scores.argsort(descending=True)[:count]] = 1
            runs = Patching(model, pairs)
            whole = pairs.metric(model.logits(runs.clean.final, pairs.end))
            off[name] += float((runs.metric(mask) - whole).abs().mean())
    assert off["elimination"] < off["patching"] < off["turned round"]


def _helping(model: EdgeModel, pairs: Pairs) -> Pairs:
    """The same pairs, one at a time and with a metric to which the true edges contribute."""
    for row in range(len(pairs)):
        one = pairs.part(slice(row, row + 1))
        for sign in (1, -1):
            for token in range(one.weights.shape[1]):
                weights = torch.zeros_like(one.weights)
                weights[0, token] = sign
                tried = dataclasses.replace(one, weights=weights)
                effects = exhaustive_edges(model, tried)
                if (effects[effects.abs() > 1e-9] > 1e-3).all():
                    return tried
    raise AssertionError("no metric that all edges help")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("probability", [False, True])
def test_contrast_into_the_output_is_the_difference(rule: str, probability: bool) -> None:
    for family in ("GPT-2", "GPT-NeoX", "Llama, grouped keys"):
        model, pairs = edge_model(family), random_pairs(probability=probability)
        found = contrast(model, pairs, recorded(model, pairs), RULES[rule])
        whole = metric_change(model, pairs)
        assert torch.allclose(
            into_output(model, found), whole, atol=1e-9 * float(found.abs().sum())
        )


@pytest.mark.parametrize("family", ["GPT-2", "GPT-NeoX"])
def test_contrast_scores_are_the_flow_edges_summed(family: str) -> None:
    """From the edges between all nodes, neurons one by one, that a trace would show; also by
    position."""
    model, pairs = edge_model(family), random_pairs()
    runs, graph = recorded(model, pairs), model.graph
    pair = RunPair(*runs[0], RULES["one-sided"])
    target = metric_difference(pair, pairs.part(slice(0, 1)))
    swept = sweep(target, pair.sublayers)
    flow = flow_edges(target, pair.sublayers, swept)
    n_pos = len(pair.tokens)
    names, places = ["input"] * (2 * n_pos), [*range(n_pos), *range(n_pos)]
    for layer, kept in zip(pair.sublayers, swept.kept(), strict=True):
        rows = layer.rows(kept)
        heads = [f"a{layer.layer}.h{head}" for head in rows.index.tolist()]
        names += heads if layer.name == "attn" else [f"m{layer.layer}"] * len(kept)
        places += rows.pos.tolist()
    names.append("output")
    places.append(int(pairs.end[0]))
    placed = torch.zeros(graph.n_edges, n_pos, n_pos, dtype=torch.float64)
    edges = zip(flow.source.tolist(), flow.target.tolist(), flow.via, flow.amount, strict=True)
    for source, reader, via, amount in edges:
        way = f"<{via}>" if via in "qkv" else ""
        edge = graph.edge(f"{names[source]}->{names[reader]}{way}")
        placed[edge, places[reader], places[source]] += amount
    tables = [table.transpose(1, 2).flatten(0, 1) for table in flow_tables(model, target)]
    torch.testing.assert_close(torch.cat(tables), placed, rtol=0, atol=1e-10)
    assert not torch.allclose(placed, placed.transpose(1, 2), atol=1e-6)
    expected = placed.sum((1, 2))
    found = contrast(model, pairs, runs, RULES["one-sided"])[0]
    assert torch.allclose(found, expected, atol=1e-10)
    assert not torch.allclose(contrast(model, pairs, runs)[0], expected, atol=1e-6)


def test_random_scores_repeat_by_seed() -> None:
    graph = edge_model("GPT-2").graph
    assert torch.equal(random_scores(graph, 1), random_scores(graph, 1))
    assert not torch.equal(random_scores(graph, 1), random_scores(graph, 2))
