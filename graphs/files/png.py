"""PNG: the picture of .svg as pixels."""

import os
from pathlib import Path

from graphs.files.atomic import write_whole
from graphs.graph import Graph
from graphs.view.picture import svg

SCALE = 2.0


def write_png(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path, once the picture is written there, twice as large as the .svg says."""
    import cairosvg  # pyright: ignore[reportMissingImports]

    return write_whole(path, cairosvg.svg2png(bytestring=svg(graph).encode(), scale=SCALE))
