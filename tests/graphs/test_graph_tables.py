"""The tables: what is refused, that a graph never changes, and that it adds up."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given

import graphs
from graphs.example import worked_example
from graphs.graph import Graph
from graphs.nodes import EDGE_COLUMNS, NODE_COLUMNS, edge_table, node_table
from graphs.order import topological_order
from tests.graphs import samples

EXACT = 1e-12


def test_public_names() -> None:
    names = "Graph KINDS prune strongest_paths to_networkx read_graph save svg summary"
    assert sorted(graphs.__all__) == sorted(names.split())
    assert all(hasattr(graphs, name) for name in graphs.__all__)


def _changed(column: str, values: object, rows: slice = slice(0, 1)) -> object:
    def change(nodes: pd.DataFrame, edges: pd.DataFrame, _meta: dict) -> None:
        table = nodes if column in NODE_COLUMNS else edges
        table.loc[table.index[rows], column] = values

    return change


def _retyped(table: str, column: str, kind: object) -> object:
    def change(nodes: pd.DataFrame, edges: pd.DataFrame, _meta: dict) -> None:
        chosen = nodes if table == "nodes" else edges
        chosen[column] = chosen[column].astype(kind)

    return change


def _without(table: str, column: str) -> object:
    return lambda nodes, edges, _meta: (nodes if table == "nodes" else edges).pop(column)


def _twice_numbered(nodes: pd.DataFrame, _edges: pd.DataFrame, _meta: dict) -> None:
    nodes.index = pd.Index([0, 1, 2, 3, 3, 5])


def _negative_number(nodes: pd.DataFrame, _edges: pd.DataFrame, _meta: dict) -> None:
    nodes.index = pd.Index([-2, 1, 2, 3, 4, 5])


def _text_numbers(nodes: pd.DataFrame, _edges: pd.DataFrame, _meta: dict) -> None:
    nodes.index = pd.Index(list("abcdef"))


def _more_columns(nodes: pd.DataFrame, _edges: pd.DataFrame, _meta: dict) -> None:
    nodes["colour"] = "red"


def _leaf_with_edges(nodes: pd.DataFrame, _edges: pd.DataFrame, _meta: dict) -> None:
    nodes.loc[1, "kind"] = "error"


REFUSED = [
    (_changed("kind", "thing"), "nodes.kind holds"),
    (_changed("kind", "target"), "exactly one"),
    (_changed("kind", "token", slice(5, 6)), "exactly one"),
    (_changed("sublayer", "middle"), "nodes.sublayer"),
    (_changed("pos", 1), "between -1 and 0"),
    (_changed("layer", 3), "between -1 and 2"),
    (_changed("attribution", np.nan), "nodes.attribution holds nan"),
    (_changed("flow", np.inf), "edges.flow holds inf"),
    (_changed("effect", -np.inf), "edges.effect holds -inf"),
    (_changed("source", 77), "name nodes .77."),
    (_changed("source", 5), "source of an edge is node 5 of kind 'target'"),
    (_changed("target", 0), "target of an edge is node 0 of kind 'token'"),
    (_changed("target", 2), "occurs twice"),
    (_changed("source", 3, slice(8, 9)), "circle"),
    (_changed("via", ""), "edges.via is empty"),
    (_retyped("nodes", "pos", float), "whole numbers"),
    (_retyped("nodes", "activation", bool), "must hold numbers"),
    (_retyped("nodes", "token", object), None),
    (_retyped("nodes", "activation", "float32"), None),
    (_retyped("nodes", "layer", "int32"), None),
    (_without("nodes", "in_bias"), "missing in_bias"),
    (_without("edges", "via"), "missing via"),
    (_twice_numbered, "occur once"),
    (_negative_number, "0 or more"),
    (_text_numbers, "nodes.index is of type"),
    (_more_columns, "unknown colour"),
    (_leaf_with_edges, "kind 'error'"),
    (lambda _nodes, _edges, meta: meta.pop("tokens"), '"tokens"'),
    (lambda _nodes, _edges, meta: meta.update(n_layers=True), '"n_layers"'),
    (lambda _nodes, _edges, meta: meta["target"].pop("label"), '"label"'),
    (lambda _nodes, _edges, meta: meta["target"].update(value="1"), '"value"'),
    (lambda _nodes, _edges, meta: meta.update(checks={"closure": np.nan}), "JSON cannot"),
    (lambda _nodes, _edges, meta: meta.update(threshold=np.float32(1)), "JSON cannot"),
    (lambda _nodes, _edges, meta: meta.update(token_ids=(1, 2)), None),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_refused_and_what_is_not(change, message: str | None) -> None:
    good = worked_example()
    nodes, edges, meta = good.nodes, good.edges, good.meta
    change(nodes, edges, meta)
    if message is None:
        assert Graph(nodes, edges, meta).conservation() == 0
        return
    with pytest.raises(ValueError, match=message) as caught:
        Graph(nodes, edges, meta)
    assert str(caught.value).startswith("Graph: ")
    assert "\n" not in str(caught.value)


def test_types_of_the_columns() -> None:
    graph = worked_example()
    assert graph.nodes.index.name == "node"
    assert graph.nodes.index.dtype == np.int64
    for table, columns in ((graph.nodes, NODE_COLUMNS), (graph.edges, EDGE_COLUMNS)):
        assert list(table.columns) == list(columns)
        wanted = {str: "str", int: "int64", float: "float64"}
        assert [str(table[name].dtype) for name in columns] == [wanted[k] for k in columns.values()]


def test_a_graph_never_changes() -> None:
    given_nodes, given_edges = worked_example().nodes, worked_example().edges
    graph = Graph(given_nodes, given_edges, worked_example().meta)
    given_nodes.loc[0, "attribution"] = 99.0
    nodes, edges = graph.nodes, graph.edges
    nodes.loc[1, "attribution"] = 99.0
    nodes["attribution"] = 0.0
    nodes.index.name = "other"
    edges.loc[0, "flow"] = 99.0
    graph.meta["target"]["value"] = 99.0
    assert graph.nodes["attribution"].tolist() == [16.0, 4.0, 8.0, 8.0, 4.0, 16.0]
    assert graph.nodes.index.name == "node"
    assert graph.edges["flow"].tolist()[0] == 4.0
    assert graph.value == 16.0
    with pytest.raises(AttributeError):
        graph.nodes = nodes  # type: ignore[misc]


@given(samples.recipes())
def test_both_laws_hold_and_the_parts_add_up(recipe: samples.Recipe) -> None:
    graph = recipe.graph()
    assert graph.conservation() < EXACT
    parts = graph.explained()
    assert list(parts.index) == ["token", "position", "error", "bias", "pruned"]
    assert abs(parts.sum() - graph.value) <= EXACT * (parts.abs().sum() + 1)


@pytest.mark.parametrize(
    "column", ["in_bias", "in_error", "in_pruned", "out_pruned", "attribution"]
)
def test_conservation_sees_a_wrong_term(column: str) -> None:
    nodes = worked_example().nodes
    nodes.loc[3, column] += 4.0
    wrong = Graph(nodes, worked_example().edges, worked_example().meta)
    assert wrong.conservation() == pytest.approx(4 / 16)  # the terms of node 3 are below 16


def test_conservation_sees_a_wrong_edge_at_either_end() -> None:
    edges = worked_example().edges
    edges.loc[0, "flow"] += 16.0
    wrong = Graph(worked_example().nodes, edges, worked_example().meta)
    assert wrong.conservation() == pytest.approx(16 / 20)  # node 1: 20 came in, not 4


def test_a_lone_attribution_breaks_the_law_completely() -> None:
    nodes = node_table({"kind": ["feature", "target"], "attribution": [1.0, 0.0]})
    meta = {"tokens": [], "n_layers": 0, "target": {"label": "", "value": 0.0}}
    assert Graph(nodes, edge_table([], [], []), meta).conservation() == 1.0


def test_topological_order_stops_at_a_circle() -> None:
    source, target = np.array([0, 1, 2, 2]), np.array([1, 2, 1, 3])
    assert topological_order(source, target, 4).tolist() == [0]
    assert sorted(topological_order(source[[0, 1, 3]], target[[0, 1, 3]], 4).tolist()) == [
        0,
        1,
        2,
        3,
    ]


def test_tables_refuse_unknown_columns() -> None:
    with pytest.raises(ValueError, match=r"drop what is not known .colour"):
        node_table({"kind": ["target"], "colour": ["red"]})
    with pytest.raises(ValueError, match="node_table"):
        node_table({"layer": [1]})
