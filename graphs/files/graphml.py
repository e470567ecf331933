"""GraphML, as Gephi, yEd, Cytoscape and networkx read it."""

import io
import os
from pathlib import Path
from typing import Any

from graphs.files.atomic import write_whole
from graphs.graph import Graph
from graphs.names import node_names, readable
from graphs.networks import to_networkx


def write_graphml(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path, once the graph is written there; every column is an attribute.

    Nodes have their number as id and their name as attribute ``name``. Text is written readable,
    since XML has no place for control characters; an ``effect`` that is not known is left out.
    """
    import networkx

    network = to_networkx(graph)
    names = dict(zip(graph.nodes.index.tolist(), node_names(graph), strict=True))
    plain = type(network)(**_plain(network.graph))
    plain.add_nodes_from(
        (node, {"name": readable(names[node]), **_plain(row)})
        for node, row in network.nodes(data=True)
    )
    if isinstance(network, networkx.MultiDiGraph):
        several = network.edges(keys=True, data=True)
        plain.add_edges_from((*ends, _plain(row)) for *ends, row in several)
    else:
        plain.add_edges_from((*ends, _plain(row)) for *ends, row in network.edges(data=True))
    buffer = io.BytesIO()
    networkx.write_graphml_xml(plain, buffer)
    return write_whole(path, buffer.getvalue())


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: readable(value) if isinstance(value, str) else value
        for name, value in row.items()
        if value == value
    }
