"""From a graph to a picture: static SVG on the grid of token positions and layers."""

from collections.abc import Iterator

import numpy as np

from graphs.graph import Graph
from graphs.names import clip, clip_start, columns, node_names, target_label
from graphs.nodes import INTERIOR
from graphs.view.layout import TOKEN_HEIGHT, Layout, Spot, box_width, chosen_rows, layout
from graphs.view.prompt import against_prompt, explained_position, prompt_parts
from graphs.view.shapes import (
    FAINT,
    INK,
    LINE,
    MONO,
    NEGATIVE,
    PAPER,
    POSITIVE,
    box,
    colour,
    curve,
    mark,
    safe,
    write_text,
)

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 22.0, 84.0, 52.0
_NARROWEST = 620.0
_MAX_EDGES = 600
_TITLE_CHARACTER, _SMALL_CHARACTER = 9.2, 6.7  # pixels at 14 and 11, in a wide font
_PARTS = {
    "token": "tokens",
    "position": "positions",
    "error": "errors",
    "bias": "biases",
    "pruned": "pruned",
    "switch": "switched",
}
_SANS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"


def svg(graph: Graph, max_nodes: int = 150) -> str:
    """The graph as an SVG picture, text as text, readable on light and dark pages.

    Columns are token positions, rows layers from below (attention under MLP). Blue adds to the
    target, orange and dashed takes away; area is |attribution|, width of a line |flow|. The
    ``max_nodes`` strongest interior nodes are drawn, with the strongest 600 edges among them; the
    picture says so where that is not all. Biases and what was cut are in the line of shares.

    Raises ValueError for max_nodes < 1.

    >>> from graphs.example import worked_example
    >>> svg(worked_example()).startswith("<svg xmlns")
    True
    """
    if max_nodes < 1:
        raise ValueError(
            f"svg: max_nodes = {max_nodes}; it is the number of nodes to draw, 1 or more. The "
            "default is 150."
        )
    rows = chosen_rows(graph, max_nodes)
    grid = layout(graph, rows)
    edges = _drawn_edges(graph, grid)
    width = max(_NARROWEST, _LEFT + grid.width + _RIGHT)
    height = _TOP + grid.height + _BOTTOM
    shift = _LEFT + max(0.0, (width - _LEFT - _RIGHT - grid.width) / 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{_SANS}" font-size="12" role="img">',
        f"<title>{safe(target_label(graph))}</title>",
        box((0.5, 0.5), (width - 1.0, height - 1.0), 10.0, fill=PAPER, stroke=LINE),
        *_header(graph, width, _what_is_drawn(graph, rows, edges)),
        *_bands(grid, width),
        f'<g transform="translate({shift:.1f} {_TOP:.1f})">',
        *_columns(graph, grid),
        *_edges(graph, grid, edges),
        *_nodes(graph, grid),
        "</g>",
        *_legend(graph, rows, (width, height)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _drawn_edges(graph: Graph, grid: Layout) -> np.ndarray:
    """The edges to draw, weakest first."""
    writer, reader = graph.ends()
    spots = np.fromiter(grid.spots, dtype=np.int64)
    flow = np.abs(np.asarray(graph.edges["flow"]))
    drawn = np.flatnonzero(np.isin(writer, spots) & np.isin(reader, spots) & (flow > 0))
    return drawn[np.argsort(flow[drawn], kind="stable")][-_MAX_EDGES:]


def _what_is_drawn(graph: Graph, rows: np.ndarray, edges: np.ndarray) -> str:
    interior = graph.is_kind(*INTERIOR)
    drawn = int(interior[rows].sum()), len(edges)
    whole = int(interior.sum()), int(np.count_nonzero(graph.edges["flow"]))
    if drawn == whole:
        return f"{drawn[0]} nodes, {drawn[1]} edges"
    return f"drawn: the strongest {drawn[0]} of {whole[0]} nodes, {drawn[1]} of {whole[1]} edges"


def _header(graph: Graph, width: float, drawn: str) -> Iterator[str]:
    before, marked, after = prompt_parts(graph)
    room = int((width - 40) / _TITLE_CHARACTER)
    marked = clip(marked, room - 20)
    after = clip(after, max(room - columns(before + marked), 12)) if after else ""
    before = clip_start(before, max(room - columns(marked + after), 8))
    yield (
        f'<text x="20" y="30" font-size="14" fill="{INK}" xml:space="preserve">{safe(before)}'
        f'<tspan font-weight="700" text-decoration="underline">{safe(marked)}</tspan>'
        f'<tspan fill="{FAINT}">{safe(after)}</tspan></text>'
    )
    taken = (_SMALL_CHARACTER * len(drawn)) / _TITLE_CHARACTER
    label = clip(target_label(graph), room - int(taken) - 12)
    yield (
        f'<text x="20" y="52" font-size="14" font-weight="700" fill="{INK}">{safe(label)} = '
        f"{graph.value:.4g}{_against(graph, room - int(taken) - columns(label) - 14)}</text>"
    )
    yield write_text(
        20.0, 72.0, _shares(graph, int((width - 40) / _SMALL_CHARACTER)), font_size=11, fill=FAINT
    )
    yield write_text(width - 20, 52.0, drawn, font_size=11, fill=FAINT, text_anchor="end")


def _against(graph: Graph, room: int) -> str:
    """What a contrast is compared with, behind its value, where there is room for it."""
    text = against_prompt(graph, room - 9) if room > 24 else ""
    style = f'font-weight="400" fill="{FAINT}"'
    return f'<tspan {style} dx="12">against: {safe(text)}</tspan>' if text else ""


def _shares(graph: Graph, room: int) -> str:
    """The sum that makes up the value, with percentages where there is room for them."""
    parts = [(_PARTS[str(name)], value) for name, value in graph.explained().items() if value]
    percent = abs(graph.value) > 1e-9 * sum(abs(value) for _, value in parts)
    for shares in (percent, False):
        terms = [
            f"{'−' if value < 0 else '+'} {name} {abs(value):.3g}"
            + (f" ({round(100 * value / graph.value)} %)".replace("-", "−") if shares else "")
            for name, value in parts
        ]
        text = "= " + " ".join(terms).removeprefix("+ ")
        if columns(text) <= room:
            break
    return text


def _bands(grid: Layout, width: float) -> Iterator[str]:
    for band in grid.bands:
        top, height = _TOP + band.top, band.bottom - band.top
        fill = "#f6f8fa" if band.layer % 2 == 0 else PAPER
        yield box((12.0, top), (width - 24, height), 6.0, fill=fill)
        yield write_text(20.0, top + height / 2 + 4, f"L{band.layer}", font_weight=600, fill=FAINT)
        for name, (upper, lower) in band.rows.items():
            if lower - upper > 20:
                y = _TOP + (upper + lower) / 2 + 3
                yield write_text(66.0, y, name, font_size=9, fill="#8c959f", text_anchor="end")


def _columns(graph: Graph, grid: Layout) -> Iterator[str]:
    at = explained_position(graph)
    pos, sources = graph.column("pos"), graph.is_kind("token", "position")
    filled = {int(pos[row]) for row in grid.spots if sources[row]}
    base = grid.height - (TOKEN_HEIGHT + 12) / 2
    for column in grid.columns:
        centre = column.x + column.width / 2
        if column.first <= at <= column.last:
            size = (column.width - 2, grid.height - TOKEN_HEIGHT)
            yield box((column.x + 1, TOKEN_HEIGHT), size, 6.0, fill="#ddf4ff", fill_opacity=0.55)
        if column.first not in filled:
            style = {
                "font_size": 12,
                "fill": "#8c959f",
                "text_anchor": "middle",
                "font_family": MONO,
            }
            yield write_text(centre, base + 4, column.text, **style)


def _edges(graph: Graph, grid: Layout, edges: np.ndarray) -> Iterator[str]:
    writer, reader = graph.ends()
    flows = np.asarray(graph.edges["flow"]).tolist()
    largest = max((abs(flows[edge]) for edge in edges), default=1.0)
    yield '<g fill="none" stroke-linecap="round">'
    for edge in edges.tolist():
        start, end = grid.spots[int(writer[edge])], grid.spots[int(reader[edge])]
        flow = flows[edge]
        share = (abs(flow) / largest) ** 0.6
        style = {"stroke": colour(flow), "stroke_width": f"{0.5 + 3.8 * share:.2f}"}
        style["stroke_opacity"] = f"{0.10 + 0.72 * share:.2f}"
        if flow < 0:
            style["stroke_dasharray"] = "5 4"
        yield curve(
            (start.x, start.y - start.radius),
            (end.x, end.y + end.radius + end.foot),
            _bow(start, end),
            **style,
        )
    yield "</g>"


def _bow(start: Spot, end: Spot) -> float:
    """Lines up one column swing out, so that they do not run through the nodes between."""
    rise = start.y - end.y
    return (
        0.0 if abs(start.x - end.x) > 40 or rise < 70 else min(60.0, 0.14 * rise) * (-1) ** end.row
    )


def _nodes(graph: Graph, grid: Layout) -> Iterator[str]:
    names, kinds = node_names(graph), graph.column("kind").tolist()
    labels, attribution = graph.column("label").tolist(), graph.column("attribution").tolist()
    for spot in grid.spots.values():
        kind, value = kinds[spot.row], attribution[spot.row]
        known = f" ({labels[spot.row]})" if labels[spot.row] else ""
        yield f"<g><title>{safe(f'{names[spot.row]}{known}: {value:.4g}')}</title>"
        if kind == "target":
            yield from _target(graph, grid, spot)
        elif kind in ("token", "position"):
            yield from _source(spot, value, kind)
        else:
            yield from _inner(spot, kind, value)
        yield "</g>"


def _inner(spot: Spot, kind: str, value: float) -> Iterator[str]:
    hollow = kind == "error"
    style = {
        "fill": PAPER if hollow else colour(value),
        "stroke": colour(value) if hollow else PAPER,
    }
    yield mark(kind, (spot.x, spot.y), spot.radius, stroke_width=1.4, **style)
    if spot.label:
        style = {"font_size": 9, "font_family": MONO, "text_anchor": "middle"}
        halo = {"fill": PAPER, "stroke": PAPER, "stroke_width": 2.5}
        for ink in (halo, {"fill": "#424a53"}):  # not every program knows paint-order
            yield write_text(spot.x, spot.y + spot.radius + 9.5, spot.label, **style, **ink)


def _source(spot: Spot, value: float, kind: str) -> Iterator[str]:
    width = spot.width - 5
    rounding = 4.0 if kind == "token" else TOKEN_HEIGHT / 2
    corner, size = (spot.x - width / 2, spot.y - TOKEN_HEIGHT / 2), (width, TOKEN_HEIGHT)
    yield box(corner, size, rounding, fill=PAPER, stroke=colour(value), stroke_width=1.4)
    letters, ink = (12, INK) if kind == "token" else (10, FAINT)
    style = {"font_size": letters, "fill": ink, "text_anchor": "middle", "font_family": MONO}
    yield write_text(spot.x, spot.y + 4, spot.label, **style)


def _target(graph: Graph, grid: Layout, spot: Spot) -> Iterator[str]:
    text = clip(target_label(graph), 40)
    width = box_width(text) + 8
    x = max(min(spot.x - width / 2, grid.width + 8 - width), -30.0)
    yield box((x, spot.y - 13), (width, 26.0), 13.0, fill=INK)
    style = {"font_size": 12, "font_weight": 600, "fill": PAPER, "font_family": MONO}
    yield write_text(x + width / 2, spot.y + 4, text, text_anchor="middle", **style)


def _legend(graph: Graph, rows: np.ndarray, size: tuple[float, float]) -> Iterator[str]:
    kinds, y, x = set(graph.column("kind")[rows].tolist()), size[1] - 22, 24.0
    for kind in (*INTERIOR, "error"):
        if kind not in kinds:
            continue
        hollow = kind == "error"
        yield mark(
            kind, (x, y), 5.0, fill=PAPER if hollow else FAINT, stroke=FAINT, stroke_width=1.2
        )
        yield write_text(x + 10, y + 4, kind, font_size=11, fill=FAINT)
        x += 26 + 6.4 * len(kind)
    for ink, dash, text in ((POSITIVE, "none", "adds"), (NEGATIVE, "5 4", "takes away")):
        yield (
            f'<line x1="{x:.1f}" x2="{x + 24:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{ink}" '
            f'stroke-width="2.5" stroke-dasharray="{dash}"/>'
        )
        yield write_text(x + 30, y + 4, text, font_size=11, fill=FAINT)
        x += 46 + 6.2 * len(text)
    if x < size[0] - 270:
        note = "area: share of the value · width: flow"
        yield write_text(size[0] - 20, y + 4, note, font_size=11, fill=FAINT, text_anchor="end")
