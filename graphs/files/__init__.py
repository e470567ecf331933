"""Files: our own format, and pictures."""

import os
from collections.abc import Callable
from pathlib import Path

from graphs.files import native
from graphs.files.atomic import write_whole
from graphs.graph import Graph
from graphs.view.picture import svg


def save(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path written to; its ending decides the format: .circuit (opens again) or .svg.

    The file is written whole or not at all. Raises ValueError for an ending that is not known.

    >>> import tempfile
    >>> from graphs.example import worked_example
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(worked_example(), folder + "/tiny.circuit").name
    'tiny.circuit'
    """
    ending = Path(path).suffix.lower()
    if ending not in WRITERS:
        raise ValueError(
            f"save: {os.fspath(path)!r} ends in {ending!r}. Endings known: {', '.join(WRITERS)}. "
            "The ending decides the format; .circuit is the one that circuits.read opens again."
        )
    return WRITERS[ending](graph, path)


def _write_svg(graph: Graph, path: str | os.PathLike[str]) -> Path:
    return write_whole(path, svg(graph).encode())


WRITERS: dict[str, Callable[[Graph, str | os.PathLike[str]], Path]] = {
    ".circuit": native.write,
    ".svg": _write_svg,
}
