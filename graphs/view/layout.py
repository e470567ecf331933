"""From a graph to places on the grid of token positions and layers; nothing is drawn here.

Coordinates are pixels from the grid's upper left corner. Columns are token positions, as wide as
the widest row of nodes in them. Rows from below: tokens, then attention and MLP of every layer,
then the target; in front of each of them the residual stream, where it is read as features.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from graphs.graph import Graph
from graphs.names import clip, columns, readable, short_name
from graphs.nodes import INTERIOR, SOURCES

LABEL_CHARACTER = 5.6  # pixels, of the 9 px monospace that labels are set in
TOKEN_CHARACTER = 7.3  # of the 12 px monospace that tokens are set in
TOKEN_HEIGHT = 24.0
_TOKEN_LENGTH = 14
_FEWEST_FOR_GAPS = 40  # from here on runs of columns without nodes share one
_SHORTEST_GAP = 3
_GAP_WIDTH = 26.0
_EMPTY_ROW = 9.0
_MARGIN = 8.0
_RISE = 24.0  # room for lines to leave the tokens
_GAP = 13.0
_LABEL_HEIGHT = 12.0
_LINE_GAP = 13.0
_SUBLAYERS = ("resid", "attn", "mid", "mlp")  # the rows of a layer, from below
_ALWAYS = ("attn", "mlp")  # those that take room where they are empty


@dataclass(frozen=True)
class Column:
    """One token position, or (``text`` is …) several neighbours in which nothing is drawn."""

    x: float
    width: float
    first: int
    last: int
    text: str


@dataclass(frozen=True)
class Band:
    """One layer: its upper and lower edge, and those of its rows, by sublayer from above."""

    layer: int
    top: float
    bottom: float
    rows: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Spot:
    """Where a node is: row of the node table, centre, half its height, width of its slot, label.

    ``foot`` is how far the label reaches below the shape: lines from below end there.
    """

    row: int
    x: float
    y: float
    radius: float
    width: float
    label: str
    foot: float


@dataclass(frozen=True)
class Layout:
    """The grid and everything on it."""

    width: float
    height: float
    columns: list[Column]
    bands: list[Band]
    spots: dict[int, Spot]


def chosen_rows(graph: Graph, max_nodes: int) -> np.ndarray:
    """The rows to draw: the strongest interior nodes, what writes to them or to the target, errors.

    Error rows are drawn where they are as strong as the weakest interior node drawn.
    """
    strength = np.abs(graph.column("attribution"))
    interior = np.flatnonzero(graph.is_kind(*INTERIOR))
    drawn = graph.is_kind("target")
    strongest = interior[np.argsort(-strength[interior], kind="stable")[:max_nodes]]
    drawn[strongest] = True
    writer, reader = graph.ends()
    sources = np.zeros_like(drawn)
    sources[writer[drawn[reader]]] = True
    drawn |= sources & graph.is_kind(*SOURCES)
    errors = np.flatnonzero(graph.is_kind("error") & (graph.column("layer") >= 0))
    errors = errors[np.argsort(-strength[errors], kind="stable")[:max_nodes]]
    drawn[errors] = strength[errors] >= strength[strongest].min(initial=np.inf)
    return np.flatnonzero(drawn)


def layout(graph: Graph, rows: np.ndarray, max_labels: int = 80) -> Layout:
    """The places of these rows of the node table; the ``max_labels`` strongest have a label.

    >>> from graphs.example import worked_example
    >>> grid = layout(worked_example(), np.arange(6))
    >>> [band.layer for band in grid.bands], len(grid.spots)
    ([0, 1], 6)
    """
    cells = _cells(graph, _spots(graph, rows, max_labels))
    columns = _columns(graph, cells)
    heights = _row_heights(graph, cells)
    tops = np.cumsum([0.0, *heights[::-1]])[::-1]  # tops[row] is the lower edge of grid row `row`
    left = {pos: column for column in columns for pos in range(column.first, column.last + 1)}
    placed = [
        spot
        for (pos, row), lines in cells.items()
        for spot in _placed(
            lines, left[pos], (float(tops[row + 1]) + _RISE * (row == 0), float(tops[row]))
        )
    ]
    bands = []
    for layer in range(_n_layers(graph) + 1):
        first, names = 1 + 4 * layer, _SUBLAYERS if layer < _n_layers(graph) else _SUBLAYERS[:1]
        edges = tops[first : first + len(names) + 1].tolist()
        rows_of = {name: (edges[row + 1], edges[row]) for row, name in enumerate(names)}
        if edges[-1] < edges[0]:  # of the number of layers, only where its stream is read
            bands.append(Band(layer, edges[-1], edges[0], dict(reversed(rows_of.items()))))
    end = columns[-1]
    spots = {spot.row: spot for spot in placed}
    return Layout(end.x + end.width, float(tops[0]), columns, bands, spots)


def _spots(graph: Graph, rows: np.ndarray, max_labels: int) -> list[Spot]:
    """The rows with size and label, all at the origin."""
    strength = np.abs(graph.column("attribution")) * graph.is_kind(*INTERIOR)
    largest = strength[rows].max(initial=0.0) or 1.0
    labelled = set(rows[np.argsort(-strength[rows], kind="stable")[:max_labels]].tolist())
    kinds, numbers, tokens = (graph.column(name).tolist() for name in ("kind", "index", "token"))
    spots = []
    for row in rows.tolist():
        kind = kinds[row]
        label = short_name(kind, numbers[row]) if kind in INTERIOR and row in labelled else ""
        radius = 4.5 + 8.5 * (strength[row] / largest) ** 0.5 if kind in INTERIOR else 4.5
        width = max(2 * radius, LABEL_CHARACTER * len(label)) + _GAP
        foot = _LABEL_HEIGHT if label else 0.0
        if kind in SOURCES:
            label = token_text(tokens[row]) if kind == "token" else "pos"
            radius, width = TOKEN_HEIGHT / 2, box_width(label)
        spots.append(Spot(row, 0.0, 0.0, float(radius), float(width), label, foot))
    return spots


def token_text(token: str) -> str:
    """What stands in a token's box: without the space most tokens begin with, cut where long.

    >>> token_text(" John"), token_text(" ")
    ('John', '␣')
    """
    text = readable(token)
    return clip(text.strip() or text.replace(" ", "␣") or "∅", _TOKEN_LENGTH)


def box_width(text: str) -> float:
    """The width of the box around a token's text."""
    return TOKEN_CHARACTER * columns(text) + 14.0


def _cells(graph: Graph, spots: list[Spot]) -> dict[tuple[int, int], list[list[Spot]]]:
    """The spots by (position, grid row), in lines; grid row 0 holds tokens, the last the target."""
    layers = _n_layers(graph)
    kind, sublayer = graph.column("kind"), graph.column("sublayer")
    within = np.full(len(kind), _SUBLAYERS.index("mlp"))
    for row, name in enumerate(_SUBLAYERS):
        within[sublayer == name] = row
    layer = np.clip(graph.column("layer"), 0, layers - (sublayer != "resid"))
    grid_row = 1 + 4 * layer + within
    grid_row = np.where(
        graph.is_kind(*SOURCES), 0, np.where(kind == "target", 4 * layers + 2, grid_row)
    )
    pos = _positions(graph)
    towards = _neighbours(graph, pos)
    found = defaultdict(list)
    for spot in sorted(spots, key=lambda spot: (towards[spot.row], spot.row)):
        found[int(pos[spot.row]), int(grid_row[spot.row])].append(spot)
    cells = {}
    for place, members in found.items():
        per_line = max(4, int(np.ceil((2 * len(members)) ** 0.5)))
        cells[place] = [
            members[start : start + per_line] for start in range(0, len(members), per_line)
        ]
    return cells


def _n_layers(graph: Graph) -> int:
    return max(graph.meta["n_layers"], 1)


def _positions(graph: Graph) -> np.ndarray:
    last = max(len(graph.meta["tokens"]) - 1, 0)
    pos = graph.column("pos")
    return np.where((pos < 0) & graph.is_kind("target"), last, np.maximum(pos, 0))


def _neighbours(graph: Graph, pos: np.ndarray) -> np.ndarray:
    """The mean position of what each node is joined to, weighted by |flow|: where it leans."""
    writer, reader = graph.ends()
    flow = np.abs(np.asarray(graph.edges["flow"]))
    weight = np.bincount(reader, flow, pos.size) + np.bincount(writer, flow, pos.size)
    total = np.bincount(reader, flow * pos[writer], pos.size)
    total += np.bincount(writer, flow * pos[reader], pos.size)
    # Sources keep the order of the table: the token before its position.
    leans = np.divide(total, weight, out=pos.astype(float), where=weight > 0)
    return np.where(graph.is_kind(*SOURCES), pos, leans)


def _columns(graph: Graph, cells: dict[tuple[int, int], list[list[Spot]]]) -> list[Column]:
    wide: dict[int, float] = defaultdict(float)
    for (pos, _), lines in cells.items():
        wide[pos] = max(wide[pos], *(sum(spot.width for spot in line) for line in lines))
    tokens = graph.meta["tokens"] or [""]
    placed, x, pos = [], 0.0, 0
    while pos < len(tokens):
        end = next((at for at in range(pos, len(tokens)) if at in wide), len(tokens)) - 1
        gap = end - pos + 1 >= _SHORTEST_GAP and len(tokens) >= _FEWEST_FOR_GAPS
        last, text = (end, "…") if gap else (pos, token_text(tokens[pos]))
        width = max(_GAP_WIDTH if gap else box_width(text) - 4.0, wide.get(pos, 0.0) + _MARGIN)
        placed.append(Column(x, width, pos, last, text))
        x, pos = x + width, last + 1
    return placed


def _row_heights(graph: Graph, cells: dict[tuple[int, int], list[list[Spot]]]) -> list[float]:
    """The height of every grid row, from below."""
    layers = _n_layers(graph)
    empty = [_EMPTY_ROW if name in _ALWAYS else 0.0 for name in _SUBLAYERS]
    heights = [_RISE + TOKEN_HEIGHT + 12.0, *empty * layers, 0.0, TOKEN_HEIGHT + 22.0]
    for (_, row), lines in cells.items():
        if 0 < row <= 4 * layers + 1:
            needed = sum(map(_line_height, lines)) + _LINE_GAP * len(lines) + 2 * _MARGIN
            heights[row] = max(heights[row], needed)
    return heights


def _line_height(line: list[Spot]) -> float:
    return 2 * max(spot.radius for spot in line) + max(spot.foot for spot in line)


def _placed(lines: list[list[Spot]], column: Column, edges: tuple[float, float]) -> Iterator[Spot]:
    """The spots of one cell side by side, the lines centred between its upper and lower edge."""
    top, bottom = edges
    y = (top + bottom - sum(map(_line_height, lines)) - _LINE_GAP * (len(lines) - 1)) / 2
    for line in lines:
        x = column.x + (column.width - sum(spot.width for spot in line)) / 2
        radius = max(spot.radius for spot in line)
        for spot in line:
            yield replace(spot, x=x + spot.width / 2, y=y + radius)
            x += spot.width
        y += _line_height(line) + _LINE_GAP
