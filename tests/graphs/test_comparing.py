"""Comparing two graphs: hand-made tables, scores by hand, order of sides, roles."""

import numpy as np
import pandas as pd
import pytest

from graphs.comparing import compare
from graphs.graph import Graph
from graphs.nodes import edge_table, node_table


def graph(
    nodes: list[tuple[str, int, int, int, float]],
    edges: list[tuple[int, int, float]],
    tokens: tuple[str, ...] = (" a", " b"),
    **meta: object,
) -> Graph:
    """A graph of (kind, layer, pos, index, attribution) and (source, target, flow)."""
    kind, layer, pos, index, attribution = (list(part) for part in zip(*nodes, strict=True))
    inner = {"neuron": "mlp", "head": "attn"}
    table = node_table(
        {
            "kind": kind,
            "layer": layer,
            "sublayer": [inner.get(one, "") for one in kind],
            "pos": pos,
            "index": index,
            "attribution": attribution,
        }
    )
    source, target, flow = (list(part) for part in zip(*edges, strict=True)) if edges else ([],) * 3
    facts = {"tokens": list(tokens), "n_layers": 2, "target": {"label": "y", "value": 4.0}}
    return Graph(table, edge_table(source, target, flow), {**facts, **meta})


A = graph(
    [
        ("token", -1, 0, 7, 4.0),
        ("head", 0, 1, 0, 3.0),
        ("neuron", 1, 1, 5, -1.0),
        ("target", 2, 1, -1, 4.0),
    ],
    [(0, 1, 3.0), (1, 2, -1.0), (1, 3, 2.0)],
)
B = graph(
    [
        ("token", -1, 0, 8, 2.0),
        ("head", 0, 1, 0, 1.0),
        ("neuron", 1, 0, 5, 1.0),
        ("neuron", 1, 1, 6, 2.0),
        ("target", 2, 1, -1, 4.0),
    ],
    [(0, 1, 1.0), (1, 4, 1.0), (0, 2, 0.5)],
)


def test_tables_by_hand() -> None:
    both = compare(A, B)
    where = dict(zip(both.nodes["name"], both.nodes["where"], strict=True))
    assert where == {
        "token@0": "both",  # whatever the token is
        "L0.head 0@1": "both",
        "L1.n5@1": "a",
        "L1.n5@0": "b",
        "L1.n6@1": "b",
        "target": "both",
    }
    head = both.shared[both.shared["name"].eq("L0.head 0@1")].iloc[0]
    assert (head["a"], head["b"]) == (3.0, 1.0)
    assert both.only_a["name"].tolist() == ["L1.n5@1"]
    assert both.only_b["name"].tolist() == ["L1.n6@1", "L1.n5@0"]
    edges = both.edges.set_index(["source", "target"])["where"].to_dict()
    assert edges == {
        ("token@0", "L0.head 0@1"): "both",
        ("L0.head 0@1", "L1.n5@1"): "a",
        ("L0.head 0@1", "target"): "both",
        ("token@0", "L1.n5@0"): "b",
    }


def test_scores_by_hand() -> None:
    """Nodes: head 3/4 against 1/4, n5@1 1/4 against 0, n5@0 0 against 1/4, n6 0 against 1/2."""
    scores = compare(A, B).scores
    nodes, edges = scores.loc["nodes"], scores.loc["edges"]
    assert (nodes["both"], nodes["only_a"], nodes["only_b"]) == (1, 1, 2)
    assert nodes["jaccard"] == 1 / 4
    assert nodes["weighted"] == pytest.approx((1 / 4) / (3 / 4 + 1 / 4 + 1 / 4 + 1 / 2))
    assert nodes["cosine"] == pytest.approx(3 * 1 / np.sqrt(10 * 6))
    assert edges["jaccard"] == 2 / 4
    assert edges["weighted"] == pytest.approx((2.5 * 0.4 / 2.5 + 1 / 3) / (0.5 + 1 / 6 + 0.4 + 0.2))


def test_opposite_signs_share_nothing() -> None:
    other = graph(
        [
            (*row[:4], -row[4])
            for row in zip(
                *(A.nodes[c] for c in ("kind", "layer", "pos", "index", "attribution")), strict=True
            )
        ],
        [],
    )
    scores = compare(A, other).scores.loc["nodes"]
    assert (scores["jaccard"], scores["weighted"], scores["cosine"]) == (
        1.0,
        0.0,
        pytest.approx(-1),
    )


def test_scale_and_sides_do_not_matter() -> None:
    nodes = A.nodes.assign(attribution=A.nodes["attribution"] * 7)
    larger = Graph(nodes, A.edges, A.meta)
    assert compare(A, larger).scores.loc["nodes", "weighted"] == pytest.approx(1)
    one, other = compare(A, B), compare(B, A)
    columns = ["jaccard", "weighted", "cosine"]
    pd.testing.assert_frame_equal(one.scores[columns], other.scores[columns])
    assert one.only_a["name"].tolist() == other.only_b["name"].tolist()


def test_roles_lay_positions_together() -> None:
    longer = graph(
        [("head", 0, 2, 0, 3.0), ("neuron", 1, 2, 5, -1.0), ("target", 2, 2, -1, 4.0)],
        [(0, 1, -1.0)],
        tokens=(" a", " b", " c"),
    )
    with pytest.raises(ValueError, match="2 tokens in a and 3 tokens in b"):
        compare(A, longer)
    named = compare(A, longer, roles=({"END": -1}, {"END": -1}))
    assert named.scores.loc["nodes", "jaccard"] == 1.0
    assert "L0.head 0@END" in named.nodes["name"].tolist()
    wrong = compare(A, longer, roles=({"END": -1}, {"END": 0}))
    assert wrong.scores.loc["nodes", "jaccard"] == 0.0
    assert compare(A, longer, roles="pooled").scores.loc["nodes", "jaccard"] == 1.0
    pooled = compare(A, B, roles="pooled")
    assert set(pooled.nodes["place"]) == {""}
    assert pooled.nodes.set_index("name").loc["L1.n5", "where"] == "both"


def test_means_meet_by_the_names_of_roles() -> None:
    one = graph([("head", 0, 0, 1, 1.0), ("target", 2, 1, -1, 4.0)], [], roles=["S1", "END"])
    other = graph([("head", 0, 1, 1, 1.0), ("target", 2, 0, -1, 4.0)], [], roles=["END", "S1"])
    assert compare(one, other).scores.loc["nodes", "jaccard"] == 1.0


def test_empty_circuits_have_no_overlap_to_speak_of() -> None:
    empty = graph([("target", 2, 1, -1, 4.0)], [])
    assert compare(empty, empty).scores["jaccard"].isna().all()
    assert compare(A, empty).scores.loc["nodes", "jaccard"] == 0.0
    assert "jaccard" in repr(compare(A, B)) and "L0.head 0@1" in repr(compare(A, B))


def test_pruned_and_itself() -> None:
    same = compare(A, A)
    assert (same.nodes["where"] == "both").all() and (same.scores["weighted"] == 1).all()
