"""From a graph to a smaller one that still adds up."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from graphs.graph import Graph
from graphs.nodes import INTERIOR, LEAVES, SOURCES


@dataclass(frozen=True)
class _Kept:
    """Which rows of both tables stay."""

    nodes: np.ndarray
    edges: np.ndarray


def prune(graph: Graph, share: int | float = 0.8) -> Graph:
    """The graph of the strongest nodes and edges; what was removed is booked at those that stay.

    1. Nodes: the smallest set of interior nodes, by |attribution|, that holds ``share`` of their
       sum of |attribution|.
    2. Edges: the smallest set, by |flow|, that holds ``share`` of the sum of |flow| *over all edges
       given*; those between nodes that stay are kept. Ranking before nodes are chosen is what makes
       pruning monotone: among the remaining edges alone, a strong edge of one more node could push
       out an edge that a smaller share had kept.
    3. What dangles goes, until nothing does: an interior node needs an edge in and one out, a token
       or position one out. The target stays.
    4. Error, bias, pruned and switch rows stay if their |attribution| reaches that of the weakest
       interior node kept.

    Every removed edge moves into ``in_pruned`` of its reader and ``out_pruned`` of its writer, so
    both conservation laws still hold. Equal strengths are ranked by row. A larger share keeps
    everything a smaller one does (steps 1 and 2 take beginnings of fixed rankings, and step 3
    leaves the union of all parts that support themselves); 1 keeps everything that does not dangle.
    ``meta["pruned"]`` is the share, the product of shares where a pruned graph is pruned again.

    Raises ValueError for a share that is not above 0 and at most 1.

    >>> from graphs.example import worked_example
    >>> small = prune(worked_example(), 0.8)
    >>> small.nodes[["in_pruned", "out_pruned"]].to_dict("index")[3]
    {'in_pruned': 0.0, 'out_pruned': 0.0}
    >>> float(small.explained().sum())
    16.0
    """
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(
            f"prune: share = {share!r}; it must be above 0 and at most 1: the part of all "
            "|attribution| that the kept nodes hold together. For 80 % write share=0.8."
        )
    kept = _selection(graph, float(share))
    meta = {**graph.meta, "pruned": float(share) * graph.meta.get("pruned", 1.0)}
    return Graph(_booked(graph, kept).loc[kept.nodes], graph.edges.loc[kept.edges], meta)


def _selection(graph: Graph, share: float) -> _Kept:
    interior, leaf = graph.is_kind(*INTERIOR), graph.is_kind(*LEAVES)
    strength = np.abs(graph.column("attribution"))
    writer, reader = graph.ends()

    nodes = ~leaf
    nodes[interior] = _strongest(strength[interior], share)
    edges = _strongest(np.abs(np.asarray(graph.edges["flow"])), share)
    nodes, edges = _supported(graph, nodes, edges & nodes[writer] & nodes[reader])

    weakest = strength[interior & nodes].min(initial=np.inf)
    return _Kept(nodes | leaf & (strength >= (0.0 if share == 1 else weakest)), edges)


def _strongest(strength: np.ndarray, share: float) -> np.ndarray:
    """Which entries form the smallest set that holds this share of the sum; for share 1, all."""
    if share == 1 or not len(strength):
        return np.ones(len(strength), dtype=bool)
    order = np.argsort(-strength, kind="stable")
    held = np.cumsum(strength[order])
    count = int(np.searchsorted(held, share * held[-1])) + 1 if held[-1] > 0 else 0
    kept = np.zeros(len(strength), dtype=bool)
    kept[order[:count]] = True
    return kept


def _supported(graph: Graph, nodes: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest part of the kept rows in which nothing dangles."""
    writer, reader = graph.ends()
    needs_in = graph.is_kind(*INTERIOR)
    needs_out = graph.is_kind(*INTERIOR, *SOURCES)
    while True:
        has_out = np.bincount(writer[edges], minlength=nodes.size) > 0
        has_in = np.bincount(reader[edges], minlength=nodes.size) > 0
        stays = nodes & (has_out | ~needs_out) & (has_in | ~needs_in)
        if (stays == nodes).all():
            return nodes, edges
        nodes = stays
        edges = edges & stays[writer] & stays[reader]


def _booked(graph: Graph, kept: _Kept) -> pd.DataFrame:
    """The node table with the flow of every removed edge added at both its ends."""
    nodes, cut = graph.nodes, ~kept.edges
    flow = np.asarray(graph.edges["flow"])[cut]
    for rows, column in zip(graph.ends(), ("out_pruned", "in_pruned"), strict=True):
        nodes[column] += np.bincount(rows[cut], flow, len(nodes))
    return nodes


def at_most(graph: Graph, max_nodes: int, max_edges: int) -> Graph:
    """The graph of at most so many strongest nodes and edges; what goes is booked as by ``prune``.

    ``max_nodes`` counts interior nodes. What dangles goes too.

    >>> from graphs.example import worked_example
    >>> at_most(worked_example(), 2, 100)
    Graph(4 nodes, 6 edges: y = 16)
    """
    interior = graph.is_kind(*INTERIOR)
    flow = np.abs(np.asarray(graph.edges["flow"]))
    if interior.sum() <= max_nodes and flow.size <= max_edges:
        return graph
    strength = np.where(interior, np.abs(graph.column("attribution")), np.inf)
    others = int((~interior).sum())
    nodes, edges = np.zeros(interior.size, dtype=bool), np.zeros(flow.size, dtype=bool)
    nodes[np.argsort(-strength, kind="stable")[: others + max_nodes]] = True
    writer, reader = graph.ends()
    between = np.flatnonzero(nodes[writer] & nodes[reader])
    edges[between[np.argsort(-flow[between], kind="stable")[:max_edges]]] = True
    kept = _Kept(*_supported(graph, nodes, edges))
    return Graph(_booked(graph, kept).loc[kept.nodes], graph.edges.loc[kept.edges], graph.meta)
