"""The page in a browser, every control of it, against what the library itself says."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from graphs.example import worked_example
from graphs.files import read_file
from graphs.files.neuronpedia import to_foreign
from graphs.graph import Graph
from graphs.names import node_names
from graphs.nodes import INTERIOR, edge_table, node_table
from graphs.paths import strongest_paths
from graphs.pruning import prune
from tests.browser.opened import Opened
from tests.graphs import samples
from tests.graphs.neuronpedia_schema import SCHEMA

Open = Callable[..., Opened]
ROW = ["kind", "layer", "sublayer", "pos", "index", "token"]
WHOLE = '#{"share":1,"density":1}'
ENTER, ESCAPE, UP, DOWN, LEFT, RIGHT = "\ue007", "\ue00c", "\ue013", "\ue015", "\ue012", "\ue014"


@pytest.fixture(scope="module")
def graph() -> Graph:
    """46 nodes of every kind, node numbers that are not row numbers."""
    rng = np.random.default_rng(7)
    plain = samples.circuit_like(3)
    return samples.relabelled(
        plain, rng.permutation(len(plain.nodes)), rng.permutation(len(plain.edges)), rng
    )


def names(graph: Graph) -> dict[str, int]:
    return dict(zip(node_names(graph), graph.nodes.index.tolist(), strict=True))


def strongest(graph: Graph, *kinds: str) -> int:
    rows = graph.nodes.loc[graph.is_kind(*kinds), "attribution"]
    return int(rows.abs().idxmax())


def drawn(graph: Graph) -> set[int]:
    return set(graph.nodes.index[~graph.is_kind("bias", "pruned", "switch")].tolist())


def test_every_node_is_drawn_and_its_bars_sum(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    assert page.nodes() == drawn(graph)
    assert page.kept() == (int(graph.is_kind(*INTERIOR).sum()), len(graph.edges))
    for node, row in graph.nodes.loc[graph.is_kind(*INTERIOR, "target", "token")].iterrows():
        page.select(int(node))
        for section in ("inflow", "outflow"):
            if row["kind"] == ("token" if section == "inflow" else "target"):
                continue
            total = sum(page.bars(section).values())
            assert total == pytest.approx(row["attribution"], abs=1e-5 * abs(graph.value))
            assert page.text(f".{section} .sum").startswith("sum= attribution")


def test_bars_of_the_example_worked_by_hand(opened: Open) -> None:
    graph = worked_example()
    page = opened(graph, address=WHOLE)
    page.select(3)
    assert page.bars("inflow") == {'"x"@0': 2.0, "L0.n0@0": 2.0, "L0.n1@0": 4.0}
    assert page.bars("outflow") == {"y": 8.0}
    page.select(5)
    assert page.bars("inflow") == {
        '"x"@0': 1.0, "L0.n0@0": 1.0, "L0.n1@0": 2.0, "L1.n0@0": 8.0, "L1.n1@0": 4.0,
    }  # fmt: skip
    assert page.text("#target") == "y = 16.000"


def test_a_wrong_sum_is_seen(opened: Open) -> None:
    """Control: where the columns do not add up the panel says so."""
    graph = worked_example()
    nodes = graph.nodes
    nodes.loc[3, "in_bias"] = 1.0
    page = opened(Graph(nodes, graph.edges, graph.meta), address=WHOLE)
    page.select(3)
    assert page.bars("inflow")["bias"] == 1.0
    assert page.text(".inflow .sum") == "sumattribution: 8.0009.000"


def test_pruning_is_the_librarys(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    for share in (0.9, 0.5, 0.7):
        small = prune(graph, share)
        page.slide("share", 100 * share)
        assert page.nodes() == drawn(small)
        assert page.kept() == (int(small.is_kind(*INTERIOR).sum()), len(small.edges))
        node = strongest(small, *INTERIOR)
        page.select(node)
        cut = small.nodes.loc[node, "in_pruned"]
        assert page.bars("inflow")["pruned"] == pytest.approx(cut, abs=1e-5)
        page.press(ESCAPE)
        parts = page.bars("explained")
        for name, value in small.explained().items():
            assert parts.get(str(name), 0.0) == pytest.approx(value, abs=1e-4)
    page.press("u")
    assert page.nodes() == drawn(prune(graph, 0.5))
    page.click("#undo")
    page.click("#undo")
    assert page.nodes() == drawn(graph)


def test_density_draws_the_strongest_edges(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    flow = np.sort(np.abs(graph.edges["flow"].to_numpy()))[::-1]
    for share in (0.3, 0.8, 1.0):
        page.slide("density", 100 * share)
        wanted = int(np.searchsorted(np.cumsum(flow), share * flow.sum() * (1 - 1e-12))) + 1
        count = min(wanted, len(flow))
        assert page.text("#kept").endswith(f"; {count} drawn")
        page.wait(
            lambda count=count: (
                page.js("return +document.getElementById('faint').dataset.drawn") == count
            )
        )
    assert page.nodes() == drawn(graph)


def test_edges_show_their_sign_in_colour_and_dash(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    node = graph.target
    page.select(node)
    flow = graph.edges.loc[graph.edges["target"].eq(node), "flow"]
    count = "return document.querySelectorAll(arguments[0]).length"
    assert page.js(count, "#strong .positive:not(.dashed)") == int((flow > 0).sum()) > 0
    assert page.js(count, "#strong .negative.dashed") == int((flow < 0).sum()) > 0
    assert page.js(count, "#strong .edge") == len(flow)
    dash = "return getComputedStyle(document.querySelector('#strong .dashed')).strokeDasharray"
    assert page.js(dash) == "5px, 4px"


def test_hovering_makes_edges_strong(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    node = strongest(graph, "feature")
    over = (
        "document.querySelector(arguments[0]).dispatchEvent("
        "new PointerEvent('pointerover', {bubbles: true}))"
    )
    edges = "return document.querySelectorAll('#strong .edge').length"
    assert page.js(edges) == 0
    page.js(over, f'[data-unit="node {node}"] .shape')
    own = graph.edges["source"].eq(node) | graph.edges["target"].eq(node)
    assert page.js(edges) == int(own.sum()) > 0
    page.js(over, "#marks")
    assert page.js(edges) == 0
    page.select(node)
    page.press("p")
    page.press(ESCAPE)
    assert page.js(edges) == int(own.sum())


def test_kinds_and_positions_can_be_hidden(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    for kind in ("token", "lorsa", "error"):
        page.click(f"#kinds [value={kind}]")
    table = graph.nodes.loc[sorted(drawn(graph))]
    left = table.loc[~table["kind"].isin(["token", "lorsa", "error"])]
    assert page.nodes() == set(left.index)
    page.select(graph.target)
    assert sum(page.bars("inflow").values()) == pytest.approx(graph.value, abs=1e-4)
    page.click('#prompt [data-pos="9"]')
    assert page.nodes() == set(left.index[left["pos"].eq(9) | left["kind"].eq("target")])
    page.click('#prompt [data-pos="9"]')
    assert page.nodes() == set(left.index)


def test_search_finds_names_labels_and_kinds(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    node = strongest(graph, "neuron")
    page.press("/")
    for sign in "l3.n411":
        page.press(sign)
    assert page.js("return document.querySelectorAll('#nodes .hit').length") == 1
    assert page.text("#about h2") == "1 found"
    page.press(ENTER)
    assert page.text("#about h2") == "L3.n411@13"
    rename(page, "curious")
    page.js(
        "const s = document.getElementById('search'); s.value = 'CURIOUS';"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    hit = "return [...document.querySelectorAll('#nodes .hit')].map(g => g.dataset.unit)"
    assert page.js(hit) == [f"node {node}"]


def rename(page: Opened, label: str) -> None:
    page.js(
        "const f = document.getElementById('label'); f.value = arguments[0];"
        "f.dispatchEvent(new Event('change', {bubbles: true}))",
        label,
    )


def test_labels_are_edited_kept_and_undone(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    node = strongest(graph, "feature")
    page.select(node)
    page.press("r")
    for sign in "John":
        page.press(sign)
    page.press(ENTER)
    shape = f'[data-unit="node {node}"]'
    assert page.text(f"{shape} .tag") == "John"
    assert page.text(f"{shape} title").startswith("John (")
    address = page.js("return location.hash")
    again = opened(graph, address=address)  # what was edited is in the address of the file
    assert again.text(f"{shape} .tag") == "John"
    again.press("u")
    assert again.text(f"{shape} .tag") == "John", "opening is not undone"
    again.select(node)
    rename(again, "other")
    again.press(ESCAPE)
    again.press("u")
    assert again.text(f"{shape} .tag") == "John"


def test_groups_by_hand_are_one_box_that_sums(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    edges = graph.edges
    first = strongest(graph, "feature")
    second = int(edges.loc[edges["source"].eq(first), "target"].iloc[0])
    second = second if second != graph.target else strongest(graph, "head")
    for node in (first, second):
        page.click(f'[data-unit="node {node}"]', shiftKey=True)
    page.press("g")
    members = {first, second}
    assert page.nodes() == drawn(graph) - members
    assert "group 0" in page.units()
    inside, outside = page.bars("inflow"), page.bars("outflow")
    whole = graph.nodes.loc[[first, second], "attribution"].sum()
    assert sum(inside.values()) == pytest.approx(whole, abs=1e-4)
    assert sum(outside.values()) == pytest.approx(whole, abs=1e-4)
    between = edges["source"].isin(members) & edges["target"].isin(members)
    own = edges.loc[between, "flow"].sum()
    assert inside.get("between its members", 0.0) == pytest.approx(own, abs=1e-5)
    rename(page, "names")
    assert page.text('[data-unit="group 0"] text') == "names"
    page.click("#open-group")
    assert page.nodes() == drawn(graph)
    page.click("#open-group")
    page.click("#dissolve")
    assert page.units() == {f"node {node}" for node in drawn(graph)}
    page.press("u")
    assert page.text('[data-unit="group 0"] text') == "names"


def twins() -> tuple[Graph, set[int]]:
    """A circuit in which one feature is split into two of the same profile, and its opposite."""
    graph = samples.circuit_like()
    node = strongest(graph, "head")
    nodes, edges = graph.nodes, graph.edges
    copies = {node: 0.6, 10_000: 0.3, 10_001: -0.2}
    numbers = ["attribution", "ungated", "in_bias", "in_error", "in_pruned", "out_pruned"]
    row, own = nodes.loc[[node]], edges["source"].eq(node) | edges["target"].eq(node)
    rows, parts = [nodes.drop(index=node)], [edges[~own]]
    for number, share in copies.items():
        other = row.copy()
        other.index = [number]
        other["index"] = 900 + number
        other[numbers] *= share
        rows.append(other)
        part = edges[own].replace({"source": {node: number}, "target": {node: number}})
        parts.append(part.assign(flow=part["flow"] * share))
    import pandas as pd

    return Graph(pd.concat(rows), pd.concat(parts, ignore_index=True), graph.meta), {node, 10_000}


def test_groups_are_proposed_by_signed_profiles(opened: Open) -> None:
    graph, alike = twins()
    page = opened(graph, address=WHOLE)
    page.click("#propose")
    found = page.js(
        "return JSON.parse(decodeURIComponent(location.hash.slice(1))).groups.map(g => g.nodes)"
    )
    having = [set(group) for group in found if alike & set(group)]
    assert len(having) == 1 and alike <= having[0], "the two halves are one group"
    assert 10_001 not in having[0], "what does the opposite is not like them"
    assert all(len(group) > 1 for group in found)
    page.press("u")
    assert page.nodes() == drawn(graph)


def test_paths_are_the_librarys(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    flows = "return [...document.querySelectorAll('.paths li')].map(li => +li.dataset.flow)"
    page.press("s")
    wanted = strongest_paths(graph, 8)
    assert page.js(flows) == pytest.approx(wanted["flow"].tolist(), rel=1e-4)
    shown = page.js("return [...document.querySelectorAll('.paths li')].map(li => li.textContent)")
    for text, path in zip(shown, wanted["text"], strict=True):
        assert text.split(" ", 1)[1].rsplit(" → ", 1)[0] == path.rsplit(" → ", 1)[0]
    page.click(".paths li button")
    best = wanted["path"].iloc[0]
    assert page.js("return document.querySelectorAll('#nodes .pin').length") == len(best)
    node = next(path for path in wanted["path"] if len(path) > 2)[1]
    page.select(node)
    page.click("#paths-here")
    many = strongest_paths(graph, 4000)
    through = [flow for path, flow in zip(many["path"], many["flow"], strict=True) if node in path]
    assert page.js(flows) == pytest.approx(through[:8], rel=1e-4)


def test_paths_between_two_pins(opened: Open) -> None:
    page = opened(worked_example(), address=WHOLE)
    for node in (0, 3):
        page.select(node)
        page.press("p")
    page.press("s")
    found = page.js(
        "return [...document.querySelectorAll('.paths li')].map(li => +li.dataset.flow)"
    )
    # x → L1.n0: 2 by itself, 4·2/4 through n0, 8·4/8 through n1
    assert found == pytest.approx([4.0, 2.0, 2.0])


def test_a_keyboard_is_enough(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    page.js("document.getElementById('marks').focus()")
    page.press(UP)
    assert page.text("#about h2") == graph.meta["target"]["label"]
    node, edges = strongest(graph, "feature"), graph.edges
    known = {number: name for name, number in names(graph).items()}
    page.select(node)
    into = edges.loc[edges["target"].eq(node)]
    node = int(into.loc[into["flow"].abs().idxmax(), "source"])
    page.press(DOWN)
    assert page.text("#about h2") == known[node]
    out = edges.loc[edges["source"].eq(node)]
    page.press(UP)
    assert page.text("#about h2") == known[int(out.loc[out["flow"].abs().idxmax(), "target"])]
    page.select(strongest(graph, "feature"))
    before = page.text("#about h2")
    page.press(RIGHT)
    assert page.text("#about h2") != before
    page.press(LEFT)
    assert page.text("#about h2") == before
    page.press("?")
    assert page.js("return document.getElementById('keys').open") is True
    page.press(ESCAPE)
    assert page.js("return document.getElementById('keys').open") is False
    page.press("p")
    assert page.js("return document.querySelectorAll('#nodes .pin').length") == 1


def test_light_dark_and_zoom(opened: Open, graph: Graph) -> None:
    page = opened(graph)
    paper = "return getComputedStyle(document.body).backgroundColor"
    width = "return document.getElementById('marks').getBoundingClientRect().width"
    light, whole = page.js(paper), page.js(width)
    page.press("t")
    assert page.js(paper) != light
    page.click("#theme")
    assert page.js(paper) == light
    page.press("+")
    assert page.js(width) == pytest.approx(1.25 * whole, rel=1e-3)
    page.press("-")
    page.press("-")
    assert page.js(width) == pytest.approx(whole / 1.25, rel=1e-3)
    page.press("0")
    room = page.js("return document.getElementById('stage').clientWidth")
    assert whole <= page.js(width) <= room


def test_contrast_of_text_and_marks(opened: Open, graph: Graph) -> None:
    """WCAG: text 4.5 : 1, marks 3 : 1, light and dark."""
    page = opened(graph)
    for _ in range(2):
        ink = {
            name: page.js(
                f"return getComputedStyle(document.documentElement).getPropertyValue('--{name}')"
            )
            for name in (
                "paper",
                "band",
                "button",
                "ink",
                "faded",
                "positive",
                "negative",
                "shared",
            )
        }
        for paper in ("paper", "band"):
            assert min(contrast(ink[name], ink[paper]) for name in ("ink", "faded")) >= 4.5
            assert (
                min(contrast(ink[name], ink[paper]) for name in ("positive", "negative", "shared"))
                >= 3
            )
        assert contrast(ink["ink"], ink["button"]) >= 4.5
        page.press("t")


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour.strip()[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((light(one), light(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_nothing_overlaps(opened: Open, graph: Graph) -> None:
    """A picture can pass every other test and be unreadable."""
    page = opened(graph, address=WHOLE)
    boxes = page.js(
        "return [...document.querySelectorAll('#nodes > g:not(.target)')].map(g => {"
        "const b = g.querySelector('.shape').getBoundingClientRect();"
        "return [b.left, b.top, b.right, b.bottom]})"
    )
    for at, (left, top, right, bottom) in enumerate(boxes):
        for x1, y1, x2, y2 in boxes[:at]:
            assert left >= x2 - 1 or x1 >= right - 1 or top >= y2 - 1 or y1 >= bottom - 1


def test_it_prints_on_paper(opened: Open, graph: Graph) -> None:
    page = opened(graph)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert page.js(shown, "#controls") == "none"
    assert page.js(shown, "#marks") != "none"
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert page.js(shown, "#controls") != "none"


def test_readable_without_javascript(driver: object, tmp_path: Path) -> None:
    from graphs.view.page import page as html_of
    from graphs.view.terminal import summary

    path = tmp_path / "page.html"
    graph = samples.circuit_like()
    path.write_text(html_of(graph))
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})  # type: ignore[attr-defined]
    try:
        driver.get(path.as_uri())  # type: ignore[attr-defined]
        assert driver.find_element("id", "text").text.strip() == summary(graph).strip()  # type: ignore[attr-defined]
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})  # type: ignore[attr-defined]


def test_saved_files(opened: Open, graph: Graph, downloads: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    page = opened(graph, address=WHOLE)
    grouped = [strongest(graph, "feature"), strongest(graph, "head")]
    page.select(grouped[0])
    rename(page, "first")
    for node in grouped:
        page.click(f'[data-unit="node {node}"]', shiftKey=True)
    page.press("g")
    page.select(graph.target)
    page.press("p")
    found = {}
    for button in ("#save-svg", "#save-png", "#save-json"):
        kind = button.removeprefix("#save-")
        page.click(button)
        found[kind] = page.wait(lambda kind=kind: next(iter(downloads.glob(f"*.{kind}")), None))
        page.wait(lambda kind=kind: found[kind].stat().st_size)
    root = ElementTree.fromstring(found["svg"].read_text(encoding="utf-8"))
    titles = [
        title
        for group in root.iter("{http://www.w3.org/2000/svg}g")
        for title in group.findall("{http://www.w3.org/2000/svg}title")
    ]
    assert len(titles) == len(drawn(graph)) - 1
    paths = [
        one
        for one in root.iter("{http://www.w3.org/2000/svg}path")
        if "edge" in one.get("class", "")
    ]
    assert len(paths) > 0.8 * len(graph.edges)
    picture = found["png"].read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert [int.from_bytes(picture[at : at + 4]) for at in (16, 20)] == [
        int(root.get(name, "0")) for name in ("width", "height")
    ]
    written = json.loads(found["json"].read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(SCHEMA).validate(written)
    ids = {node["linear_circuits"]["node"]: node for node in to_foreign(graph)["nodes"]}
    for node in written["nodes"]:
        wanted = ids[node["linear_circuits"]["node"]]
        assert set(node) == set(wanted)
        same = [name for name in node if name not in ("activation", "linear_circuits", "clerp")]
        assert {name: node[name] for name in same} == {name: wanted[name] for name in same}
    again = read_file(found["json"])
    here = again.nodes.index[~again.is_kind("error")]  # the sample's errors have no token
    assert again.nodes.loc[here, ROW].equals(graph.nodes.loc[here, ROW])
    assert again.nodes.loc[grouped, "label"].tolist() == ["first", ""]
    assert again.meta["groups"] == [{"label": "2 nodes", "nodes": grouped}]
    assert again.meta["pins"] == [graph.target]
    own, other = (one.edges.set_index(["source", "target"])["flow"] for one in (graph, again))
    assert other.to_dict() == pytest.approx(own.to_dict(), rel=1e-5)
    assert again.conservation() < 1e-5
    for path in found.values():
        path.unlink()


def test_a_graph_of_nothing_but_its_target(opened: Open) -> None:
    """No tokens, no layers, no edges: it still opens."""
    nodes = node_table({"kind": ["target"], "layer": [0], "attribution": [1.0]}, node=[5])
    meta = {"tokens": [], "n_layers": 0, "target": {"label": "", "value": 1.0}}
    page = opened(Graph(nodes, edge_table([], [], []), meta))
    assert page.units() == {"node 5"}
    page.select(5)
    page.press("s")
    page.click("#propose")
    page.slide("share", 30)
    assert page.kept() == (0, 0)


def test_what_made_a_head_look_elsewhere(opened: Open, graph: Graph) -> None:
    """In a contrast, flows by queries and keys are not said to be moved from a key."""
    head = strongest(graph, "head")
    edges = graph.edges
    into = edges.index[edges["target"].eq(head)]
    via = edges["via"].astype(object)
    via[into] = ["q", "k", "v"][: len(into)] + ["v"] * max(0, len(into) - 3)
    contrast = Graph(graph.nodes, edges.assign(via=via.astype(str)), graph.meta)
    page = opened(contrast, address=WHOLE)
    page.select(head)
    moved = page.bars("moved")
    flow = edges["flow"]
    assert moved["looking elsewhere: its query"] == pytest.approx(flow[into[0]], rel=1e-5)
    whole = graph.nodes.loc[head, "attribution"]
    assert sum(moved.values()) == pytest.approx(whole, abs=1e-4)
    names = [name for name in page.bars("inflow") if " via " in name]
    assert sorted(name[-1] for name in names)[:2] == ["k", "q"]
