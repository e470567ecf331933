"""Curves and dots as SVG, drawn by a few lines of our own."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite, log10

WIDTH, HEIGHT, LEFT, TOP = 420, 260, 54, 26
LEGEND = 190
COLOURS = ("#0b62a4", "#d1495b", "#3c8d40", "#8a5fbf", "#c98a16", "#2a9d9d", "#7a7a7a", "#a0522d")
Points = Sequence[Sequence[int | float]]
"""(x, y); what is not finite is left out."""


def chart(
    title: str,
    axes: tuple[str, str],
    *,
    lines: Mapping[str, Points] | None = None,
    dots: Mapping[str, Points] | None = None,
    low: int | float | None = None,
    high: int | float | None = None,
    logarithmic: bool = False,
) -> str:
    """Return lines and clouds of dots, by name, as one SVG.

    x goes by its own range, y from `low` to `high` (its own range by default), cut to it.
    Raises ValueError where there is nothing to draw.

    >>> "<circle" in chart("t", ("x", "y"), dots={"a": [(0, 0), (1, 1)]})
    True
    """
    named = [(name, finite(points), True) for name, points in (lines or {}).items()]
    named += [(name, finite(points), False) for name, points in (dots or {}).items()]
    places = [point for _, points, _ in named for point in points]
    if not places:
        raise ValueError(f"chart({title!r}): no points were given. Give one line or cloud or more.")
    scale = log10 if logarithmic else float
    left, stop = min(x for x, _ in places), max(x for x, _ in places)
    low = min(y for _, y in places) if low is None else low
    high = max(y for _, y in places) if high is None else high
    span, rise = scale(stop) - scale(left) or 1.0, (high - low) or 1.0
    base, right = TOP + HEIGHT, LEFT + WIDTH

    def across(x: int | float) -> float:
        return LEFT + WIDTH * (scale(x) - scale(left)) / span

    def up(y: int | float) -> float:
        return base - HEIGHT * (min(max(y, low), high) - low) / rise

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + LEGEND} {base + 44}" '
        f'width="{right + LEGEND}" font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{LEFT}" y="{base + 34}">{escape(axes[0])}</text>',
    ]
    for value in (low, (low + high) / 2, high):
        parts.append(
            f'<text x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for value, anchor in ((left, "start"), (stop, "end")):
        parts.append(
            f'<text x="{across(value):.1f}" y="{base + 16}" text-anchor="{anchor}">{value:.4g}'
            "</text>"
        )
    for number, (name, points, joined) in enumerate(named):
        colour, height = COLOURS[number % len(COLOURS)], TOP + 12 + 17 * number
        at = [(f"{across(x):.1f}", f"{up(y):.1f}") for x, y in points]
        if joined:
            dashes = ' stroke-dasharray="5 3"' if number >= len(COLOURS) else ""
            line = f'fill="none" stroke="{colour}" stroke-width="1.6"{dashes}'
            path = " ".join(f"{x},{y}" for x, y in at)
            parts.append(f'<polyline points="{path}" {line}/>')
            parts.append(f'<path d="M{right + 12} {height - 4}h18" {line}/>')
        else:
            at.append((f"{right + 21}", f"{height - 4}"))
            parts += [
                f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}" fill-opacity=".6"/>'
                for x, y in at
            ]
        parts.append(f'<text x="{right + 36}" y="{height}">{escape(name)}</text>')
    parts.append(f'<text x="{right + 12}" y="{base}">{escape(axes[1])}</text>')
    return "\n".join([*parts, "</svg>"])


def finite(points: Points) -> list[tuple[float, float]]:
    """Return the points that have a place.

    >>> finite([(1, 2), (3, float("nan"))])
    [(1.0, 2.0)]
    """
    return [(float(x), float(y)) for x, y in points if isfinite(x) and isfinite(y)]
