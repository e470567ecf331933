"""From a graph to 25 lines of plain text."""

from collections.abc import Iterator

from graphs.graph import TOLERANCE, Graph
from graphs.names import clip, columns, readable, target_label
from graphs.nodes import INTERIOR
from graphs.paths import strongest_paths
from graphs.view.prompt import against_prompt, explained_position, marked_prompt

_NARROWEST = 40
_PROMPT_LINES = 3
_CHECKS = 4
_AGAINST = "against: "


def summary(graph: Graph, width: int = 80, paths: int = 5) -> str:
    """At most 25 lines of text: prompt, target, what it is made of, strongest paths, checks.

    No line is wider than ``width`` columns; more ``paths`` are more lines. Control characters are
    written as escapes.

    Raises ValueError for a width below 40 and for fewer than one path.

    >>> from graphs.example import worked_example
    >>> print(summary(worked_example()))  # doctest: +ELLIPSIS
    [x]
    y = 16.0000
    ...
    """
    if width < _NARROWEST:
        raise ValueError(
            f"summary: width = {width}; names and numbers take at least {_NARROWEST} columns."
        )
    blocks = (_head(graph, width), _parts(graph), _paths(graph, paths), _foot(graph))
    return "\n".join(clip(line, width).rstrip() for block in blocks for line in block)


def _head(graph: Graph, width: int) -> Iterator[str]:
    yield from _wrapped(marked_prompt(graph, _PROMPT_LINES * width), width)
    against = against_prompt(graph, width - len(_AGAINST))
    if against:
        yield _AGAINST + against
    at = explained_position(graph)
    where = f" (after token {at})" if at >= 0 and graph.meta["tokens"][at + 1 :] else ""
    number = f" = {graph.value + 0.0:.4f}{where}"
    yield clip(target_label(graph), width - len(number)) + number
    yield ""


def _wrapped(text: str, width: int) -> Iterator[str]:
    """The text in lines, broken after a space where the line has one in its second half."""
    while columns(text) > width:
        line = clip(text, width).removesuffix("…")
        space = line.rfind(" ") + 1
        line = line[:space] if space > width // 2 else line
        yield line
        text = text[len(line) :]
    yield text


def _parts(graph: Graph) -> Iterator[str]:
    parts = graph.explained()
    total = float(parts.sum())
    for name, value in parts.items():
        yield f"  {name:<10}{value:>12.4f}{_share(value, graph.value)}"
    off = abs(total - graph.value) / max(float(parts.abs().sum()), abs(graph.value), 1e-300)
    verdict = (
        "they add up to the target"
        if off < TOLERANCE
        else f"off the target by {total - graph.value:.2g}"
    )
    yield f"  {'sum':<10}{total:>12.4f}{_share(total, graph.value)}   {verdict}"
    yield ""


def _share(value: float, whole: float) -> str:
    share = 100 * value / whole if abs(whole) > 1e-9 else float("nan")
    return f"{share:>9.1f} %" if abs(share) < 1e5 else f"{'':>11}"


def _paths(graph: Graph, count: int) -> Iterator[str]:
    paths = strongest_paths(graph, count)
    yield (
        "strongest paths, and what each carries"
        if len(paths)
        else "no path from a token to the target is left"
    )
    ending = " → " + target_label(graph)
    for text, flow in zip(paths["text"], paths["flow"], strict=True):
        yield f"{flow:>12.4f}  {text.removesuffix(ending)} → target"
    yield ""


def _foot(graph: Graph) -> Iterator[str]:
    counts = graph.nodes["kind"].value_counts(sort=False)
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in INTERIOR if kind in counts)
    share = graph.meta.get("pruned")
    pruned = f", pruned to {share:.0%}" if isinstance(share, int | float) else ""
    nodes = int(graph.is_kind(*INTERIOR).sum())
    yield f"{nodes} nodes, {len(graph.edges)} edges{pruned}{f' ({kinds})' if kinds else ''}"
    checks = graph.meta.get("checks")
    known = checks.items() if isinstance(checks, dict) else ()
    numbers = [(name, value) for name, value in known if isinstance(value, int | float)]
    shown = [f"{readable(name)} {value:.1e}" for name, value in numbers if name != "conservation"]
    yield "checks: " + ", ".join([*shown[:_CHECKS], f"conservation {graph.conservation():.1e}"])
    if "condition" in graph.meta:
        leaves, slope = (graph.meta["condition"][name] for name in ("leaves", "slope"))
        yield f"condition: leaves {leaves:.2f} x the difference, steepest slope {slope:.2f}"
    if isinstance(graph.meta.get("model"), str):
        yield f"model: {readable(graph.meta['model'])}"
