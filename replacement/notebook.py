"""How values show themselves at the end of a notebook cell: their text, and a table beneath."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd


def as_html(text: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a line of text over a table, as HTML; whatever tokens and names hold stays text.

    >>> as_html("two", {"token": ["<b>", "a"], "logit": [1.5, 2.0]}).count("&lt;b&gt;")
    1
    """
    table = pd.DataFrame(columns)
    return f"<p>{escape(text)}</p>{table.to_html(index=False, border=0, max_rows=200)}"


def lines_as_html(text: str) -> str:
    """Return lines that begin with what they tell of, as an HTML table."""
    rows = [line.split(maxsplit=1) for line in text.splitlines()]
    return as_html("", {"": [row[0] for row in rows], " ": [row[1] for row in rows]})
