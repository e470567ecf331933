"""Circuits of tasks by role: positions, what is left alone, names of heads on a known model."""

import dataclasses
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from benchmarks.role_circuits import Asked, Found, ask, find, heads_named, keep, strongest_nodes
from benchmarks.role_circuits.finding import averages
from benchmarks.role_circuits.keeping import means_over, smallest
from benchmarks.truth.compare import target_of
from benchmarks.truth.exhaustive import ComponentModel
from benchmarks.truth.programs import PROGRAMS
from circuits import load
from replacement.edits.keeping import values_of
from replacement.model import ReplacementModel

HEADS = (3, "attn", "nodes")


@cache
def bundled() -> ReplacementModel:
    return load("four-tasks", mlp="neurons", attention="heads")


@cache
def sentences(count: int = 6) -> Sequence[Asked]:
    return ask(bundled(), "ioi", count)


@cache
def found() -> Found:
    return find(bundled(), "ioi", 8)


def test_roles_are_where_their_words_are() -> None:
    for one in sentences():
        tokens = one.run.tokens
        assert tokens[0] == "<bos>"
        (s1,), (s2,), (io,) = (one.roles[name] for name in ("S1", "S2", "IO"))
        assert tokens[s1] == tokens[s2]
        assert tokens[io] == f" {one.answer}"
        assert one.roles["END"] == [len(tokens) - 1]
        assert one.roles["BOS"] == [0]
        assert sorted(pos for places in one.where.values() for pos in places) == list(
            range(len(tokens))
        )
        other = one.other.tokens
        assert [k for k, token in enumerate(tokens) if other[k] != token] == [s2]


def test_every_position_has_one_role() -> None:
    """Brackets by the depth they leave; where several roles name a position, END's name stays."""
    for task in ("bracket", "induction", "greater_than"):
        for one in ask(bundled(), task, 4):
            places = [pos for several in one.where.values() for pos in several]
            assert sorted(places) == list(range(len(one.run.tokens)))
            assert one.roles["END"] == [len(one.run.tokens) - 1]
    (one,) = ask(bundled(), "greater_than", 1)
    assert one.where["other"] == []
    assert {"lasted", "the 2", "YY"} <= set(one.roles)
    texts = ask(bundled(), "bracket", 20)
    assert {"open 1", "OPENER", "close"} <= {name for one in texts for name in one.roles}


def test_means_are_over_the_positions_of_a_role() -> None:
    """By hand: a head's write at END over prompts, and where a prompt's role is nowhere else."""
    asked = sentences()
    means = means_over(asked[1:])
    at_end = [values_of(one.run)[HEADS][one.roles["END"]][0] for one in asked[1:]]
    number = means.names.index("END")
    torch.testing.assert_close(means.values[HEADS][number], torch.stack(at_end).mean(0))
    unknown = dataclasses.replace(asked[0], roles={"NEW": [3]})
    assert set(means.slots(unknown).tolist()) == {means.names.index("other")}


def test_the_target_is_the_difference_of_logits() -> None:
    for one in sentences():
        logits, ids = one.run.logits[-1], one.run.token_ids
        (io,), (s1,) = one.roles["IO"], one.roles["S1"]
        wanted = logits[ids[io]] - logits[ids[s1]]
        assert one.target.value == pytest.approx(float(wanted), rel=1e-4)


def test_everything_is_the_model_and_nothing_is_nothing() -> None:
    asked = sentences()
    heads = [
        ("head", "attn", layer, head, role)
        for layer in range(4)
        for head in range(4)
        for role in (*asked[0].roles, "other")
    ]
    neurons = [
        ("neuron", "mlp", layer, index, role)
        for layer in range(4)
        for index in range(512)
        for role in (*asked[0].roles, "other")
    ]
    whole, none, all_heads = keep(asked[:2], means_over(asked), [heads + neurons, [], heads])
    assert whole.share == pytest.approx(1)
    assert whole.alone == pytest.approx(1, abs=1e-4)
    assert whole.complement == pytest.approx(0, abs=1e-4)
    assert none.alone == pytest.approx(0, abs=1e-6)
    assert none.complement == pytest.approx(1, abs=1e-4)
    assert 0 < all_heads.share < whole.share


def test_the_circuit_of_sentences_is_small_and_does_it_alone() -> None:
    kept = found().kept
    assert kept.share < 0.1
    assert kept.alone > 0.85
    assert kept.complement < 0.3
    assert kept.random < 0.3, "as many nodes at random are no circuit"


def test_heads_at_the_end_suppress_the_repeated_name() -> None:
    """In the bundled model what decides is taken from the subject, not given to the object."""
    heads = found().heads.set_index(["head", "role"])
    for head in ("3.2", "3.3"):
        row = heads.loc[(head, "END")]
        assert row["name"] == "suppresses S2"
        assert row["without"] < 0.9, "it is needed"


def test_the_weakest_parts_are_no_circuit() -> None:
    """Negative control: the same order the other way round keeps nothing with as many parts."""
    asked = sentences()
    written, changed, _ = averages(asked[:3], max_nodes=300)
    order, means = list(strongest_nodes(written, changed)), means_over(asked)
    strong, weak = keep(asked[3:], means, [order[:20], order[-20:]])
    assert strong.alone > 0.5 > weak.alone
    assert len(smallest(order[::-1][:40], asked[3:], means)) == 40, "none found: all are returned"


def test_other_prompts_show_what_the_counterfactual_leaves_alone() -> None:
    """Induction's query: the word at END is the same in the counterfactual, so that its head makes
    no difference there, and holding patterns hides what it does; without it nothing is left."""
    asked = ask(bundled(), "induction", 12)
    written, changed, apart = averages(asked[:8], max_nodes=300)
    assert apart is not None
    query = ("head", "attn", 0, 0, "END")
    few, more = (list(strongest_nodes(*of))[:20] for of in ((written, changed), (apart,)))
    assert query in more
    assert query not in few
    without, left = keep(asked[8:], means_over(asked), [few, more])
    assert left.alone > 0.5 > without.alone


def test_names_on_a_model_whose_heads_are_known() -> None:
    """Compiled induction: a previous-token head, and an induction head that copies."""
    program = PROGRAMS["induction"].build(count=6)
    components = ComponentModel(load(program.model, attention="heads", mlp="neurons"))
    asked = []
    for pair in program.pairs:
        target = target_of(components, pair)
        roles = {"END": [len(pair.clean) - 1]}
        asked.append(Asked(target, pair.other, roles, ""))
    parts = [("head", "attn", 0, 0, "other"), ("head", "attn", 1, 0, "END")]
    table = heads_named(asked, means_over(asked), parts).set_index("head")
    assert table.loc["0.0", "looks at"] == "previous token"
    assert table.loc["1.0", "looks at"] == "induction"
    assert table.loc["1.0", "copies"] == 1
    assert max(table["without"].tolist()) < 0.5, "both are needed"
