"""Where a page is shown: in the notebook that asks, else in the browser."""

import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

from graphs.files.atomic import write_whole
from graphs.graph import Graph
from graphs.view.page import frame, page
from graphs.view.picture import svg
from graphs.view.terminal import summary

UNTRUSTED = (
    '<p style="font-size:12px">No page above? Then this notebook is not trusted, or frames are cut '
    "out of what you look at: save the circuit as .html and open that.</p>"
)


def show(html: str) -> Path | None:
    """Show a page, and return the file it was written to; None in a notebook."""
    kernel = _kernel()
    if kernel is not None:
        from IPython.display import HTML, display

        display(HTML(frame(html)))
        return None
    folder = Path(tempfile.mkdtemp(prefix="circuits-"))
    path = write_whole(folder / "circuit.html", html.encode())
    webbrowser.open(path.as_uri())
    return path


def mimebundle(graph: Graph) -> dict[str, str]:
    """Return a graph as notebooks show it: text, a picture, the page in a frame."""
    return {
        "text/plain": summary(graph),
        "image/svg+xml": svg(graph),
        "text/html": frame(page(graph)) + UNTRUSTED,
    }


def _kernel() -> Any:
    """The notebook's kernel; None at a terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None)
