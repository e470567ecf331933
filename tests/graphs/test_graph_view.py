"""The picture and the terminal text, read as text."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from graphs.example import worked_example
from graphs.graph import Graph
from graphs.names import clip, clip_start, columns, node_names, readable
from graphs.nodes import INTERIOR
from graphs.pruning import prune
from graphs.view.layout import Spot, chosen_rows, layout
from graphs.view.picture import svg
from graphs.view.prompt import against_prompt, explained_position, marked_prompt
from graphs.view.terminal import summary
from tests.graphs import samples

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "</script><script>alert(1)</script>",
    "]]>&amp;<!--",
    '" onload="x',
    "\x00\x1b[31m\r\n",
    "\u202eabc",
    "👩‍👧🇩🇪",
    "مرحبا",
    "日本語" * 9,
    "\ufffe\uffff",
    "",
    "   ",
    "x" * 500,
]


def drawn_titles(text: str) -> list[str]:
    groups = ElementTree.fromstring(text).iter(f"{SVG}g")
    return [title.text or "" for group in groups for title in group.findall(f"{SVG}title")]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(hostile: str) -> None:
    graph = samples.circuit_like(rename=lambda _: hostile)
    nodes = graph.nodes
    nodes["label"] = hostile
    graph = Graph(nodes, graph.edges, {**graph.meta, "model": hostile, "checks": {hostile: 1.0}})
    text = svg(graph)
    root = ElementTree.fromstring(text)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "g", "rect", "circle", "polygon", "path", "line", "text", "tspan",
    }  # fmt: skip
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
    for shown in (text, summary(graph)):
        assert not any(ord(sign) < 32 and sign != "\n" for sign in shown)
        assert "\u202e" not in shown
    check_size(summary(graph), 80)


def check_size(text: str, width: int) -> None:
    lines = text.split("\n")
    assert len(lines) <= 25
    assert max(map(columns, lines)) <= width


def test_every_drawn_node_is_there_once() -> None:
    for graph in (samples.circuit_like(), prune(samples.circuit_like()), worked_example()):
        names = node_names(graph)
        titles = [title.rsplit(":", 1)[0] for title in drawn_titles(svg(graph))]
        wanted = [names[row] for row in chosen_rows(graph, 150)]
        assert sorted(titles) == sorted(wanted)
        interior = set(np.flatnonzero(graph.is_kind(*INTERIOR, "target")))
        assert interior <= set(chosen_rows(graph, 150))


def test_the_strongest_are_drawn_and_the_header_says_so() -> None:
    graph = samples.circuit_like()
    text = svg(graph, max_nodes=10)
    assert "drawn: the strongest 10 of 46 nodes" in text
    assert "the strongest 10" not in svg(graph)
    strength = graph.nodes.loc[graph.is_kind(*INTERIOR), "attribution"].abs()
    names = dict(zip(graph.nodes.index, node_names(graph), strict=True))
    titles = {title.rsplit(":", 1)[0] for title in drawn_titles(text)}
    assert {names[node] for node in strength.nlargest(10).index} <= titles
    assert names[strength.nlargest(11).index[-1]] not in titles
    with pytest.raises(ValueError, match="max_nodes = 0"):
        svg(graph, max_nodes=0)


def overlap(a: Spot, b: Spot) -> bool:
    apart = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-6
    upper, lower = sorted((a, b), key=lambda spot: spot.y)
    return not apart and upper.y + upper.radius + upper.foot > lower.y - lower.radius + 1e-6


@settings(deadline=None, max_examples=20)
@given(strategies.integers(0, 1000), strategies.integers(1, 60))
def test_nodes_and_labels_do_not_overlap_and_lie_on_the_grid(seed: int, count: int) -> None:
    graph = samples.circuit_like(seed)
    grid = layout(graph, chosen_rows(graph, count))
    target = int(np.argmax(graph.is_kind("target")))
    spots = [spot for row, spot in grid.spots.items() if row != target]
    assert not any(overlap(a, b) for i, a in enumerate(spots) for b in spots[:i])
    for spot in spots:
        assert spot.width / 2 - 1e-6 <= spot.x <= grid.width - spot.width / 2 + 1e-6
        assert spot.radius - 1e-6 <= spot.y <= grid.height - spot.radius + 1e-6
    layers, pos = graph.column("layer"), graph.column("pos")
    left = {at: column for column in grid.columns for at in range(column.first, column.last + 1)}
    for spot in spots:
        column = left[pos[spot.row]]
        assert column.x <= spot.x <= column.x + column.width
        if layers[spot.row] >= 0:
            band = grid.bands[layers[spot.row]]
            assert band.top <= spot.y <= band.bottom


def test_writers_lie_below_readers() -> None:
    graph = samples.circuit_like()
    spots = layout(graph, chosen_rows(graph, 150)).spots
    assert all(spots[w].y > spots[r].y for w, r in zip(*graph.ends(), strict=True))


def test_long_prompts_stay_narrow() -> None:
    graph = samples.circuit_like()
    nodes, meta = graph.nodes, graph.meta
    nodes["pos"] += 300
    meta["target"]["pos"] = 313
    meta["tokens"] = [" word"] * 300 + meta["tokens"] + [" end"] * 300
    root = ElementTree.fromstring(svg(Graph(nodes, graph.edges, meta)))
    short = ElementTree.fromstring(svg(graph))
    assert float(root.attrib["width"]) < float(short.attrib["width"]) + 100


def test_negative_edges_are_dashed_and_orange() -> None:
    graph = samples.circuit_like()
    root = ElementTree.fromstring(svg(graph))
    paths = list(root.iter(f"{SVG}path"))
    dashed = [path for path in paths if "stroke-dasharray" in path.attrib]
    assert len(paths) == (graph.edges["flow"] != 0).sum()
    assert len(dashed) == (graph.edges["flow"] < 0).sum()
    assert {path.attrib["stroke"] for path in dashed} == {"#d9680f"}
    widths = [float(path.attrib["stroke-width"]) for path in paths]
    assert widths == sorted(widths)


def test_a_graph_of_a_target_alone() -> None:
    graph = worked_example()
    nodes = graph.nodes.iloc[5:].assign(pos=-1, layer=-1)
    for layers in (0, 2):
        meta = {"tokens": [], "n_layers": layers, "target": {"label": "", "value": 0}}
        bare = Graph(nodes, graph.edges.iloc[:0], meta)
        assert "target" in svg(bare)
        check_size(summary(bare), 80)
        assert "no path" in summary(bare)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_summary_fits(width: int) -> None:
    graph = samples.circuit_like()
    meta = graph.meta
    meta["tokens"][2] = " and so on" * 100
    meta["checks"] = {f"check {number}": 1e-7 for number in range(30)}
    for shown in (graph, prune(graph), Graph(graph.nodes, graph.edges, meta)):
        check_size(summary(shown, width), width)
    with pytest.raises(ValueError, match="width = 39"):
        summary(graph, 39)


def test_summary_says_what_matters() -> None:
    text = summary(prune(samples.circuit_like(), 0.8))
    for part in (
        "drink [to]", '" Mary" - " John" = ', "they add up to the target", "pruned to 80%",
        "closure 3.0e-08", "conservation", "four-tasks", "→ target",
    ):  # fmt: skip
        assert part in text
    meta = worked_example().meta
    meta["target"]["value"] = 20.0
    wrong = Graph(worked_example().nodes, worked_example().edges, meta)
    assert "off the target by -4" in summary(wrong)
    assert "add up" not in summary(wrong)


@pytest.mark.parametrize(
    ("pos", "wanted"), [(-1, 13), (3, 3), (13, 13), (-14, 0), (99, -1), (None, 13), ("3", 13)]
)
def test_explained_position(pos: object, wanted: int) -> None:
    graph = samples.circuit_like()
    meta = graph.meta
    meta["target"]["pos"] = pos
    assert explained_position(Graph(graph.nodes, graph.edges, meta)) == wanted


def test_prompt_is_cut_around_the_explained_token() -> None:
    graph = samples.circuit_like()
    meta = graph.meta
    meta["target"]["pos"] = 9
    moved = Graph(graph.nodes, graph.edges, meta)
    assert marked_prompt(moved, 80).endswith("store, [John] gave a drink to")
    assert marked_prompt(moved, 30) == "…the store, [John] gave a dri…"
    assert columns(marked_prompt(moved, 20)) <= 20


def test_names() -> None:
    assert readable("a\tb\x7f\u2028\U000e0001") == r"a\tb\x7f\u2028\U000e0001"
    assert readable("naïve 日本 👩‍👧") == "naïve 日本 👩‍👧"
    assert clip("日本語", 5) == "日本…"
    assert clip_start("日本語", 4) == "…語"
    names = set(node_names(samples.circuit_like()))
    assert {'" John"@9', "position@13", "L3.n411@13", "L2.skip@13", "L2.mlp error@13"} <= names
    assert "L3.lorsa 1733@13" in names


def test_opening_and_drawing_a_file_imports_neither_torch_nor_networkx(tmp_path) -> None:
    from graphs import save

    path = save(samples.circuit_like(), tmp_path / "a.circuit")
    code = (
        "import graphs, sys; graph = graphs.prune(graphs.read_graph(sys.argv[1]));"
        "graphs.svg(graph); graphs.summary(graph);"
        "found = {'torch', 'networkx', 'scipy'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    subprocess.run(
        [sys.executable, "-c", "import graphs, sys; assert 'torch' not in sys.modules"], check=True
    )


@pytest.mark.parametrize("tokens", [[" w"] * 14, ["m" * 30] * 14, [" " * 3] * 14, ["m" * 500] * 14])
def test_header_lines_fit_the_width(tokens: list[str]) -> None:
    """At 0.6 of the font size a letter, as wide as monospace."""
    graph = samples.circuit_like()
    meta = {**graph.meta, "tokens": tokens}
    meta["target"]["label"] = "a label of a target that someone made much too long " * 3
    root = ElementTree.fromstring(svg(Graph(graph.nodes, graph.edges, meta), max_nodes=5))
    width = float(root.attrib["width"])
    header = [text for text in root.findall(f"{SVG}text") if text.attrib.get("x") == "20"]
    assert header
    for text in [
        text for text in root.findall(f"{SVG}text") if text.attrib["x"] == "20.0"
    ] + header:
        letters = columns("".join(text.itertext()))
        assert letters * 0.6 * float(text.attrib.get("font-size", 12)) < width - 20


def compared_with(tokens: list[str], own: list[str] | None = None) -> Graph:
    """A circuit-like graph as if it compared its prompt with these tokens."""
    graph = samples.circuit_like()
    facts = {"against": {"tokens": tokens}, "condition": {"leaves": 1.25, "slope": 3.0}}
    return graph.noted(**facts, **({} if own is None else {"tokens": own}))


def test_what_a_contrast_is_compared_with_is_shown_and_marked() -> None:
    tokens = samples.circuit_like().meta["tokens"]
    other = [*tokens[:2], " Anna", " Rose", *tokens[4:]]
    other[-1] = " at"
    graph = compared_with(other)
    shown = against_prompt(graph, 200)
    assert "[Anna Rose]" in shown and shown.endswith("[at]") and shown.count("[") == 2
    assert shown.replace("[", "").replace("]", "") == "".join(other)
    text = summary(graph)
    assert "\nagainst: " in text and "[Anna Rose]" in text
    assert "condition: leaves 1.25 x the difference, steepest slope 3.00" in text
    check_size(text, 80)
    assert "against: " in svg(graph) and "Anna" in svg(graph)
    plain = samples.circuit_like()
    assert against_prompt(plain, 80) == ""
    assert "against" not in summary(plain) + svg(plain) and "condition" not in summary(plain)


def test_equal_prompts_have_no_marks() -> None:
    tokens = samples.circuit_like().meta["tokens"]
    assert against_prompt(compared_with(tokens), 500) == "".join(tokens)


@pytest.mark.parametrize("room", [12, 24, 40, 80])
def test_the_first_difference_is_seen_in_any_room(room: int) -> None:
    tokens = samples.circuit_like().meta["tokens"]
    for place in range(len(tokens)):
        other = [*tokens[:place], " Zoe", *tokens[place + 1 :]]
        shown = against_prompt(compared_with(other), room)
        assert columns(shown) <= room and "[Zoe]" in shown


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_prompt_to_compare_with_does_nothing(hostile: str) -> None:
    graph = compared_with([hostile] * len(samples.circuit_like().meta["tokens"]))
    ElementTree.fromstring(svg(graph))
    assert not any(ord(sign) < 32 and sign != "\n" for sign in svg(graph) + summary(graph))
    check_size(summary(graph), 80)


def test_what_was_switched_is_in_the_sum_of_the_picture() -> None:
    graph = samples.circuit_like()
    nodes = graph.nodes
    nodes["in_switch"], nodes["in_bias"] = nodes["in_bias"], 0.0
    switched = Graph(nodes, graph.edges, graph.meta)
    assert "switched " in svg(switched) and "switched" not in svg(graph)
    assert "  switch    " in summary(switched)
