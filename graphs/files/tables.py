"""Tables: CSV and parquet, through pandas."""

import io
import os
from pathlib import Path

from graphs.files.atomic import write_whole
from graphs.graph import Graph
from graphs.names import node_names


def write_csv(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path of the edge table; the node table is beside it, as NAME.nodes.csv.

    The edge table has the names of both ends, so that it reads by itself.
    """
    names = dict(zip(graph.nodes.index, node_names(graph), strict=True))
    edges = graph.edges
    for place, end in enumerate(("source", "target")):
        edges.insert(2 * place + 1, f"{end}_name", [names[node] for node in edges[end].tolist()])
    nodes = graph.nodes
    nodes.insert(0, "name", node_names(graph))
    beside = Path(path).with_suffix(f".nodes{Path(path).suffix}")
    write_whole(beside, nodes.to_csv().encode("utf-8", "backslashreplace"))
    return write_whole(path, edges.to_csv(index=False).encode("utf-8", "backslashreplace"))


def write_parquet(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path of the edge table; the node table is beside it, as NAME.nodes.parquet."""
    beside = Path(path).with_suffix(f".nodes{Path(path).suffix}")
    for table, place in ((graph.nodes, beside), (graph.edges, path)):
        buffer = io.BytesIO()
        table.to_parquet(buffer)
        write_whole(place, buffer.getvalue())
    return Path(path)
