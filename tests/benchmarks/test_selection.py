"""Rules of selection are judged in the real model: good ones beat chance, ablation is what it says.

Also the two measurements beside it: predictions against the free model, and global neighbours.
"""

import random
from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.global_neighbours import drops, in_neighbours, strongest_features
from benchmarks.predicted import correlations
from benchmarks.selection.keeping import Average, reference_values, values_alone
from benchmarks.selection.measuring import RANDOM, Learned, Settings, means_of_rules, measure
from benchmarks.selection.prompts import ROLES, Asked, asked, prompts
from benchmarks.selection.rules import (
    free_gradients,
    gated_scores,
    influence_of_nodes,
    ungated_scores,
)
from circuits import Add, Node, load, trace
from circuits.by_role import active_nodes, placed, ratio_interval, size_of, strongest_nodes
from replacement.edits.keeping import values_of


@cache
def bundled(attention: str = "heads", mlp: str = "transcoders"):
    return load("four-tasks", attention=attention, mlp=mlp)


def one_of(task: str, attention: str = "heads", mlp: str = "transcoders") -> Asked:
    return asked(bundled(attention, mlp), task, prompts(task, "held_out", 1)[0])


@pytest.mark.parametrize("task", ROLES)
def test_prompts_have_a_role_at_every_position_and_a_right_answer(task: str) -> None:
    for prompt in prompts(task, "held_out", 5):
        one = asked(bundled(), task, prompt)
        assert len(prompt.roles) == len(prompt.words) + 1 == len(one.slots)
        assert prompt.roles[0] in ("BOS", "0")
        assert float(one.metric(one.run.logits[-1])) > 0.9
        assert one.target.value == pytest.approx(
            float(one.run.logits[-1] @ one.logit_weights), rel=1e-3
        )
    train, held = (
        {one.words for one in prompts(task, split, 20)} for split in ("train", "held_out")
    )
    assert not train & held


def test_the_gradient_is_that_of_the_metric() -> None:
    """Against a finite difference: an error node pushed a little in the free model."""
    one = one_of("ioi")
    gradient = free_gradients(one)[one.run.place(1, "mlp")]
    end = len(one.run.tokens) - 1
    push = 1e-2 * gradient[end] / gradient[end].norm()
    edited = one.run.edited([Add(Node("error", 1, "mlp", end), push)])
    slope = float(edited.value(one.target) - one.target.value) / 1e-2
    assert slope == pytest.approx(float(gradient[end].norm()), rel=0.05)


def test_with_norms_held_only_the_direction_of_the_final_norm_is_left() -> None:
    """At the last MLP's output it is what the target reads; with norms free it is not."""
    one = one_of("ioi")
    held, free = (free_gradients(one, hold_norms=hold)[-1][-1] for hold in (True, False))
    weights = one.run.weights
    read = weights.final_norm.pull(one.logit_weights @ weights.unembedding)
    torch.testing.assert_close(held, read / one.run.final_scale[-1], rtol=1e-4, atol=1e-4)
    assert float((free - held).norm()) > 0.1 * float(held.norm())


def test_a_gate_leaves_as_many_nodes_as_wanted() -> None:
    one = one_of("ioi", "lorsa")
    found = gated_scores(one, "absolute", [20, 100, 400])
    left = [sum(int((part > 0).sum()) for part in scores.values()) for scores in found]
    assert left == pytest.approx([20, 100, 400], rel=0.2)
    signed = gated_scores(one, "signed", [20])[0]
    assert sum(int((part > 0).sum()) for part in signed.values()) == pytest.approx(20, rel=0.2)
    differ = [bool(((signed[part] > 0) != (found[0][part] > 0)).any()) for part in signed]
    assert any(differ)


def test_ungated_scores_are_those_of_a_trace() -> None:
    one = one_of("induction")
    scores = ungated_scores(one)
    nodes = trace(one.target, progress=False).nodes
    rows = nodes.loc[nodes["kind"].isin(["feature", "head"])]
    for layer, sublayer, pos, index, ungated in rows[
        ["layer", "sublayer", "pos", "index", "ungated"]
    ].itertuples(index=False):
        assert float(scores[layer, sublayer, "nodes"][pos, index]) == pytest.approx(
            abs(ungated), abs=1e-3
        )


def test_influence_is_of_active_nodes_and_errors() -> None:
    one = one_of("greater_than", "lorsa")
    active, found = active_nodes(values_of(one.run)), influence_of_nodes(one)
    assert sum(float(part.sum()) for part in found.values()) > 0
    for part, score in found.items():
        assert not score[~active[part]].any()
        assert part[2] != "error" or score.any()


def test_as_many_nodes_are_kept_as_asked_for() -> None:
    active = {(0, "mlp", "nodes"): torch.tensor([[True, True, False, True]])}
    scores = {(0, "mlp", "nodes"): torch.tensor([[3.0, 1.0, 2.0, 1.0]])}
    kept = strongest_nodes(scores, active, 2)
    assert kept[0, "mlp", "nodes"].tolist() == [[True, True, True, False]]
    assert size_of(kept, active) == 2
    assert size_of(strongest_nodes({p: 0 * s for p, s in scores.items()}, active, 2), active) == 0


def test_an_average_is_over_prompts_where_a_node_was_active() -> None:
    one = one_of("greater_than")
    average = Average(len(ROLES["greater_than"]))
    active = active_nodes(values_of(one.run))
    for factor in (1.0, 3.0):
        average.add(one, {part: factor * mask.float() for part, mask in active.items()})
    mean = placed(average.mean(), one.slots)
    for part, mask in active.items():
        assert torch.equal(mean[part], 2.0 * mask)


def test_keeping_all_is_the_model_and_keeping_nothing_is_the_mean() -> None:
    model = bundled("lorsa")
    train = [asked(model, "ioi", one) for one in prompts("ioi", "train", 4)]
    one = one_of("ioi", "lorsa")
    reference = placed(reference_values([*train, one], len(ROLES["ioi"])), one.slots)
    active = active_nodes(values_of(one.run))
    everything = {part: torch.ones_like(mask) for part, mask in active.items()}
    nothing = {part: ~mask for part, mask in everything.items()}
    own = values_of(one.run)
    whole, empty = values_alone(one, [everything, nothing], reference)
    same = values_alone(one, [nothing], own)[0]
    assert whole == pytest.approx(one.target.value, rel=1e-3)
    assert same == pytest.approx(one.target.value, rel=1e-3)
    assert abs(empty) < 0.5 * whole


def test_good_rules_beat_chance() -> None:
    found = measure("ioi", "heads", "neurons", Settings(4, 4, 60))
    rules = found["rules"]
    for rule in ("gate, absolute", "ungated"):
        assert rules[rule]["0.1"][0] > 0.8 > 0.6 > rules["random"]["0.1"][0]
        assert rules[rule]["complement"][0] < 0.1 < 0.3 < rules["random"]["complement"][0]
    assert 0 < rules["default, in 5 %"]["share"] <= rules["default, union"]["share"] < 1
    mean = means_of_rules({"one": found, "two": found})
    assert mean["random"]["0.1"] == pytest.approx(rules["random"]["0.1"][0])


def test_chance_takes_nodes_that_are_seldom_active_as_often_as_others() -> None:
    """A number a node and role, 0 where it never was active; not a mean of draws, which tells."""
    model = bundled("lorsa")
    with torch.no_grad():
        learned = Learned(model, "ioi", Settings(1, 4, 4), influence=False)
    random_scores, seen = learned.scores[RANDOM], learned.averages[RANDOM].count
    places = [random_scores[part] for part in random_scores]
    counts = torch.cat([seen[part].flatten() for part in random_scores])
    drawn = torch.cat([one.flatten() for one in places])
    assert torch.equal(drawn > 0, counts > 0)
    often, seldom = drawn[counts > 2], drawn[(counts > 0) & (counts <= 2)]
    assert min(len(often), len(seldom)) > 300
    for some in (often, seldom):
        assert abs(float((some > 0.9).float().mean()) - 0.1) < 0.05
        assert abs(float(some.mean()) - 0.5) < 0.05


def test_intervals_are_of_the_ratio_of_means() -> None:
    empty, whole = np.zeros(40), np.linspace(1, 3, 40)
    share, low, high = ratio_interval(0.5 * whole, empty, whole)
    assert (share, low, high) == pytest.approx((0.5, 0.5, 0.5))
    noisy = ratio_interval(np.where(np.arange(40) % 2, whole, 0), empty, whole)
    assert noisy[1] < noisy[0] < noisy[2]


def test_predictions_are_ranked_against_the_free_model() -> None:
    found = correlations(one_of("ioi"))
    held = "… with norms held"
    assert set(found) == {"attribution", "ungated", "gradient × activation", held}
    assert found[held] != found["gradient × activation"]
    assert found["gradient × activation"] > 0.3
    assert found["attribution"] > 0.2
    assert found["attribution"] != found["ungated"]


def test_neighbours_lower_a_feature_more_than_others() -> None:
    """And neighbours of another ranking, the weakest, do not."""
    model, task = bundled(), "greater_than"
    seen = [asked(model, task, one) for one in prompts(task, "train", 8)]
    feature = strongest_features(seen, 1)[0]
    near = in_neighbours(model, feature, 10, [one.run for one in seen])
    assert len(near) == 10
    tests = [asked(model, task, one).run for one in prompts(task, "held_out", 6)]
    rng = random.Random(0)
    cases = [drops(run, feature, list(near), rng) for run in tests]
    found = [case for case in cases if case is not None]
    assert found
    assert np.mean([mine > other for mine, other in found]) > 0.7
    assert drops(tests[0], feature, [(0, 10**6)], rng) is None
