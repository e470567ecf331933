"""Our own file, ``.circuit``: a zip of one JSON head and one array per column; nothing is executed.

``head.json``
    ``{"format": "linear-circuits", "version": 2, "counts": {"nodes": n, "edges": m},
    "meta": {…}, "words": {…}}``
``nodes.node.npy``, ``nodes.layer.npy``, … ``edges.flow.npy``, …
    One column each, as ``numpy.save`` writes it, little-endian int64 or float64. A column of text
    (nodes.kind, edges.via, …) holds numbers into the list ``words["nodes.kind"]`` of the head.

The bytes depend on the graph alone: no times, a fixed order, and no compression (whose output
differs between zlib versions). Only ``edges.effect`` may be NaN.
"""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graphs.files.archive import array_bytes, read_archive
from graphs.files.atomic import write_whole
from graphs.graph import Graph
from graphs.nodes import EDGE_COLUMNS, NODE_COLUMNS

FORMAT = "linear-circuits"
VERSION = 2


def _with_switch(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew no contrasts, so that nothing came from switching."""
    arrays = content["arrays"]
    arrays.setdefault("nodes.in_switch", np.zeros(len(arrays.get("nodes.node", ()))))
    return content


MIGRATIONS: dict[int, Callable[[dict], dict]] = {1: _with_switch}
"""From version v to v + 1. Each takes and returns {"head": dict, "arrays": {name: array}}."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_TABLES = {"nodes": {"node": int, **NODE_COLUMNS}, "edges": EDGE_COLUMNS}


def write(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path, once the graph is written there whole; equal graphs give equal bytes.

    Raises ValueError where the path is a folder, FileNotFoundError where its folder does not exist.
    """
    return write_whole(path, to_bytes(graph))


def read_graph(path: str | os.PathLike[str]) -> Graph:
    """The graph in a .circuit file, checked as if it had been made by hand.

    Raises FileNotFoundError where there is no such file, ValueError where it is not a whole and
    sound .circuit file or was written by a newer version.

    >>> import tempfile
    >>> from graphs.example import worked_example
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     read_graph(write(worked_example(), folder + "/tiny.circuit"))
    Graph(6 nodes, 13 edges: y = 16)
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"read: there is no file {os.fspath(path)!r}. Check the name and the folder you are "
            f"in ({Path.cwd()})."
        )
    if not Path(path).is_file():
        raise ValueError(
            f"read: {os.fspath(path)!r} is not a file. Give the .circuit file inside it."
        )
    try:
        with Path(path).open("rb") as file:
            content = read_archive(file)
        return _graph(_migrated(content))
    except ValueError as problem:
        raise ValueError(
            f"read: {os.fspath(path)!r} cannot be opened as a circuit. {problem}"
        ) from None


def to_bytes(graph: Graph) -> bytes:
    """The file's content."""
    tables = {"nodes": graph.nodes.reset_index(), "edges": graph.edges}
    arrays, words = {}, {}
    for name, columns in _TABLES.items():
        for column, kind in columns.items():
            values = tables[name][column]
            if kind is str:
                values, found = pd.factorize(values.to_numpy(dtype=object))
                words[f"{name}.{column}"] = found.tolist()
            arrays[f"{name}.{column}"] = np.asarray(values, dtype="<f8" if kind is float else "<i8")
    counts = {name: len(table) for name, table in tables.items()}
    head = {
        "format": FORMAT,
        "version": VERSION,
        "counts": counts,
        "meta": graph.meta,
        "words": words,
    }
    members = {"head.json": json.dumps(head, sort_keys=True, allow_nan=False, indent=1).encode()}
    members |= {f"{name}.npy": array_bytes(array) for name, array in arrays.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # else it names the operating system
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def _migrated(content: dict[str, Any]) -> dict[str, Any]:
    head = content["head"]
    version = head.get("version")
    if head.get("format") != FORMAT or type(version) is not int or version < 1:
        raise ValueError(
            f"Its head says format {head.get('format')!r}, version {version!r}; a circuit says "
            f'"{FORMAT}" and a whole '
            "number from 1. Give a file that circuit.save wrote with the ending .circuit."
        )
    if version > VERSION:
        raise ValueError(
            f"It was written as version {version} of the format; this installation knows up to "
            f"{VERSION}. Upgrade: pip install -U linear-circuits."
        )
    for step in range(version, VERSION):
        if step not in MIGRATIONS:
            raise ValueError(
                f"It was written as version {version} of the format, and this installation "
                f"({VERSION}) cannot step from {step} to {step + 1}. Open and save it with a "
                "release in between."
            )
        content = MIGRATIONS[step](content)
    return content


def _graph(content: dict[str, Any]) -> Graph:
    head, arrays = content["head"], dict(content["arrays"])
    words, meta = head.get("words"), head.get("meta")
    if not isinstance(words, dict) or not isinstance(meta, dict):
        raise ValueError(
            'Its head lacks the dicts "words" or "meta": the file is damaged. Save the circuit '
            "again."
        )
    tables = {
        table: pd.DataFrame(
            {
                column: _column(
                    arrays.pop(f"{table}.{column}", None), words, (f"{table}.{column}", kind)
                )
                for column, kind in columns.items()
            }
        )
        for table, columns in _TABLES.items()
    }
    if arrays:
        raise ValueError(
            f"It holds arrays no circuit has: {', '.join(sorted(arrays)[:5])}. Save the circuit "
            "again."
        )
    return Graph(tables["nodes"].set_index("node"), tables["edges"], meta)


def _column(array: np.ndarray | None, words: dict[str, Any], wanted: tuple[str, type]) -> Any:
    name, kind = wanted
    expected = np.dtype("<f8" if kind is float else "<i8")
    if array is None or array.dtype != expected:
        found = "missing" if array is None else f"of type {array.dtype}"
        raise ValueError(
            f"The column {name} is {found}, not {expected}: the file is damaged. Save the circuit "
            "again."
        )
    if kind is not str:
        return array
    known = words.get(name)
    if not isinstance(known, list) or not all(isinstance(word, str) for word in known):
        raise ValueError(
            f"The words of column {name} are not a list of text: the file is damaged. Save it "
            "again."
        )
    if len(array) and not 0 <= int(array.min()) <= int(array.max()) < len(known):
        raise ValueError(
            f"The column {name} names words that are not there: the file is damaged. Save it again."
        )
    return pd.Series(np.array([*known, ""], dtype=object)[array], dtype=str)
