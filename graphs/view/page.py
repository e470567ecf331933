"""From one graph, or two, to one HTML page that needs nothing else.

Its parts are the plain files in ``graphs/view/page/``. The page asks for nothing from anywhere: a
Content-Security-Policy forbids it, and lets only its own script and styles run, by their digest.
"""

import base64
import hashlib
import json
from functools import cache
from html import escape
from importlib import resources

from graphs.graph import Graph
from graphs.view.page_data import page_data
from graphs.view.terminal import summary

MAX_NODES, MAX_EDGES = 2_000, 30_000
"""What a browser draws without making people wait; a page holds the strongest so many."""
_SCRIPTS = (
    "data",
    "state",
    "groups",
    "layout",
    "paths",
    "draw",
    "panel",
    "save",
    "controls",
    "main",
)


def page(
    graph: Graph,
    other: Graph | None = None,
    *,
    max_nodes: int = MAX_NODES,
    max_edges: int = MAX_EDGES,
) -> str:
    """The graph as an HTML page to look around in; of two graphs, what they share and do not.

    A page holds at most ``max_nodes`` interior nodes and ``max_edges`` edges of a graph, the
    strongest; what is left out is booked as pruned, so that sums still close, and the page says so.

    Raises ValueError for two graphs of different numbers of layers, for max_edges below 1, and for
    max_nodes that is not 1 to 30,000.

    >>> from graphs.example import worked_example
    >>> page(worked_example()).startswith("<!doctype html>")
    True
    """
    if not (1 <= max_nodes <= 30_000 and max_edges >= 1):
        raise ValueError(
            f"page: max_nodes = {max_nodes}, max_edges = {max_edges}; nodes are 1 to 30,000, edges "
            f"1 or more. The defaults, {MAX_NODES:,} and {MAX_EDGES:,}, draw at once."
        )
    layers = [one.meta["n_layers"] for one in (graph, other) if one is not None]
    if len(set(layers)) > 1:
        raise ValueError(
            f"page: circuits of {layers[0]} and {layers[1]} layers have no grid in common. Give "
            "two of the same model."
        )
    data = json.dumps(
        page_data(graph, other, max_nodes, max_edges), allow_nan=False, separators=(",", ":")
    )
    style, sheet_style, script = _file("page.css"), _file("sheet.css"), _script()
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)} "
        f"{_digest(sheet_style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "style": style,
        "sheet_style": sheet_style,
        "summary": escape(summary(graph)),
        "data": data.replace("<", "\\u003c"),
        "script": script,
    }
    text = _file("page.html")
    pieces = []
    for name, part in parts.items():  # in the order in which they stand; a part is not looked into
        before, text = text.split(f"{{{name}}}", 1)
        pieces += [before, part]
    return "".join([*pieces, text])


def frame(html: str, height: int = 680) -> str:
    """The page in a frame for a notebook; its script runs, and can do nothing but save files."""
    return (
        f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{escape(html)}" '
        f'style="width:100%;height:{height}px;border:1px solid #d0d7de;border-radius:6px">'
        "</iframe>"
    )


@cache
def _file(name: str) -> str:
    return (resources.files("graphs.view") / "page" / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    return "".join(
        ["(() => {\n'use strict';\n", *(_file(f"{name}.js") for name in _SCRIPTS), "})();\n"]
    )


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
