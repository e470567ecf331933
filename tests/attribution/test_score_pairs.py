"""Identity 5: the pairs of nodes behind an attention score are exact, and sum to it."""

import dataclasses

import numpy as np
import pytest
import torch

from attribution.score_pairs import ScorePairs, score_pairs
from replacement.run import Run
from replacement.scores import rest_weights
from tests.samples import CASES, HEADS, LEARNED, Case, random_run

EXACT = 1e-9


def deepest(run: Run) -> tuple[int, int, int, int]:
    """Return layer, head, query and key of a score that most of the model writes into."""
    layer = run.weights.n_layers - 1
    query = len(run.tokens) - 1
    return layer, run.weights.query_key(layer).n_heads - 1, query, max(0, query - 1)


def off_by(pairs: ScorePairs) -> float:
    """Return by what share of all |pairs| their sum misses the score."""
    return abs(pairs.matrix.sum() - pairs.value) / np.abs(pairs.matrix).sum()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("max_nodes", [2, 1000])
def test_pairs_sum_to_every_score(case: Case, max_nodes: int) -> None:
    """Also where most nodes are lumped together as pruned, and where a score is of layer 0."""
    run = random_run(case)
    layer, head, query, key = deepest(run)
    for at in ((layer, head, query, key), (layer, 0, query, 0), (0, 0, query, query)):
        if not run.weights.query_key(at[0]).visible(len(run.tokens))[at[2], at[3]]:
            continue
        pairs = score_pairs(run, *at, max_nodes=max_nodes)
        assert pairs.value == pytest.approx(run.attention_score(*at).value, rel=1e-12)
        assert off_by(pairs) <= EXACT
        assert np.allclose(pairs.query["amount"], pairs.matrix.sum(1), rtol=0, atol=1e-12)
        assert np.allclose(pairs.key["amount"], pairs.matrix.sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [HEADS[0], LEARNED[1], LEARNED[3]], ids=str)
def test_a_pair_is_what_the_score_loses_without_it(case: Case) -> None:
    """By hand: both sides' vectors without one writer each, denominators held."""
    run = random_run(case)
    layer, head, query, key = deepest(run)
    pairs = score_pairs(run, layer, head, query, key, max_nodes=1000)
    heads, block = run.weights.query_key(layer), run.weights.layers[layer]
    scale = run.layers[layer].attention.scale
    sides = {}
    for name, pos, held in (("query", query, heads.held_query), ("key", key, heads.held_key)):
        stream = run.residuals[2 * layer]
        whole = block.attention_norm.apply(stream, scale)[pos]
        side = held(head, pos, whole)
        less = stream.clone()
        less[pos] -= run.token_writes[pos]
        changed = block.attention_norm.apply(less, scale)[pos]
        sides[name] = side.read @ (whole - changed)
    amount = heads.scale * float(sides["query"] @ sides["key"])
    row = int(np.flatnonzero(pairs.query["kind"] == "token")[0])
    column = int(np.flatnonzero(pairs.key["kind"] == "token")[0])
    assert pairs.matrix[row, column] == pytest.approx(amount, rel=1e-9)


@pytest.mark.parametrize("case", [HEADS[0], LEARNED[0], LEARNED[2]], ids=str)
def test_marginals_are_the_attributions_of_the_direct_paths(case: Case) -> None:
    """A row's sum is what the node adds to the score with the other side fixed, by a trace."""
    from circuits import trace

    run = random_run(case)
    layer, head, query, key = deepest(run)
    pairs = score_pairs(run, layer, head, query, key, max_nodes=1000)
    for side, table in (("query", pairs.query), ("key", pairs.key)):
        target = run.attention_score(layer, head, query, key, side=side)
        circuit = trace(target, threshold=0, progress=False)
        into = circuit.edges[circuit.edges["target"].eq(circuit.data.target)]
        direct = circuit.nodes.loc[into["source"]].assign(flow=into["flow"].to_numpy())
        places = ["kind", "layer", "sublayer", "index"]
        found = table.set_index(places)["amount"]
        for place, flow in zip(
            direct[places].itertuples(index=False, name=None), direct["flow"], strict=True
        ):
            assert found.loc[[place]].item() == pytest.approx(flow, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_a_contrast_sums_to_the_difference_of_scores(case: Case) -> None:
    """The weighted sum of scores over all keys; at the largest key it is positive."""
    run = random_run(case)
    layer, head, query, _ = deepest(run)
    pattern = run.layers[layer].attention.pattern[head, query]
    key = int(pattern.argmax())
    weights = rest_weights(pattern.log(), key)
    pairs = score_pairs(run, layer, head, query, weights, max_nodes=1000)
    by_hand = sum(
        weight * run.attention_score(layer, head, query, pos).value
        for pos, weight in weights.items()
    )
    assert pairs.value == pytest.approx(by_hand, rel=1e-9)
    assert off_by(pairs) <= EXACT
    if len(weights) == 1:
        with pytest.raises(ValueError, match="nothing to contrast it with"):
            run.attention_score(layer, head, query, key, contrast=True)
        return
    target = run.attention_score(layer, head, query, key, contrast=True)
    assert target.value == pytest.approx(by_hand, rel=1e-9)
    assert pairs.value > 0


def test_a_contrast_is_the_log_odds_of_the_key_plus_the_entropy_of_the_rest() -> None:
    """An independent formula for its value: log(A / (1 - A)) + H(softmax without the key)."""
    for case in (HEADS[0], LEARNED[1], LEARNED[3]):
        run = random_run(case)
        layer, head, query, key = deepest(run)
        pattern = run.layers[layer].attention.pattern[head, query]
        rest = torch.tensor([-weight for weight in rest_weights(pattern.log(), key).values()])[1:]
        share = float(pattern[key])
        expected = np.log(share / (1 - share)) - float((rest * rest.log()).sum())
        target = run.attention_score(layer, head, query, key, contrast=True)
        assert target.value == pytest.approx(expected, rel=1e-6)


def test_what_all_keys_share_is_one_row_of_a_contrast() -> None:
    run = random_run(HEADS[0])
    pattern = run.layers[1].attention.pattern[0, -1]
    pairs = score_pairs(
        run, 1, 0, len(run.tokens) - 1, rest_weights(pattern.log(), 2), max_nodes=1000
    )
    same = ["kind", "layer", "sublayer", "index"]
    assert not pairs.key.duplicated(same).any()
    assert len(pairs.key) < len(run.tokens) * (len(pairs.query) - 1)


def test_rest_weights_are_the_softmax_without_the_key() -> None:
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    weights = rest_weights(scores, 2)
    alone = scores[[0, 1, 3]].softmax(0).tolist()
    assert weights[2] == 1
    assert [-weights[pos] for pos in (0, 1, 3)] == pytest.approx(alone, rel=1e-12)
    assert rest_weights(torch.tensor([-torch.inf, 1.0]), 1) == {1: 1.0}
    sure = rest_weights(torch.tensor([0.0, 3000.0, 2500.0]), 1)
    assert sure == {1: 1.0, 2: -1.0}, "no underflow where a head is sure"


def test_strongest_pairs_come_first_with_their_sign() -> None:
    pairs = score_pairs(random_run(HEADS[0]), 1, 0, 4, 1)
    table = pairs.strongest(1000)
    assert len(table) == pairs.matrix.size
    size = table["amount"].abs().to_numpy()
    assert (np.diff(size) <= 0).all()
    assert (table["amount"] < 0).any()
    assert (table["amount"] > 0).any()
    assert table["share"].sum() == pytest.approx(1)


@pytest.mark.parametrize("broken", ["bias", "scale", "token"])
def test_a_wrong_part_breaks_the_sum(broken: str) -> None:
    """Negative controls: the identity notices a forgotten bias, another scale, a lost writer."""
    run = random_run(HEADS[0])
    whole = run
    if broken == "bias":
        heads = run.weights.layers[1].heads
        assert heads.query_key.query_bias is not None
        changed = dataclasses.replace(heads.query_key, query_bias=None)
        block = dataclasses.replace(
            run.weights.layers[1], heads=dataclasses.replace(heads, query_key=changed)
        )
        layers = [run.weights.layers[0], block]
        run = dataclasses.replace(run, weights=dataclasses.replace(run.weights, layers=layers))
    elif broken == "scale":
        attention = dataclasses.replace(
            run.layers[1].attention, scale=1.1 * run.layers[1].attention.scale
        )
        layer = dataclasses.replace(run.layers[1], attention=attention)
        run = dataclasses.replace(run, layers=[run.layers[0], layer])
    else:
        run = dataclasses.replace(run, token_writes=0.9 * run.token_writes)
    pairs = score_pairs(run, 1, 1, 4, 3)
    true = whole.attention_score(1, 1, 4, 3).value
    assert abs(pairs.matrix.sum() - true) > 1e-3 * np.abs(pairs.matrix).sum()


def test_float32_pairs_sum_to_rounding() -> None:
    for case in (HEADS[0], LEARNED[1]):
        run = random_run(case, torch.float32)
        assert off_by(score_pairs(run, *deepest(run))) <= 1e-5


def test_arguments_are_those_of_a_score() -> None:
    run = random_run(HEADS[0])
    from_the_end = score_pairs(run, 1, 0, -1, np.int64(-2))
    assert from_the_end.label == "score(L1.h0 4→3)"
    assert len(from_the_end.query) > 5
    with pytest.raises(ValueError, match="does not see"):
        score_pairs(run, 1, 0, 2, 4)
    with pytest.raises(IndexError, match="query-key heads"):
        score_pairs(run, 1, 9, 2, 1)


def test_what_is_lumped_together_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where writers are so many that most never take part in the choice."""
    run = random_run(HEADS[0])
    monkeypatch.setattr("attribution.score_pairs.PREFILTER", 8)
    pairs = score_pairs(run, 1, 0, 4, 2, max_nodes=4)
    assert off_by(pairs) <= EXACT
    for side in (pairs.query, pairs.key):
        assert side["kind"].tolist().count("pruned") == 1
        assert side["kind"].tolist().count("bias") == 1
        assert len(side) == 6
