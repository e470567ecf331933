"""From node rows to the names people read, and from any text to text that is safe to show."""

import unicodedata

import pandas as pd

from graphs.graph import Graph

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# They join emoji and Persian or Indic letters, and can do no harm alone.
_JOINERS = {"\u200c", "\u200d"}
_SHORT = {"feature": "f", "neuron": "n", "lorsa": "l", "head": "h", "skip": "skip"}
_NAMED_BY = ("kind", "layer", "sublayer", "pos", "index", "token")
_LONG = {**_SHORT, "lorsa": "lorsa ", "head": "head "}


def readable(text: str) -> str:
    r"""The text with control characters, direction marks and non-characters as escapes.

    >>> print(readable("a\x00b\n\u202e"))
    a\x00b\n\u202e
    """
    return "".join(_shown(character) for character in text)


def node_names(graph: Graph) -> list[str]:
    """The name of every node, row by row: ``" John"@9``, ``L1.head 3@14``, the target's label.

    >>> from graphs.example import worked_example
    >>> node_names(worked_example())
    ['"x"@0', 'L0.n0@0', 'L0.n1@0', 'L1.n0@0', 'L1.n1@0', 'y']
    """
    label, targets = target_label(graph), graph.is_kind("target")
    names = row_names(graph.nodes)
    return [label if is_target else name for name, is_target in zip(names, targets, strict=True)]


def row_names(rows: pd.DataFrame) -> list[str]:
    """The name of every row of a table with a node table's columns; only targets have no name.

    >>> from graphs.nodes import node_table
    >>> row_names(node_table({"kind": ["lorsa"], "layer": [2], "pos": [9], "index": [7]}))
    ['L2.lorsa 7@9']
    """
    columns = (rows[name].tolist() for name in _NAMED_BY)
    return [
        _name(kind, _place(layer, sublayer), pos, (index, token))
        for kind, layer, sublayer, pos, index, token in zip(*columns, strict=True)
    ]


def short_name(kind: str, index: int) -> str:
    """What stands beside a node in the picture: f512, h3, n88; the kind where there is no number.

    >>> short_name("head", 3)
    'h3'
    """
    return f"{_SHORT[kind]}{index}" if index >= 0 and kind in _SHORT else kind


def target_label(graph: Graph) -> str:
    """The target's label, readable."""
    return readable(graph.meta["target"]["label"]).strip() or "target"


def columns(text: str) -> int:
    """How many terminal columns the text takes: wide characters two, combining marks none.

    >>> columns("ab"), columns("日本")
    (2, 4)
    """
    return sum(map(_columns_of, text))


def clip(text: str, width: int) -> str:
    """The beginning of the text that fits into ``width`` columns, with … where it was cut.

    >>> clip("gave a drink to", 8)
    'gave a …'
    """
    if columns(text) <= width:
        return text
    kept, room = [], width - 1
    for character in text:
        room -= _columns_of(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + "…"


def clip_start(text: str, width: int) -> str:
    """The end of the text that fits into ``width`` columns, with … where it was cut.

    >>> clip_start("gave a drink to", 8)
    '…rink to'
    """
    return clip(text[::-1], width)[::-1]


def _place(layer: int, sublayer: str) -> str:
    return ".".join(part for part in (f"L{layer}" if layer >= 0 else "", sublayer) if part)


def _name(kind: str, place: str, pos: int, number: tuple[int, str]) -> str:
    index, token = number
    at = f"@{pos}" if pos >= 0 else ""
    if kind == "token":
        return f'"{readable(token)}"{at}'
    if kind not in _LONG:
        return f"{place} {kind}{at}".strip()
    # only a feature of the MLP is called without its sublayer; heads are attention anyway
    where = place.removesuffix(".mlp") if kind == "feature" else place.split(".")[0]
    return f"{where}.{_LONG[kind]}{index if index >= 0 else ''}{at}"


def _shown(character: str) -> str:
    code = ord(character)
    no_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if not no_character and (
        unicodedata.category(character) not in _HIDDEN or character in _JOINERS
    ):
        return character
    if character in _ESCAPES:
        return _ESCAPES[character]
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
