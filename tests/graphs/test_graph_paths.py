"""Paths against enumeration, and networkx against the tables."""

from itertools import pairwise

import networkx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies

from graphs.example import worked_example
from graphs.graph import Graph
from graphs.networks import to_networkx
from graphs.nodes import LEAVES, SOURCES, edge_table, node_table
from graphs.paths import strongest_paths
from tests.graphs import samples


def enumerated(graph: Graph) -> dict[tuple[int, ...], float]:
    """Every path from a source to the target with its flow, one at a time."""
    network = networkx.DiGraph(zip(graph.edges["source"], graph.edges["target"], strict=True))
    network.add_nodes_from(graph.nodes.index)
    flow = graph.edges.groupby(["source", "target"])["flow"].sum().to_dict()
    attribution = graph.nodes["attribution"].to_dict()
    found = {}
    for source in graph.nodes.index[graph.is_kind(*SOURCES)]:
        for path in networkx.all_simple_paths(network, source, graph.target):
            weight = flow[path[0], path[1]]
            for writer, reader in pairwise(path[1:]):
                weight *= flow[writer, reader] / attribution[writer]
            found[tuple(path)] = weight
    return found


@given(samples.recipes(), strategies.integers(1, 8))
def test_paths_are_those_of_enumeration(recipe: samples.Recipe, k: int) -> None:
    graph = recipe.graph()
    everything = enumerated(graph)
    paths = strongest_paths(graph, k)
    assert len(paths) == min(k, len(everything))
    for path, flow in zip(paths["path"], paths["flow"], strict=True):
        assert everything[tuple(path)] == pytest.approx(flow, rel=1e-9)
    best = sorted((abs(flow) for flow in everything.values()), reverse=True)[:k]
    np.testing.assert_allclose(paths["flow"].abs(), best, rtol=1e-9)


def test_all_paths_of_a_graph_without_constants_carry_the_value() -> None:
    paths = strongest_paths(worked_example(), k=100)
    assert len(paths) == 9
    assert paths["flow"].sum() == pytest.approx(16.0)
    assert len({tuple(path) for path in paths["path"]}) == 9


def test_text_names_every_node() -> None:
    graph = samples.circuit_like()
    texts = strongest_paths(graph, 200)["text"]
    assert texts.str.fullmatch(r'("[^"]*"|position)@\d+ → (.* → )?" Mary" - " John"').all()
    assert texts.str.contains(r"L\d\.head \d@\d+").any()
    assert texts.str.contains(r"L\d\.f\d+@\d+").any()


def two_edges(via: str) -> Graph:
    nodes = node_table({"kind": ["token", "target"], "attribution": [3.0, 3.0]})
    edges = edge_table([0, 0], [1, 1], [1.0, 2.0], via=["residual", via])
    return Graph(nodes, edges, {"tokens": [], "n_layers": 1, "target": {"label": "y", "value": 3}})


def test_edges_that_share_both_ends_are_added() -> None:
    paths = strongest_paths(two_edges("q"), 5)
    assert paths["flow"].tolist() == [3.0]
    assert paths["path"].tolist() == [[0, 1]]


def test_no_path() -> None:
    graph = Graph(worked_example().nodes, worked_example().edges.iloc[:0], worked_example().meta)
    paths = strongest_paths(graph)
    assert len(paths) == 0
    assert [str(kind) for kind in paths.dtypes] == ["object", "str", "float64"]


def test_a_node_of_no_attribution_carries_no_path() -> None:
    nodes = worked_example().nodes
    nodes.loc[2, "attribution"] = 0.0
    paths = strongest_paths(Graph(nodes, worked_example().edges, worked_example().meta), 100)
    assert len(paths) == 6
    assert not any(2 in path for path in paths["path"])


def test_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="k = 0"):
        strongest_paths(worked_example(), 0)


def test_networkx_has_every_column() -> None:
    graph = samples.circuit_like()
    network = to_networkx(graph)
    assert type(network) is networkx.DiGraph
    rows = graph.nodes.loc[~graph.is_kind(*LEAVES)]
    assert len(rows) < len(graph.nodes)
    back = pd.DataFrame.from_dict(dict(network.nodes(data=True)), orient="index")
    pd.testing.assert_frame_equal(back, rows, check_names=False)
    assert network.number_of_edges() == len(graph.edges)
    for writer, reader, _, flow, _ in graph.edges.itertuples(index=False):
        assert network.edges[writer, reader]["flow"] == flow
    assert {type(value) for _, data in network.nodes(data=True) for value in data.values()} == {
        str, int, float,
    }  # fmt: skip
    assert network.graph["target"] == '" Mary" - " John"'
    assert network.graph["value"] == graph.value


def test_networkx_keys_by_via_where_it_must() -> None:
    network = to_networkx(two_edges("q"))
    assert isinstance(network, networkx.MultiDiGraph)
    assert network.edges[0, 1, "q"]["flow"] == 2.0
    assert network.edges[0, 1, "residual"]["flow"] == 1.0
    one = Graph(two_edges("q").nodes, two_edges("q").edges.iloc[1:], two_edges("q").meta)
    assert to_networkx(one).is_multigraph()
