"""From a graph to the sparse matrix that linear algebra wants."""

import numpy as np
from scipy.sparse import csr_array

from graphs.graph import Graph


def to_matrix(graph: Graph, weight: str = "flow") -> csr_array:
    """The edges as a sparse matrix, row = who reads, column = who writes: [target, source].

    Rows and columns are the rows of the node table, in its order. ``weight`` is a column of the
    edge table, "flow" or "effect"; edges of several ``via`` between the same nodes are added.
    Raises ValueError for another column.

    >>> from graphs.example import worked_example
    >>> to_matrix(worked_example()).sum(axis=1).tolist()
    [0.0, 4.0, 8.0, 8.0, 4.0, 16.0]
    """
    if weight not in ("flow", "effect"):
        raise ValueError(f'to_matrix(weight={weight!r}): give "flow" or "effect".')
    writer, reader = graph.ends()
    size = len(graph.nodes)
    values = np.asarray(graph.edges[weight])
    return csr_array((values, (reader, writer)), shape=(size, size))
