"""From one node or edge to its SVG element."""

import math
from html import escape

from graphs.names import readable

# Blue and orange stay apart in every common kind of colour blindness (Okabe and Ito 2008).
POSITIVE, NEGATIVE = "#1f6fb8", "#d9680f"
INK, FAINT, LINE, PAPER = "#1f2328", "#6e7781", "#d0d7de", "#ffffff"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def safe(text: str) -> str:
    """The text for XML: control characters as escapes, markup as entities.

    >>> safe("</script>")
    '&lt;/script&gt;'
    """
    return escape(readable(text))


def colour(value: float) -> str:
    """Blue for what adds to the target, orange for what takes away from it."""
    return POSITIVE if value >= 0 else NEGATIVE


def write_text(x: float, y: float, text: str, **style: object) -> str:
    """A text element; underscores in the names of style become hyphens."""
    return f'<text x="{x:.1f}" y="{y:.1f}"{_attributes(style)}>{safe(text)}</text>'


def mark(kind: str, centre: tuple[float, float], radius: float, **style: object) -> str:
    """The shape of a node of this kind."""
    x, y = centre
    if kind in _CORNERS:
        turn, count, stretch = _CORNERS[kind]
        angles = [math.radians(turn + 360 * corner / count) for corner in range(count)]
        corners = " ".join(
            f"{x + stretch * radius * math.cos(angle):.1f},"
            f"{y - stretch * radius * math.sin(angle):.1f}"
            for angle in angles
        )
        return f'<polygon points="{corners}"{_attributes(style)}/>'
    if kind in ("head", "error"):
        side = 0.9 * radius
        return box(
            (x - side, y - side), (2 * side, 2 * side), 0.45 * side * (kind == "head"), **style
        )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"{_attributes(style)}/>'


def box(
    corner: tuple[float, float], size: tuple[float, float], rounding: float, **style: object
) -> str:
    """A rectangle with rounded corners."""
    (x, y), (width, height) = corner, size
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="{rounding:.1f}"{_attributes(style)}/>'
    )


def curve(start: tuple[float, float], end: tuple[float, float], bow: float, **style: object) -> str:
    """A line that leaves upwards, arrives from below, and swings out by ``bow`` between."""
    (x1, y1), (x2, y2) = start, end
    lift = max(10.0, 0.42 * abs(y1 - y2))
    path = (
        f"M{x1:.1f},{y1:.1f} C{x1 + bow:.1f},{y1 - lift:.1f} "
        f"{x2 + bow:.1f},{y2 + lift:.1f} {x2:.1f},{y2:.1f}"
    )
    return f'<path d="{path}"{_attributes(style)}/>'


def _attributes(style: dict[str, object]) -> str:
    return "".join(
        f' {name.replace("_", "-")}="{escape(str(value))}"' for name, value in style.items()
    )


# Angle of the first corner, number of corners, and how far out they lie, so that areas look alike.
_CORNERS: dict[str, tuple[float, int, float]] = {
    "neuron": (0.0, 6, 1.05),
    "lorsa": (0.0, 4, 1.2),
    "skip": (90.0, 3, 1.2),
}
