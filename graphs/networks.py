"""From a graph to networkx."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from graphs.graph import Graph
from graphs.nodes import LEAVES

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: Graph) -> "networkx.DiGraph":
    """The graph as a networkx.DiGraph, with every column as an attribute of the node or edge.

    Nodes are node numbers; values are plain Python ones. A MultiDiGraph keyed by ``via`` where two
    edges share both ends or some ``via`` is not "residual". Rows of kind error, bias, pruned and
    switch have no edges and are left out; what they gave is in the attributes in_error, in_bias and
    in_pruned. Graph attributes: ``target`` (its label) and ``value``, and model and prompt where
    they are known.

    >>> from graphs.example import worked_example
    >>> network = to_networkx(worked_example())
    >>> network.nodes[3]["attribution"], network.edges[3, 5]["flow"], network.graph["value"]
    (8.0, 8.0, 16.0)
    """
    import networkx

    edges, meta = graph.edges, graph.meta
    facts = {name: meta[name] for name in ("model", "prompt") if isinstance(meta.get(name), str)}
    facts |= {"target": meta["target"]["label"], "value": graph.value}
    ends = ["source", "target"]
    several = bool(np.any(edges["via"] != "residual") or np.any(edges.duplicated(ends)))
    network = networkx.MultiDiGraph(**facts) if several else networkx.DiGraph(**facts)

    connected = graph.nodes.loc[~graph.is_kind(*LEAVES)]
    network.add_nodes_from(zip(connected.index.tolist(), _rows(connected), strict=True))
    keys = [edges[name].tolist() for name in (*ends, *(["via"] if several else []))]
    network.add_edges_from(zip(*keys, _rows(edges.drop(columns=ends)), strict=True))
    return network


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts of plain Python values."""
    columns = {name: table[name].tolist() for name in table.columns}
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
