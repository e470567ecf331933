"""From a graph to its strongest paths."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from graphs.graph import Graph
from graphs.names import node_names
from graphs.nodes import SOURCES
from graphs.order import topological_order


@dataclass(frozen=True)
class _Steps:
    """The edges, by row of the node table, with the factor each puts on a path that takes it."""

    writer: np.ndarray
    factor: np.ndarray
    starts: np.ndarray  # [node + 1]: the edges into a node are starts[node] : starts[node + 1]
    order: np.ndarray
    source: np.ndarray
    target: int


@dataclass(frozen=True)
class _Best:
    """The strongest beginnings of paths, by the node they end at."""

    weight: np.ndarray  # [node, rank]
    came_from: np.ndarray  # [node, rank, (node, rank)]; -1 at a source, and where there are fewer


def strongest_paths(graph: Graph, k: int = 5) -> pd.DataFrame:
    """The ``k`` strongest paths from a token or position to the target: columns path, text, flow.

    The flow of s → n1 → … → nm → target is flow[n1, s] · Π flow[n_{i+1}, n_i] / attribution[n_i]:
    at every node what came in is split over the edges out as everything that came in is. For nodes
    that are one number (features, neurons, Lorsa heads) that is exactly the amount of the target
    this path carries; for nodes that are vectors (heads, skips), whose readers may each read
    another part of them, it is the proportional share. Where several edges join two nodes their
    flows are added. A node of attribution 0 carries no path. Ranked by |flow|; equal ones by row.

    k best beginnings are kept per node, in topological order: since factors multiply, the beginning
    of a strongest path is among the strongest at every node it crosses.

    Raises ValueError for k < 1.

    >>> from graphs.example import worked_example
    >>> strongest_paths(worked_example(), k=2)[["text", "flow"]]
                                text  flow
    0  "x"@0 → L0.n1@0 → L1.n0@0 → y   4.0
    1            "x"@0 → L0.n1@0 → y   2.0
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(
            f"strongest_paths: k = {k}; it is the number of paths wanted, 1 or more. The default "
            "is 5."
        )
    steps = _steps(graph)
    best = _best_beginnings(steps, k)
    names, numbers = node_names(graph), np.asarray(graph.nodes.index)
    found = [
        (_walk_back(best, steps.target, rank), best.weight[steps.target, rank])
        for rank in range(k)
        if best.came_from[steps.target, rank, 0] >= 0
    ]
    return pd.DataFrame(
        {
            "path": pd.Series([numbers[rows].tolist() for rows, _ in found], dtype=object),
            "text": pd.Series(
                [" → ".join(names[row] for row in rows) for rows, _ in found], dtype=str
            ),
            "flow": np.array([flow for _, flow in found], dtype=np.float64),
        }
    )


def _steps(graph: Graph) -> _Steps:
    writer, reader = graph.ends()
    by_reader = np.lexsort((writer, reader))
    pairs = np.stack([reader, writer], axis=1)[by_reader]
    first = np.flatnonzero(np.append(True, (pairs[1:] != pairs[:-1]).any(axis=1))[: len(pairs)])
    flow = np.asarray(graph.edges["flow"])[by_reader]
    flow = np.add.reduceat(flow, first) if len(first) else flow
    reader, writer = pairs[first].T
    source = graph.is_kind(*SOURCES)
    through = np.where(source, 1.0, graph.column("attribution"))[writer]
    return _Steps(
        writer=writer,
        factor=np.divide(flow, through, out=np.zeros_like(flow), where=through != 0),
        starts=np.searchsorted(reader, np.arange(source.size + 1)),
        order=topological_order(writer, reader, source.size),
        source=source,
        target=int(np.argmax(graph.is_kind("target"))),
    )


def _best_beginnings(steps: _Steps, k: int) -> _Best:
    count = len(steps.source)
    weight = np.zeros((count, k))
    came_from = np.full((count, k, 2), -1)
    weight[steps.source, 0] = 1.0
    for node in steps.order:
        into = slice(steps.starts[node], steps.starts[node + 1])
        writer = steps.writer[into]
        candidates = (weight[writer] * steps.factor[into, None]).ravel()
        strongest = np.argsort(-np.abs(candidates), kind="stable")[:k]
        strongest = strongest[candidates[strongest] != 0]
        found = len(strongest)
        weight[node, :found] = candidates[strongest]
        came_from[node, :found] = np.stack([writer[strongest // k], strongest % k], axis=1)
    return _Best(weight, came_from)


def _walk_back(best: _Best, node: int, rank: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node, rank = best.came_from[node, rank].tolist()
    return path[::-1]
