"""From the circuits of some prompts to sums over them, node by node and edge by edge.

A node of many prompts is a (kind, layer, sublayer, role, index). What a prompt has at several
positions of one role is added up first; then sums, sums of squares and counts over prompts are all
that is kept, so that a thousand prompts take the space of their different nodes.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from graphs.graph import Graph
from graphs.nodes import SOURCES

KEYS = ["kind", "layer", "sublayer", "role", "index"]
SUMMED = [
    "activation",
    "attribution",
    "ungated",
    "in_bias",
    "in_error",
    "in_pruned",
    "in_switch",
    "out_pruned",
]


class Sums(NamedTuple):
    """Sums over some prompts."""

    nodes: pd.DataFrame
    """id, the keys, n (prompts that have it), the summed columns, square (of attribution)."""
    edges: pd.DataFrame
    """source, target (ids), via, n, flow, square."""


def sums_of(graphs: list[Graph], roles: list[list[str]]) -> Sums:
    """Return the sums over graphs, each with the role of every position ("" to leave it out).

    What is left out is booked as pruned at what it gave to or got from.
    """
    tables = [_keyed(graph, names) for graph, names in zip(graphs, roles, strict=True)]
    sizes = [len(table) for table in tables]
    nodes = pd.concat(tables, ignore_index=True)
    nodes["prompt"] = np.repeat(np.arange(len(graphs)), sizes)
    out = nodes["role"].eq("").to_numpy() & nodes["kind"].ne("target").to_numpy()
    edges, rows = _edges(graphs, sizes)
    source, target = rows
    flow = edges["flow"].to_numpy()
    for inner, outer, column in ((target, source, "in_pruned"), (source, target, "out_pruned")):
        cut = out[outer] & ~out[inner]
        nodes[column] += np.bincount(inner[cut], flow[cut], len(nodes))
    ids = _ids(nodes)
    stays = ~out[source] & ~out[target]
    whole: Any = edges.assign(source=ids[source], target=ids[target])[stays]
    kept: Any = nodes.assign(id=ids)[~out]
    return Sums(_summed_nodes(kept), _summed_edges(whole))


def _keyed(graph: Graph, names: list[str]) -> pd.DataFrame:
    """The node table with roles for positions; rows in order of number, as the trace made them."""
    nodes = graph.nodes.reset_index(drop=True)
    by_pos = np.array([*names, ""], dtype=object)  # the last for rows without a position
    index = nodes["index"].where(~nodes["kind"].isin(SOURCES), -1)
    keyed = nodes[["kind", "layer", "sublayer", *SUMMED]].assign(index=index)
    return keyed.assign(role=by_pos[nodes["pos"].to_numpy()])


def _edges(graphs: list[Graph], sizes: list[int]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """All edges, and the rows of their ends in the joined node table."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    ends = [graph.ends() for graph in graphs]
    rows = [
        np.concatenate([start + end[side] for start, end in zip(starts, ends, strict=True)])
        for side in (0, 1)
    ]
    tables = [
        graph.edges[["via", "flow"]].assign(prompt=number) for number, graph in enumerate(graphs)
    ]
    return pd.concat(tables, ignore_index=True), rows


def _ids(nodes: pd.DataFrame) -> np.ndarray:
    """A number for every key, the same in all blocks and processes."""
    group = nodes.groupby(KEYS, sort=False).ngroup().to_numpy()
    first = np.unique(group, return_index=True)[1]
    keys = nodes[KEYS].iloc[first].itertuples(index=False, name=None)
    return np.array([_id(key) for key in keys], dtype=np.int64)[group]


def _id(key: tuple[Any, ...]) -> int:
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _summed_nodes(nodes: pd.DataFrame) -> pd.DataFrame:
    each: Any = nodes.groupby(["id", "prompt"], sort=True)[SUMMED].sum()
    each["square"] = each["attribution"] ** 2
    by_node = each.groupby("id", sort=True)
    total = by_node.sum()
    total.insert(0, "n", by_node.size())
    keys: Any = nodes.drop_duplicates("id").set_index("id")[KEYS]
    return keys.join(total).sort_index().reset_index()


def _summed_edges(edges: pd.DataFrame) -> pd.DataFrame:
    keys = ["source", "target", "via"]
    each: Any = edges.groupby([*keys, "prompt"], sort=True)[["flow"]].sum()
    each["square"] = each["flow"] ** 2
    by_edge = each.groupby(keys, sort=True)
    total = by_edge.sum()
    total.insert(0, "n", by_edge.size())
    return total.reset_index()
