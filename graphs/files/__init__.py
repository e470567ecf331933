"""Files: one format a file; the ending of a name decides which."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from graphs.files import native
from graphs.files.atomic import write_whole
from graphs.files.graphml import write_graphml
from graphs.files.neuronpedia import read_json, write_json
from graphs.files.png import write_png
from graphs.files.tables import write_csv, write_parquet
from graphs.graph import Graph
from graphs.view.page import page
from graphs.view.picture import svg


def save(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path written to; its ending decides the format.

    ======== ==========================================================================
    .circuit everything; opens again (docs/circuit_files.md)
    .html    a page to look around in, that needs nothing else
    .json    Neuronpedia's format, and everything of ours; opens again
    .svg     a picture; .png the same as pixels (needs cairosvg)
    .graphml Gephi, yEd, Cytoscape, networkx
    .csv     the edges, and beside it NAME.nodes.csv; .parquet likewise
    ======== ==========================================================================

    The file is written whole or not at all. Raises ValueError for an ending that is not known, and
    where a package that a format needs is missing.

    >>> import tempfile
    >>> from graphs.example import worked_example
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(worked_example(), folder + "/tiny.circuit").name
    'tiny.circuit'
    """
    return WRITERS[checked_ending(path)](graph, path)


def checked_ending(path: str | os.PathLike[str]) -> str:
    """The ending of a name that can be written to, before any work is done for it.

    Raises ValueError for an ending that is not known, or that needs a package that is missing.

    >>> checked_ending("tiny.SVG")
    '.svg'
    """
    ending = Path(path).suffix.lower()
    if ending not in WRITERS:
        raise ValueError(
            f"save: {os.fspath(path)!r} ends in {ending!r}. Endings known: {', '.join(WRITERS)}. "
            "The ending decides the format; .circuit and .json are those that circuits.read opens "
            "again."
        )
    if ending in NEEDS and find_spec(NEEDS[ending]) is None:
        raise ValueError(
            f"save: {ending} needs {NEEDS[ending]}, which is not installed. Install it (pip "
            f"install {NEEDS[ending]}), or save as .svg; a page (.html) has a button for PNG."
        )
    return ending


def read_file(path: str | os.PathLike[str]) -> Graph:
    """The graph in a .circuit or .json file; its ending decides.

    Raises FileNotFoundError where there is no such file, ValueError where it is not a whole and
    sound file of the format.

    >>> import tempfile
    >>> from graphs.example import worked_example
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     read_file(save(worked_example(), folder + "/tiny.json"))
    Graph(6 nodes, 13 edges: y = 16)
    """
    if Path(path).suffix.lower() != ".json" or not Path(path).is_file():
        return native.read_graph(path)
    try:
        return read_json(path)
    except ValueError as problem:
        raise ValueError(
            f"read: {os.fspath(path)!r} cannot be opened as a circuit. {problem}"
        ) from None


NEEDS = {".png": "cairosvg"}
"""Packages that are not installed with this one."""


def _write_page(graph: Graph, path: str | os.PathLike[str]) -> Path:
    return write_whole(path, page(graph).encode())


def _write_svg(graph: Graph, path: str | os.PathLike[str]) -> Path:
    return write_whole(path, svg(graph).encode())


WRITERS: dict[str, Callable[[Graph, str | os.PathLike[str]], Path]] = {
    ".circuit": native.write,
    ".html": _write_page,
    ".json": write_json,
    ".svg": _write_svg,
    ".png": write_png,
    ".graphml": write_graphml,
    ".csv": write_csv,
    ".parquet": write_parquet,
}
