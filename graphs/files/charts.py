"""A chart as a file: .svg as it is, .png as pixels."""

import os
from pathlib import Path

from graphs.files import checked_ending
from graphs.files.atomic import write_whole
from graphs.files.png import SCALE


def write_chart(svg: str, path: str | os.PathLike[str]) -> Path:
    """The path, once a chart is written there.

    Raises ValueError for an ending that is neither .svg nor .png, and for .png without cairosvg.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_chart("<svg/>", folder + "/test.svg").name
    'test.svg'
    """
    ending = Path(path).suffix.lower()
    if ending not in (".svg", ".png"):
        raise ValueError(f"save: {os.fspath(path)!r} ends in {ending!r}; a chart is .svg or .png.")
    if checked_ending(path) == ".svg":
        return write_whole(path, svg.encode())
    import cairosvg  # pyright: ignore[reportMissingImports]

    return write_whole(path, cairosvg.svg2png(bytestring=svg.encode(), scale=SCALE))
