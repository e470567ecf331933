"""Buttons, names that lead elsewhere, and how the sheet fits its window."""

import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import wide_graph
from graphs.graph import Graph
from graphs.nodes import INTERIOR
from graphs.pruning import prune
from tests.browser.opened import Opened
from tests.graphs import samples

Open = Callable[..., Opened]
WHOLE = '#{"share":1,"density":1}'
PINS = "return document.querySelectorAll('#nodes .pin').length"
WIDTH = "return document.getElementById('marks').getBoundingClientRect().width"
CONTROL = re.compile(r'<(?:button|input|dialog)[^>]*? id="([\w-]+)"')


@pytest.fixture(scope="module")
def graph() -> Graph:
    return samples.circuit_like(3)


@pytest.fixture
def window(driver: Any) -> Iterator[Callable[[int, int], None]]:
    """Sets the size of the window."""
    yield driver.set_window_size
    driver.set_window_size(1400, 900)


def two_features(graph: Graph) -> list[int]:
    size = graph.nodes.loc[graph.is_kind("feature"), "attribution"].abs()
    return size.sort_values().index[-2:].tolist()


def untested(tests: str) -> list[str]:
    """The controls of the page that tests do not name."""
    code = resources.files("graphs.view") / "page"
    made = re.findall(
        r'make\("(?:button|input)", \{ id: "([\w-]+)"', (code / "panel.js").read_text()
    )
    known = [*CONTROL.findall((code / "page.html").read_text()), *made]
    assert len(known) > 20
    uses = r"""(#|slide\("|getElementById\(')"""
    return [name for name in known if not re.search(rf"{uses}{name}\b", tests)]


def test_no_control_is_without_a_test() -> None:
    tests = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py")))
    assert untested(tests) == []
    assert untested(tests.replace("#theme", "")) == ["theme"]


def test_buttons_do_what_keys_do(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    page.click("#paths")
    assert page.text("#about h2") == "Strongest paths"
    page.click("#group-pins")
    assert page.text("#said") == "Pin two or more nodes (p) to group them."
    nodes = two_features(graph)
    for node in nodes:
        page.select(node)
        page.click("#pin")
    assert page.js(PINS) == 2 and page.text("#pin") == "unpin"
    page.click("#pin")
    assert page.js(PINS) == 1
    page.click("#undo")
    page.click("#group-pins")
    assert page.text("#about h2") == "2 nodes" and page.js(PINS) == 0
    page.click("#help")
    assert page.js("return document.getElementById('keys').open") is True
    page.click("#keys button")
    assert page.js("return document.getElementById('keys').open") is False
    page.press("r")
    assert page.js("return document.activeElement.id") == "label"


def test_names_in_the_panel_lead_to_their_nodes(opened: Open, graph: Graph) -> None:
    page = opened(graph, address=WHOLE)
    names = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    page.select(graph.target)
    first = page.js(names, ".inflow th button")[0]
    page.click(".inflow th button")
    assert page.text("#about h2") == first
    for node in two_features(graph):
        page.click(f'[data-unit="node {node}"]', shiftKey=True)
    page.press("g")
    member = page.js(names, ".members button")[1]
    page.click(".members li:nth-child(2) button")
    assert page.text("#about h2") == member
    its_group = [at for at, text in enumerate(page.js(names, ".buttons button")) if "its" in text]
    page.click(f".buttons button:nth-child({its_group[0] + 1})")
    assert page.text("#about h2") == "2 nodes"
    page.press("/")
    for sign in "feature":
        page.press(sign)
    found = page.js(names, ".members button")
    wanted = graph.nodes.loc[graph.is_kind("feature"), "attribution"]
    assert len(found) == min(40, len(wanted)) > 1
    page.click(".members li:nth-child(2) button")
    assert page.text("#about h2") == found[1]
    page.press("\ue00c")
    assert page.js("return document.getElementById('search').value") == ""
    assert page.js("return document.querySelectorAll('#nodes .missed').length") == 0


def test_a_sheet_that_is_too_wide_stays_legible(
    opened: Open, window: Callable[[int, int], None]
) -> None:
    """It opens at the end of the prompt; rows keep their names; the whole width when asked."""
    graph = wide_graph(200, 3_000)
    window(900, 700)
    page = opened(graph)
    width = page.js(WIDTH)
    natural = page.js("return document.getElementById('marks').viewBox.baseVal.width")
    assert width == pytest.approx(0.7 * natural, rel=1e-3)
    place = page.js("return document.querySelector('.target').getBoundingClientRect().right")
    assert 0 < place < page.js("return document.getElementById('stage').clientWidth")
    left = "return document.querySelector('#rows .layer').getBoundingClientRect().left"
    for scroll in (0, 300):
        page.js("document.getElementById('stage').scrollLeft = arguments[0]", scroll)
        page.wait(lambda: abs(page.js(left) - 13) < 4)
    page.click("#fit")
    fitting = page.js(WIDTH)
    assert fitting <= page.js("return document.getElementById('stage').clientWidth")
    for button, factor in (("#zoom-in", 1.25), ("#zoom-out", 1.0), ("#zoom-out", 0.8)):
        page.click(button)
        assert page.js(WIDTH) == pytest.approx(factor * fitting, rel=1e-2)


def test_a_narrow_window_shows_everything_below(
    opened: Open, graph: Graph, window: Callable[[int, int], None]
) -> None:
    window(500, 800)
    page = opened(graph)
    box = "return document.getElementById(arguments[0]).getBoundingClientRect().toJSON()"
    stage, about = page.js(box, "stage"), page.js(box, "about")
    assert about["top"] >= stage["bottom"] and stage["height"] > 250
    assert about["width"] <= page.js("return document.documentElement.clientWidth")


def test_the_legend_has_the_kinds_that_are_there(opened: Open, graph: Graph) -> None:
    page = opened(graph)
    shown = page.js(
        "return [...document.querySelectorAll('footer [data-kind]')]"
        ".filter(e => !e.hidden).map(e => e.dataset.kind)"
    )
    assert set(shown) == set(graph.column("kind").tolist()) & {*INTERIOR, "error"}
    page = opened(wide_graph(20, 60))
    assert page.text("footer [data-kind=feature]") == "● feature"
    assert page.js("return document.querySelector('footer [data-kind=neuron]').hidden") is True


def test_it_is_printed_light_and_whole(opened: Open, graph: Graph) -> None:
    page = opened(graph)
    page.press("t")
    for _ in range(4):
        page.press("+")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        paper = "return getComputedStyle(document.body).backgroundColor"
        assert page.js(paper) == "rgb(255, 255, 255)"
        room = page.js("return document.documentElement.clientWidth")
        assert room - 20 < page.js(WIDTH) <= room
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_circuit_that_was_pruned_opens_whole(opened: Open, graph: Graph) -> None:
    small = prune(graph, 0.7)
    page = opened(small)
    assert page.text("#share-text") == "100 %"
    assert page.kept() == (int(small.is_kind(*INTERIOR).sum()), len(small.edges))


def test_what_was_chosen_is_in_the_address(opened: Open, graph: Graph) -> None:
    """A page opened at the address of another is as that one was left."""
    page = opened(graph, address=WHOLE)
    page.select(graph.target)
    page.press("p")
    page.slide("share", 60)
    page.click("#kinds [value=error]")
    kept, units = page.kept(), page.units()
    again = opened(graph, address=page.js("return location.hash"))
    assert (again.kept(), again.units()) == (kept, units) and again.js(PINS) == 1


def test_a_large_circuit_answers(opened: Open) -> None:
    """2,000 nodes and 30,000 edges: all of them drawn, and the bars of the strongest sum."""
    graph = wide_graph(2_000, 30_000)
    page = opened(graph, address=WHOLE)
    assert page.kept() == (2_000, 30_000)
    page.wait(lambda: page.js("return +document.getElementById('faint').dataset.drawn") == 30_000)
    node = int(graph.nodes.loc[graph.is_kind(*INTERIOR), "attribution"].abs().idxmax())
    page.select(node)
    for section in ("inflow", "outflow"):
        total = sum(page.bars(section).values())
        assert total == pytest.approx(graph.nodes.loc[node, "attribution"], rel=1e-4)
