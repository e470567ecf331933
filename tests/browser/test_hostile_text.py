"""Whatever tokens and labels hold: nothing of it runs, all of it is seen."""

from collections.abc import Callable

import pytest

from graphs.graph import Graph
from graphs.names import readable
from graphs.nodes import edge_table, node_table
from tests.browser.hostile import STRINGS
from tests.browser.opened import Opened

Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def graph() -> Graph:
    """One token and one feature a string, which is its text, its label and what it promotes."""
    count = len(STRINGS)
    flow = [1.0 + 0.01 * at for at in range(count)]
    rows = {
        "kind": ["token"] * count + ["feature"] * count + ["target"],
        "layer": [-1] * count + [0] * count + [1],
        "sublayer": [""] * count + ["mlp"] * count + [""],
        "pos": [*range(count), *range(count), count - 1],
        "index": [*range(count), *range(count), -1],
        "token": [*STRINGS, *STRINGS, STRINGS[-1]],
        "label": [""] * count + STRINGS + [""],
        "attribution": [*flow, *flow, sum(flow)],
        "activation": [1.0] * (2 * count + 1),
    }
    edges = edge_table(
        [*range(count), *range(count, 2 * count)],
        [*range(count, 2 * count), *[2 * count] * count],
        [*flow, *flow],
    )
    meta = {
        "tokens": STRINGS,
        "n_layers": 1,
        "target": {"label": STRINGS[0], "value": sum(flow), "pos": count - 1},
        "model": STRINGS[1],
        "prompt": "".join(STRINGS),
        "details": {
            "tokens": {
                str(count + at): {"promoted": [[text, 1.0]], "suppressed": [[text, -1.0]]}
                for at, text in enumerate(STRINGS)
            },
        },
    }
    return Graph(node_table(rows), edges, meta)


def test_there_are_enough() -> None:
    assert len(set(STRINGS)) >= 50


def test_nothing_runs_and_everything_is_seen(opened: Open, graph: Graph) -> None:
    page = opened(graph, address='#{"share":1}')
    title = page.js("return document.title")
    count = len(STRINGS)
    shown = page.js(
        "return [...document.querySelectorAll('#nodes > g')].map(g =>"
        "[g.dataset.unit, g.querySelector('title').textContent])"
    )
    assert len(shown) == 2 * count + 1
    titles = dict(shown)
    tags = "script,img,iframe,base,b,textarea"
    elements = page.js("return document.querySelectorAll(arguments[0]).length", tags)
    bold = page.js("return document.querySelectorAll('footer b').length")
    assert elements == 2 + bold, "the page's own two scripts and the two marks of its legend"
    for at, text in enumerate(STRINGS):
        assert f'"{readable(text)}"@{at}' in titles[f"node {at}"]
        assert titles[f"node {count + at}"].startswith(readable(text) or "L0")
        page.select(count + at)
        assert list(page.bars("promoted")) == [readable(text)]
        rows = page.bars("inflow")
        assert next(iter(rows)) == f'"{readable(text)}"@{at}'
    assert page.js("return document.title") == title
    seen = page.js("return document.body.innerText")
    assert not [sign for sign in seen if sign in "\u202e\u2066\u200b\x00\x1b\u2028"]


def test_labels_and_groups_typed_in(opened: Open, graph: Graph) -> None:
    page = opened(graph, address='#{"share":1}')
    count = len(STRINGS)
    page.select(0)
    for text in STRINGS:
        page.js(
            "const f = document.getElementById('label'); f.value = arguments[0];"
            "f.dispatchEvent(new Event('change', {bubbles: true}))",
            text.replace("\r\n", "").replace("\ud800", "?"),  # what a field of one line can hold
        )
    for node in (count, count + 1):
        page.click(f'[data-unit="node {node}"]', shiftKey=True)
    page.press("g")
    page.js(
        "const f = document.getElementById('label'); f.value = arguments[0];"
        "f.dispatchEvent(new Event('change', {bubbles: true}))",
        STRINGS[1],
    )
    assert page.text("#about h2") == STRINGS[1]
    assert page.js("return document.querySelectorAll('img').length") == 0


def test_an_address_cannot_break_the_page(opened: Open, graph: Graph) -> None:
    """Whoever sends a link sends its state too."""
    for address in (
        "#%7B",
        '#{"share":"x","pins":5,"groups":[1,{"label":3}],"labels":null,"hidden":{}}',
        '#{"groups":[{"label":"<img src=x onerror=alert(1)>","nodes":[0,"1",null,9999]}]}',
        '#{"labels":{"0":5,"1":"<b>x</b>"},"side":"c","column":1000000,"share":-3}',
    ):
        page = opened(graph, address=address)
        assert page.js("return document.querySelectorAll('img').length") == 0
        assert page.text("#target")
