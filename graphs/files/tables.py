"""Tables: CSV through pandas, parquet through DuckDB."""

import os
import tempfile
from pathlib import Path

import pandas as pd

from graphs.files.atomic import write_whole
from graphs.graph import Graph
from graphs.names import node_names


def write_csv(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path of the edge table; the node table is beside it, as NAME.nodes.csv.

    The edge table has the names of both ends, so that it reads by itself.
    """
    nodes, edges = _tables(graph)
    write_whole(_beside(path), nodes.to_csv(index=False).encode("utf-8", "backslashreplace"))
    return write_whole(path, edges.to_csv(index=False).encode("utf-8", "backslashreplace"))


def write_parquet(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path of the edge table; the node table is beside it, as NAME.nodes.parquet."""
    import duckdb  # not in the time `circuits show` takes to start

    nodes, edges = _tables(graph)
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        draft = Path(folder) / "table"
        for table, place in ((nodes, _beside(path)), (edges, path)):
            for name in table.columns[table.dtypes.eq("str")]:
                table[name] = [_whole_signs(text) for text in table[name]]
            connection.from_df(table).write_parquet(str(draft), compression="zstd")
            write_whole(place, draft.read_bytes())
    return Path(path)


def _tables(graph: Graph) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Nodes with their numbers and names, and edges with the names of both ends."""
    nodes, edges = graph.nodes, graph.edges
    nodes.insert(0, "name", node_names(graph))
    for place, end in enumerate(("source", "target")):
        edges.insert(2 * place + 1, f"{end}_name", nodes["name"].loc[edges[end]].to_numpy())
    return nodes.reset_index(), edges


def _beside(path: str | os.PathLike[str]) -> Path:
    return Path(path).with_suffix(f".nodes{Path(path).suffix}")


def _whole_signs(text: str) -> str:
    """Half a surrogate pair, which no file of text can hold, as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
