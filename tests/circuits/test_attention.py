"""`circuit.attention(node)`: where a head moved its value from, and the pairs behind its scores."""

import numpy as np
import pytest
import torch

from circuits import Circuit, load, read, trace
from graphs.names import node_names
from tests.samples import HEADS, LEARNED, REPLACED, Case, random_run

READ = [HEADS[0], HEADS[6], LEARNED[1], LEARNED[2], LEARNED[3], REPLACED[0]]


def traced(case: Case, threshold: float = 0.0) -> Circuit:
    return trace(random_run(case).logit(3), threshold, progress=False)


def heads_of(circuit: Circuit) -> list[int]:
    nodes = circuit.nodes
    return nodes.index[nodes["kind"].isin(["head", "lorsa"])].tolist()


@pytest.mark.parametrize("case", READ, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_what_was_moved_from_the_keys_is_the_attribution(case: Case, threshold: float) -> None:
    circuit = traced(case, threshold)
    largest = circuit.nodes["attribution"].abs().max()
    for node in heads_of(circuit)[-4:]:
        found = circuit.attention(node, keys=1)
        assert found.attribution == pytest.approx(
            circuit.nodes.loc[node, "attribution"], rel=1e-9, abs=1e-12 * largest
        )
        assert found.keys["moved"].sum() == pytest.approx(found.attribution, rel=1e-12)
        assert found.keys["share"].sum() == pytest.approx(1)
        assert found.keys.index.max() == found.query == circuit.nodes.loc[node, "pos"]


@pytest.mark.parametrize("case", READ, ids=str)
def test_scores_are_those_behind_the_pattern(case: Case) -> None:
    """softmax(score) = pattern, and the contrast's sign says more or less than the others."""
    circuit = traced(case)
    for node in heads_of(circuit)[-3:]:
        keys = circuit.attention(node, keys=1).keys
        score = torch.tensor(keys["score"].to_numpy())
        assert torch.allclose(score.softmax(0), torch.tensor(keys["pattern"].to_numpy()))
        for key in keys.index:
            rest = keys.drop(key)
            if len(rest):
                mean = np.average(rest["score"], weights=rest["pattern"])
                expected = keys.loc[key, "score"] - mean
                assert keys.loc[key, "contrast"] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_pairs_are_of_the_keys_moved_from_most() -> None:
    circuit = traced(HEADS[0])
    node = heads_of(circuit)[-1]
    found = circuit.attention(node, keys=3)
    order = found.keys["moved"].abs().sort_values(ascending=False).index.tolist()
    assert list(found.pairs) == order[: len(found.pairs)] == list(found.contrasts)
    for key, pairs in found.pairs.items():
        assert pairs.value == pytest.approx(found.keys.loc[key, "score"], rel=1e-9)
        assert pairs.matrix.sum() == pytest.approx(pairs.value)
        contrast = found.contrasts[key]
        assert contrast.value == pytest.approx(found.keys.loc[key, "contrast"], rel=1e-9)
        assert contrast.matrix.sum() == pytest.approx(contrast.value)


def test_a_node_is_given_by_number_or_name() -> None:
    circuit = traced(HEADS[0])
    node = heads_of(circuit)[0]
    name = node_names(circuit.data)[circuit.nodes.index.get_loc(node)]
    assert circuit.attention(name).name == circuit.attention(node).name == name
    assert repr(circuit.attention(node)).startswith(f"{name}: attribution ")


def test_after_pruning_it_is_still_the_attribution_of_the_table() -> None:
    circuit = traced(HEADS[0], 0.01).prune(0.6)
    for node in heads_of(circuit):
        found = circuit.attention(node, keys=0)
        assert found.attribution == pytest.approx(circuit.nodes.loc[node, "attribution"], rel=1e-9)


def test_a_query_that_sees_one_key_has_no_contrast() -> None:
    circuit = trace(random_run(HEADS[0]).logit(3, pos=0), 0.0, progress=False)
    found = circuit.attention(heads_of(circuit)[0])
    assert list(found.pairs) == [0]
    assert not found.contrasts
    assert np.isnan(found.keys["contrast"]).all()
    assert "rather than elsewhere" not in repr(found)


def test_bad_requests_say_what_fits(tmp_path) -> None:
    circuit = traced(Case("two layers", "relu"), 0.01)
    head = heads_of(circuit)[0]
    with pytest.raises(KeyError, match=r"no such node.*strongest heads: \d+ \(L"):
        circuit.attention(10**6)
    with pytest.raises(KeyError, match="L9"):
        circuit.attention("L9.head 9@9")
    token = int(circuit.nodes.index[circuit.nodes["kind"].eq("token")][0])
    with pytest.raises(ValueError, match="is a token, and only heads"):
        circuit.attention(token)
    assert not circuit.attention(head, keys=0).pairs
    for wrong in ({"keys": -1}, {"max_nodes": 0}, {"keys": True}):
        with pytest.raises(ValueError, match=r"a whole number, [01] or more"):
            circuit.attention(head, **wrong)
    path = circuit.save(tmp_path / "saved.circuit")
    with pytest.raises(ValueError, match=r"circuit\.attention\(\.\.\.\).*no model.*attach"):
        read(path).attention(head)


def test_features_of_attentions_output_read_through_several_patterns() -> None:
    circuit = traced(Case("two layers", "relu", attention="sae"))
    features = circuit.nodes.loc[circuit.nodes["sublayer"].eq("attn")]
    node = int(features.index[features["kind"].eq("feature")][0])
    with pytest.raises(ValueError, match="is a feature, and only heads and Lorsa heads"):
        circuit.attention(node)


def test_a_saved_score_opens_and_attaches_again(tmp_path) -> None:
    """A circuit of a score, of a contrast, of a replacement run: written, read, tested again."""
    model = load("four-tasks", attention="heads")
    for errors in (True, False):
        run = model.run("apple Oliver tower siege lamp apple Oliver tower", errors=errors)
        for contrast in (False, True):
            target = run.attention_score(1, 0, -1, 4, side="key", contrast=contrast)
            circuit = trace(target, progress=False)
            again = read(circuit.save(tmp_path / "score.circuit")).attach(model)
            assert again.run.errors is errors
            assert again.value == circuit.value
            assert again.test(progress=False).deviation < 1e-4
