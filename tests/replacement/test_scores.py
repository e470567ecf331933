"""Attention scores as targets: their values by hand, what each side reads, and what is refused."""

import copy
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from attribution.flow import flow_edges
from attribution.sweep import sweep
from circuits import trace
from replacement.edits import Node, free_knock_outs
from replacement.layers import Lorsa
from replacement.model import ReplacementModel
from replacement.run import Run
from replacement.scores import SIDES
from replacement.target import Target
from tests.hooked import hooked_pass, lorsa_sides
from tests.samples import CASES, HEADS, LEARNED, SHAPES, Case, random_gpt2, random_ids, random_run

EXACT = 1e-9
MIXED = LEARNED[2]
"""Lorsa with a window in layers 0 and 2, heads in layer 1."""


def visible_scores(run: Run) -> list[tuple[int, int, int, int]]:
    """Return every (layer, head, query, key) of a run that can be asked for."""
    found = []
    for layer in range(run.weights.n_layers):
        heads = run.weights.query_key(layer)
        pairs = heads.visible(len(run.tokens)).nonzero().tolist()
        found += [(layer, head, *pair) for head in range(heads.n_heads) for pair in pairs]
    return found


def some_scores(run: Run) -> list[tuple[int, int, int, int]]:
    """Return a dozen of them, spread over layers, heads and positions."""
    found = visible_scores(run)
    return found[:: max(1, round(len(found) / 12))]


# ------------------------------------------------------------------------------- values


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("by_width", [False, True])
def test_a_score_is_that_of_hugging_faces_weights(by_width: bool, by_layer: bool) -> None:
    """scale · q · k with both of GPT-2's switches: 1/√d_head or 1, and 1/(layer + 1) or 1."""
    plain = random_gpt2()
    config = copy.deepcopy(plain.config)
    config.scale_attn_weights, config.scale_attn_by_inverse_layer_idx = by_width, by_layer
    model = GPT2LMHeadModel(config).double().eval()
    model.load_state_dict(plain.state_dict())
    run = ReplacementModel(model).run([1, 2, 3, 4])
    width = config.n_embd // config.n_head
    packed = packed_by_hooks(model, run.token_ids)
    for layer, head, query, key in some_scores(run):
        q, k, _ = packed[layer].view(4, 3, config.n_head, width).unbind(1)
        scale = (width**-0.5 if by_width else 1) / (layer + 1 if by_layer else 1)
        expected = scale * float(q[query, head] @ k[key, head])
        found = run.attention_score(layer, head, query, key).value
        assert found == pytest.approx(expected, abs=EXACT)


def packed_by_hooks(model: Any, token_ids: Tensor) -> list[Tensor]:
    """Return queries, keys and values of every layer, as one packed matrix made them."""
    seen: list[Tensor] = []
    handles = [
        block.attn.c_attn.register_forward_hook(lambda _, __, out: seen.append(out[0].detach()))
        for block in model.transformer.h
    ]
    model(token_ids[None])
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("case", [HEADS[0], *LEARNED], ids=str)
def test_differences_of_scores_are_log_ratios_of_the_pattern(case: Case) -> None:
    """exp(score of one key - score of another) is what the softmax gave one over the other."""
    run = random_run(case)
    for layer, head, query, key in some_scores(run):
        row = run.layers[layer].attention.pattern[head, query].log()
        difference = run.attention_score(layer, head, query, key) - run.attention_score(
            layer, head, query, query
        )
        assert difference.value == pytest.approx(float(row[key] - row[query]), abs=EXACT)


@pytest.mark.parametrize("case", [HEADS[6], LEARNED[3]], ids=str)
def test_a_contrast_weighs_the_other_keys_as_the_softmax_does(case: Case) -> None:
    """log p(key) - Σ p(other) / (1 - p(key)) · log p(other); a key alone is refused."""
    run = random_run(case)
    for layer, head, query, key in some_scores(run):
        row = run.layers[layer].attention.pattern[head, query]
        others = [pos for pos in range(len(row)) if pos != key and row[pos] > 0]
        if not others:
            with pytest.raises(ValueError, match="nothing to contrast it with"):
                run.attention_score(layer, head, query, key, contrast=True)
            continue
        target = run.attention_score(layer, head, query, key, contrast=True)
        weights = row[others] / row[others].sum()
        expected = float(row[key].log() - (weights * row[others].log()).sum())
        assert target.value == pytest.approx(expected, abs=EXACT)
        assert target.label == f"contrast(L{layer}.h{head} {query}→{key})"
        assert len(target.terms) == 1 + len(others)


@pytest.mark.parametrize("case", LEARNED, ids=str)
def test_scores_of_lorsa_are_those_of_its_query_key_heads(case: Case) -> None:
    """By hand: bias, q/k norm, rotary and grouped keys; with SAEs heads' scores are the heads'."""
    run = random_run(case)
    seen = hooked_pass(random_gpt2(SHAPES[case.shape], case.seed), run.token_ids, {}, {})
    n_lorsa = 0
    for layer, head, query, key in some_scores(run):
        lorsa = run.weights.layers[layer].attention
        if isinstance(lorsa, Lorsa):
            sides, _ = lorsa_sides(lorsa, seen.normed[layer, "attn"])
            expected = lorsa.query_key.scale * sides.query[head, query] @ sides.key[head, key]
            found = run.attention_score(layer, head, query, key).value
            assert found == pytest.approx(float(expected), abs=EXACT)
            n_lorsa += 1
    assert (n_lorsa > 0) == ("lorsa" in case.attention)


def test_a_query_key_head_is_shared_by_a_group() -> None:
    """Lorsa head i looks where query-key head i // group does, so that many heads can be asked."""
    lorsa = random_run(LEARNED[0]).weights.layers[0].attention
    assert isinstance(lorsa, Lorsa)
    assert (lorsa.query_key.n_heads, lorsa.group, lorsa.n_features) == (4, 3, 12)
    assert lorsa.pattern_of(torch.arange(12)).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


# ------------------------------------------------------------------------------- sides


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_side_has_the_score_as_its_value(case: Case) -> None:
    """value = Σ seed · residual + bias for query, key and both, and both is half of each."""
    run = random_run(case)
    for place in some_scores(run)[::2]:
        made = {side: run.attention_score(*place, side=side) for side in SIDES}
        for target in made.values():
            reads = sum(
                float(seed.vector @ run.residuals[seed.stage][seed.pos]) for seed in target.seeds
            )
            assert target.value == made["both"].value
            assert reads + target.bias == pytest.approx(target.value, abs=EXACT)
        halves = (made["query"] + made["key"]) / 2
        assert made["both"].bias == pytest.approx(halves.bias, abs=EXACT)
        for one, two in zip(made["both"].seeds, halves.seeds, strict=True):
            assert one[:2] == two[:2]
            torch.testing.assert_close(one.vector, two.vector)
        assert run.attention_score(*place).label == made["both"].label


@pytest.mark.parametrize("case", [Case("full context", "relu"), LEARNED[3]], ids=str)
def test_a_side_reads_its_own_position_only(case: Case) -> None:
    """Nodes that write elsewhere give nothing directly; from both sides they do at both."""
    run = random_run(case)
    query, key = 6, 5
    for layer in range(run.weights.n_layers):
        at = {
            side: direct_positions(run.attention_score(layer, 1, query, key, side=side))
            for side in SIDES
        }
        assert at == {"query": {query}, "key": {key}, "both": {query, key}}


def direct_positions(target: Target) -> set[int]:
    """Return the positions of nodes, tokens and positions with a flow edge into the target."""
    run, n_pos = target.run, len(target.run.tokens)
    swept = sweep(target, run.sublayers)
    flow = flow_edges(target, run.sublayers, swept)
    places = [torch.arange(n_pos).repeat(2)]
    places += [
        layer.positions()[kept] for layer, kept in zip(run.sublayers, swept.kept(), strict=True)
    ]
    pos = torch.cat(places)
    return set(pos[flow.source[flow.target == len(pos)]].tolist())


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("case", [HEADS[0], LEARNED[1]], ids=str)
def test_a_side_is_linear_in_what_is_written_there(case: Case, side: str) -> None:
    """One seed there; straight to the score goes what is written there, and nothing else."""
    run = random_run(case)
    target = run.attention_score(1, 0, -1, 3, side=side)
    pos = {"query": 4, "key": 3}[side]
    (seed,) = target.seeds
    assert (seed.stage, seed.pos) == (2, pos)
    nothing_kept = [torch.zeros(layer.n_nodes, dtype=torch.bool) for layer in run.sublayers]
    leaves = sweep(target, run.sublayers, only=nothing_kept).leaves
    assert leaves.token.nonzero().flatten().tolist() == [pos]
    assert leaves.position.nonzero().flatten().tolist() == [pos]
    assert set(leaves.pruned.nonzero()[:, 1].tolist()) == {pos}
    assert float(leaves.token[pos]) == pytest.approx(float(seed.vector @ run.token_writes[pos]))


def test_a_position_that_asks_itself_is_both_sides() -> None:
    """query = key: two seeds at one position, each half."""
    target = random_run(HEADS[0]).attention_score(1, 0, 2, 2)
    assert [seed[:2] for seed in target.seeds] == [(2, 2), (2, 2)]
    assert trace(target, 0, progress=False).test(progress=False).deviation <= EXACT


# ------------------------------------------------------------------------------- knock-outs


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", [HEADS[3], MIXED], ids=str)
def test_traced_like_any_target(case: Case, side: str) -> None:
    """Held knock-outs do what the sweep predicts, whole and pruned, and the books are kept."""
    run = random_run(case)
    target = run.attention_score(1, 0, -1, 1, side=side)
    circuit = trace(target, 0.05, progress=False)
    assert circuit.test(progress=False).deviation <= EXACT
    assert circuit.prune(0.7).test(progress=False).deviation <= EXACT
    assert abs(circuit.explained.sum() - target.value) <= EXACT
    assert np.isfinite(circuit.test(progress=False).table["free"]).all()


def test_free_knock_outs_of_one_side_leave_the_other_as_it_was() -> None:
    """Taking the query's token out changes nothing of the key, and the other way round."""
    run = random_run(HEADS[0])
    at_query, at_key = Node("token", -1, "", 4, -1), Node("token", -1, "", 3, -1)
    change = {
        side: (
            free_knock_outs(run.attention_score(0, 0, 4, 3, side=side), [at_query, at_key])
            - run.attention_score(0, 0, 4, 3).value
        ).tolist()
        for side in SIDES
    }
    assert abs(change["query"][0]) > 1e-3 and abs(change["query"][1]) < EXACT
    assert abs(change["key"][1]) > 1e-3 and abs(change["key"][0]) < EXACT
    assert change["both"] == pytest.approx([change["query"][0], change["key"][1]], abs=EXACT)


# ------------------------------------------------------------------------------- labels, refusals


def test_labels_and_terms_say_which_score() -> None:
    run = random_run(MIXED)
    assert run.attention_score(1, 2, -1, 0).label == "score(L1.h2 3→0)"
    assert run.attention_score(0, 1, 2, 1, side="key").label == "score(L0.h1 2→1, key side)"
    assert {run.attention_score(1, 2, -1, 0, side=side).pos for side in SIDES} == {3}
    assert run.attention_score(1, 2, -1, 0, contrast=True).pos == 3
    (term,) = run.attention_score(1, 2, -1, 0, side="query").terms
    assert (term.kind, term.layer, term.pos, term.index, term.key) == (
        "attention_score",
        1,
        3,
        2,
        0,
    )
    assert (term.side, term.sublayer) == ("query", "attn")
    assert run.attention_score(1, np.int64(2), torch.tensor(3), np.int64(0)).value == pytest.approx(
        run.attention_score(1, 2, 3, 0).value
    )


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda run: run.attention_score(1, 0, 1, 2), ValueError, "1 does not see position 2. Give a"),
    (lambda run: run.attention_score(0, 0, 3, 1), ValueError, r"3 .* 1 \(a window of 2 keys\)"),
    (lambda run: run.attention_score(1, 3, 2, 1), IndexError, "layer 1 has 3 query-key heads"),
    (lambda run: run.attention_score(0, 4, 2, 1), IndexError, "layer 0 has 4 query-key heads"),
    (lambda run: run.attention_score(0, -1, 2, 1), IndexError, r"attention_score\(head=-1\)"),
    (lambda run: run.attention_score(0, 1.5, 2, 1), IndexError, r"attention_score\(head=1\.5\)"),
    (lambda run: run.attention_score(3, 0, 2, 1), IndexError, "layer 3 does not exist"),
    (lambda run: run.attention_score(0, 0, 4, 1), IndexError, "position 4 is outside the prompt"),
    (lambda run: run.attention_score(0, 0, 1, -5), IndexError, "position -5 is outside"),
    (lambda run: run.attention_score(0, 0, None, 1), TypeError, "a position is a whole number"),
    (lambda run: run.attention_score(1, 0, 2, 1, side="q"), ValueError, "one of query, key, both"),
    (lambda run: run.attention_score(1, 0, 2, 1, side=None), ValueError, r"side=None\): one of"),
    (lambda run: run.feature(1, 0, 0, sublayer="attn"), ValueError, "layer 1 has features in"),
    (lambda run: run.feature(1, 0, 0, sublayer="mix"), ValueError, r"feature\(sublayer='mix'\)"),
    (lambda run: run.feature(0, 0, 12, sublayer="attn"), IndexError, "layer 0 has 12 Lorsa heads"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "message"), WRONG)
def test_what_does_not_exist_is_refused(
    make: Any, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named, with what would fit; without the checks of annotations that tests run under."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(kind, match=message):
        make(random_run(MIXED))


def test_a_window_lets_the_keys_within_it_be_asked() -> None:
    run = random_run(MIXED)
    assert [place[2:] for place in visible_scores(run) if place[:2] == (0, 0)] == [
        (0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3),
    ]  # fmt: skip
    for place in visible_scores(run):
        assert np.isfinite(run.attention_score(*place).value)
    assert random_ids(SHAPES[MIXED.shape], MIXED.seed) == run.token_ids.tolist()
