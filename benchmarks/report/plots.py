"""Curves as SVG, drawn by a few lines of our own."""

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

WIDTH, HEIGHT, LEFT, TOP = 420, 260, 46, 26
LEGEND = 190
COLOURS = ("#0b62a4", "#d1495b", "#3c8d40", "#8a5fbf", "#c98a16", "#2a9d9d", "#7a7a7a", "#a0522d")
Curve = Sequence[Sequence[int | float]]


def curves(
    title: str,
    named: Mapping[str, Curve],
    axes: tuple[str, str],
    *,
    high: int | float = 1.0,
    low: int | float = 0.0,
    logarithmic: bool = False,
) -> str:
    """Return curves of (x, y) as one SVG; y is cut to `low` to `high`, x goes by its own range.

    Raises ValueError for no curves.

    >>> "<polyline" in curves("t", {"a": [(0, 0), (1, 1)]}, ("x", "y"))
    True
    """
    places = [point[0] for curve in named.values() for point in curve]
    if not places:
        raise ValueError(f"curves({title!r}): no points were given. Give one curve or more.")
    scale = log10 if logarithmic else float
    start, stop = scale(min(places)), scale(max(places))
    span = (stop - start) or 1.0
    base, right = TOP + HEIGHT, LEFT + WIDTH

    def across(x: int | float) -> float:
        return LEFT + WIDTH * (scale(x) - start) / span

    def up(y: int | float) -> float:
        return base - HEIGHT * (min(max(y, low), high) - low) / (high - low)

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
            f'<text x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value, anchor in ((min(places), "start"), (max(places), "end")):
        parts.append(
            f'<text x="{across(value):.1f}" y="{base + 16}" text-anchor="{anchor}">{value:g}</text>'
        )
    for number, (name, curve) in enumerate(named.items()):
        colour = COLOURS[number % len(COLOURS)]
        dashes = ' stroke-dasharray="5 3"' if number >= len(COLOURS) else ""
        points = " ".join(f"{across(point[0]):.1f},{up(point[1]):.1f}" for point in curve)
        line = f'fill="none" stroke="{colour}" stroke-width="1.6"{dashes}'
        height = TOP + 12 + 17 * number
        parts += [
            f'<polyline points="{points}" {line}/>',
            f'<path d="M{right + 12} {height - 4}h18" {line}/>',
            f'<text x="{right + 36}" y="{height}">{escape(name)}</text>',
        ]
    parts.append(f'<text x="{right + 12}" y="{base}">{escape(axes[1])}</text>')
    return "\n".join([*parts, "</svg>"])
