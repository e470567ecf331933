"""From one or two graphs to the data block of the page: plain lists, numbers as text or base64."""

import base64
from typing import Any

import numpy as np
import pandas as pd

from graphs.files.foreign import metadata_of
from graphs.graph import Graph
from graphs.names import node_names
from graphs.nodes import INTERIOR, SOURCES
from graphs.order import topological_order
from graphs.pruning import at_most
from graphs.view.prompt import explained_position

_CONNECTED = (*INTERIOR, *SOURCES, "target")
_COLUMNS = (
    "activation",
    "attribution",
    "in_bias",
    "in_error",
    "in_pruned",
    "in_switch",
    "out_pruned",
)
_SAME = ["kind", "layer", "sublayer", "pos", "index", "token"]
_FACTS = ("model", "layers", "prompt", "threshold", "edges", "dtype", "pruned")
_CROWDED = 40


def page_data(graph: Graph, other: Graph | None, max_nodes: int, max_edges: int) -> dict[str, Any]:
    """What ``graphs/view/page/data.js`` reads.

    Nodes come in topological order, edges sorted by reader. Of two graphs it is their union: nodes
    are the same where kind, layer, sublayer, position and index are (of
    tokens, their text too), and every column has the numbers of both, 0 where one lacks the row.
    """
    given = [graph] if other is None else [graph, other]
    small = [at_most(one, max_nodes, max_edges) for one in given]
    nodes, edges = _united(small, max_nodes)
    rank = np.empty(len(nodes), dtype=np.int64)
    order = topological_order(edges["source"].to_numpy(), edges["target"].to_numpy(), len(nodes))
    rank[order] = np.arange(len(nodes))
    nodes = nodes.iloc[order]
    edges = edges.assign(source=rank[edges["source"]], target=rank[edges["target"]])
    edges = edges.sort_values(["target", "source"], kind="stable")
    interior = int(nodes["kind"].isin(INTERIOR).sum())
    return {
        "tokens": [one.meta["tokens"] for one in given],
        "n_layers": graph.meta["n_layers"],
        "targets": [one.meta["target"]["label"] for one in given],
        "values": [one.value for one in given],
        "explained_at": explained_position(graph),
        "share": 1.0 if interior <= _CROWDED or "pruned" in graph.meta else 0.8,
        "left_out": _left_out(given, small),
        "facts": _facts(given),
        "nodes": {
            "id": nodes["id"].tolist(),
            "kind": nodes["kind"].tolist(),
            "layer": nodes["layer"].tolist(),
            "sub": nodes["sublayer"].tolist(),
            "pos": nodes["pos"].tolist(),
            "index": nodes["index"].tolist(),
            "token": nodes["token"].tolist(),
            "name": nodes["name"].tolist(),
            "label": nodes["label"].tolist(),
            "side": nodes["side"].tolist(),
        },
        "columns": {
            name: [_short(nodes[f"{name} {side}"]) for side in range(len(given))]
            for name in _COLUMNS
        },
        "edges": _edges(edges, len(nodes), len(given)),
        "groups": [{**one, "open": False} for one in graph.meta.get("groups", [])],
        "pins": graph.meta.get("pins", []),
        "details": graph.meta.get("details", {}),
        "metadata": metadata_of(graph),
    }


def _united(graphs: list[Graph], max_errors: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables of the union; edges between row numbers. Of errors the strongest so many."""
    tables = []
    for graph in graphs:
        table = graph.nodes.assign(name=node_names(graph), id=graph.nodes.index)
        strength = np.where(graph.is_kind("error"), np.abs(graph.column("attribution")), -1.0)
        strongest = np.argsort(-strength, kind="stable")[:max_errors]
        drawn = graph.is_kind(*_CONNECTED)
        drawn[strongest] |= strength[strongest] >= 0
        table = table.loc[drawn].copy()
        table["token"] = table["token"].where(table["kind"].eq("token"), "")
        table.loc[table["kind"].eq("target"), "index"] = -1  # targets are compared as such
        table["again"] = table.groupby(_SAME).cumcount()
        tables.append(table)
    key = [*_SAME, "again"]
    first = tables[0][[*key, "name", "id", "label", *_COLUMNS]]
    if len(tables) == 1:
        nodes = first.rename(columns={name: f"{name} 0" for name in _COLUMNS}).assign(side=0)
    else:
        nodes = first.merge(
            tables[1][[*key, "name", "id", "label", *_COLUMNS]],
            on=key,
            how="outer",
            suffixes=(" 0", " 1"),
            indicator="side",
            sort=False,
        )
        sides = {"both": 0, "left_only": 1, "right_only": 2}
        nodes["side"] = nodes["side"].astype(str).map(sides)
        for name in ("name", "label"):
            nodes[name] = nodes[f"{name} 0"].where(nodes["side"] != 2, nodes[f"{name} 1"])
        free = 1 + np.arange(len(nodes)) + max(int(table["id"].max()) for table in tables)
        nodes["id"] = nodes["id 0"].where(nodes["side"] != 2, pd.Series(free, index=nodes.index))
        nodes = nodes.fillna({f"{name} {side}": 0.0 for name in _COLUMNS for side in (0, 1)})
    nodes = nodes.astype({"id": np.int64}).reset_index(drop=True)
    if len(graphs) == 1:
        rows = [dict(zip(nodes["id"], nodes.index, strict=True))]
    else:
        rows = [
            {
                int(number): row
                for row, number in zip(nodes.index, nodes[f"id {side}"], strict=True)
                if number == number
            }
            for side in (0, 1)
        ]
    return nodes, _united_edges(graphs, rows)


def _united_edges(graphs: list[Graph], rows: list[dict[int, int]]) -> pd.DataFrame:
    key = ["source", "target", "via"]
    tables = []
    for side, (graph, row_of) in enumerate(zip(graphs, rows, strict=True)):
        edges = pd.DataFrame(graph.edges[[*key, "flow"]])
        for end in ("source", "target"):
            numbers = [row_of[number] for number in edges[end].tolist()]
            edges[end] = np.array(numbers, dtype=np.int64)
        # an effect without a flow (edges="both") moves nothing
        edges = edges.loc[edges["flow"] != 0].groupby(key, sort=False, as_index=False).sum()
        tables.append(edges.rename(columns={"flow": f"flow {side}"}))
    if len(tables) == 1:
        return tables[0].assign(side=0)
    both = tables[0].merge(tables[1], on=key, how="outer", indicator="side", sort=False)
    both["side"] = both["side"].astype(str).map({"both": 0, "left_only": 1, "right_only": 2})
    return both.fillna({"flow 0": 0.0, "flow 1": 0.0})


def _edges(edges: pd.DataFrame, n_nodes: int, sides: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "into": np.bincount(edges["target"], minlength=n_nodes).tolist(),
        "wide": n_nodes > 1 << 16,
        "source": _base64(np.asarray(edges["source"]), "<u4" if n_nodes > 1 << 16 else "<u2"),
        "flow": [_base64(np.asarray(edges[f"flow {side}"]), "<f4") for side in range(sides)],
    }
    if bool(np.any(edges["via"] != "residual")):
        found["via"] = edges["via"].tolist()
    if sides > 1:
        found["side"] = edges["side"].tolist()
    return found


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def _short(values: pd.Series) -> list[float]:
    """Seven digits, as float32 has."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def _left_out(given: list[Graph], small: list[Graph]) -> str:
    parts = []
    for whole, left in zip(given, small, strict=True):
        nodes = int(whole.is_kind(*INTERIOR).sum()), int(left.is_kind(*INTERIOR).sum())
        edges = len(whole.edges), len(left.edges)
        if nodes[0] != nodes[1] or edges[0] != edges[1]:
            parts.append(
                f"this page holds the strongest {nodes[1]:,} of {nodes[0]:,} nodes and "
                f"{edges[1]:,} of {edges[0]:,} edges; the rest is in the sums as pruned"
            )
    return "; ".join(parts)


def _facts(graphs: list[Graph]) -> list[list[str]]:
    facts = []
    for side, graph in zip("ab", graphs, strict=False):
        prefix = f"{side}: " if len(graphs) > 1 else ""
        known = {name: graph.meta[name] for name in _FACTS if graph.meta.get(name) is not None}
        for name, value in known.items():
            text = (
                ", ".join(f"{part} {what}" for part, what in value.items())
                if isinstance(value, dict)
                else str(value)
            )
            facts.append([f"{prefix}{name}", text])
        facts.append([f"{prefix}conservation", f"{graph.conservation():.1e}"])
    return facts
