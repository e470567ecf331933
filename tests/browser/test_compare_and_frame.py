"""Two circuits in one page; attention, tokens and effects; the page in a notebook's frame."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest

from circuits import Circuit, load, trace
from circuits.circuit import Circuit as Class
from graphs.names import node_names
from tests.browser.opened import Opened
from tests.circuits.folders import PROMPT

Open = Callable[..., Opened]
WHOLE = '#{"share":1,"density":1,"mix":0}'
KEY = ["kind", "layer", "sublayer", "pos", "index"]


@pytest.fixture(scope="module")
def circuit() -> Class:
    model = load("four-tasks", attention="heads")
    run = model.run(PROMPT)
    plain = trace(run.logit(" Mary") - run.logit(" John"), max_nodes=40)
    return plain.detailed(tokens=3, attention=4, test=plain.test(progress=False))


@pytest.fixture(scope="module")
def other() -> Class:
    run = load("four-tasks", attention="heads").run(PROMPT.replace("Mary", "Anna"))
    return trace(run.logit(" Anna") - run.logit(" John"), max_nodes=40)


def keys(circuit: Circuit) -> dict[tuple, int]:
    """Numbers by what makes nodes of two circuits the same."""
    table = circuit.nodes
    table = table.loc[~table["kind"].isin(["bias", "pruned", "switch"])]
    token = table["token"].where(table["kind"].eq("token"), "")
    rows = zip(*(table[name] for name in KEY), token, strict=True)
    return dict(zip(rows, table.index.tolist(), strict=True))


def test_shared_only_a_only_b(opened: Open, circuit: Class, other: Class) -> None:
    page = opened(circuit.data, other.data, WHOLE)
    a, b = keys(circuit), keys(other)
    shared = {a[key] for key in a.keys() & b.keys()}
    only_a = {a[key] for key in a.keys() - b.keys()}
    assert shared and only_a and b.keys() - a.keys()
    assert len(page.nodes()) == len(a.keys() | b.keys())
    for side, wanted in (("shared", shared), ("a", only_a)):
        page.click(f"[name=side][value={side}]")
        assert page.nodes() == wanted
    page.click("[name=side][value=b]")
    assert len(page.nodes()) == len(b.keys() - a.keys())
    assert not page.nodes() & set(a.values()), "numbers of b's own nodes are new"
    names = dict(zip(node_names(other.data), other.nodes.index, strict=True))
    titles = "return [...document.querySelectorAll('#nodes title')].map(t => t.textContent)"
    assert {text.rsplit(":", 1)[0] for text in page.js(titles)} <= set(names)


def test_a_mixture_still_sums(opened: Open, circuit: Class, other: Class) -> None:
    page = opened(circuit.data, other.data, WHOLE)
    target = circuit.data.target
    for part, value in (
        (0, circuit.value),
        (100, other.value),
        (50, (circuit.value + other.value) / 2),
    ):
        page.slide("mix", part)
        page.select(target)
        assert sum(page.bars("inflow").values()) == pytest.approx(value, abs=1e-3)
        assert page.text(".inflow .sum").startswith("sum= attribution")
    assert f"a: {circuit.data.meta['target']['label']}" in page.text("#target")


def test_a_head_shows_where_it_moved_from_and_why(opened: Open, circuit: Class) -> None:
    page = opened(circuit.data, address=WHOLE)
    told = circuit.meta["details"]["attention"]
    for node in map(int, told):
        page.select(node)
        answer = circuit.attention(node, keys=2, max_nodes=24)
        moved = page.bars("moved")
        assert sum(moved.values()) == pytest.approx(answer.attribution, abs=1e-4)
        best = answer.keys["moved"].abs().idxmax()
        assert next(iter(moved)).endswith(f"@{best}")
        assert next(iter(moved.values())) == pytest.approx(answer.keys.loc[best, "moved"], abs=1e-5)
        pairs = answer.pairs[best]
        assert sum(page.bars("score").values()) == pytest.approx(pairs.value, abs=1e-3)
        (first, amount), *_ = page.bars("score").items()
        strongest = pairs.strongest(1).iloc[0]
        assert first == f"{strongest['query']} × {strongest['key']}"
        assert amount == pytest.approx(strongest["amount"], abs=1e-4)
        break
    page.select(node)
    assert page.js("return document.querySelectorAll('.pattern span').length") == 1 + int(
        circuit.nodes.loc[node, "pos"]
    )


def test_a_head_without_its_model_shows_what_its_edges_say(opened: Open, circuit: Class) -> None:
    plain = Circuit(circuit.data.noted(details={}))
    page = opened(plain.data, address=WHOLE)
    node = int(next(iter(circuit.meta["details"]["attention"])))
    page.select(node)
    edges = plain.edges.loc[plain.edges["target"].eq(node)]
    by_key = edges.groupby(plain.nodes["pos"].reindex(edges["source"]).to_numpy())["flow"].sum()
    moved = page.bars("moved")
    best = by_key.abs().idxmax()
    assert next(iter(moved.values())) == pytest.approx(by_key[best], abs=1e-4)
    attribution = plain.nodes.loc[node, "attribution"]
    assert sum(moved.values()) == pytest.approx(attribution, abs=1e-3)
    assert page.js("return document.querySelector('.measured, .promoted')") is None


def test_tokens_and_effects_of_a_node(opened: Open, circuit: Class) -> None:
    page = opened(circuit.data, address=WHOLE)
    details = circuit.meta["details"]
    features = circuit.nodes.index[circuit.nodes["kind"].eq("feature")]
    node = int(circuit.nodes.loc[features, "attribution"].abs().idxmax())
    page.select(node)
    told = details["tokens"][str(node)]
    assert list(page.bars("promoted").items()) == [tuple(row) for row in told["promoted"]]
    assert [round(value, 9) for value in page.bars("suppressed").values()] == [
        round(row[1], 9) for row in told["suppressed"]
    ]
    measured = page.bars("measured")
    assert measured == details["measured"][str(node)]
    assert list(measured) == ["predicted", "held", "ungated", "patterns", "free"]


def test_the_card_of_a_feature(opened: Open, circuit: Class) -> None:
    features = circuit.nodes.index[circuit.nodes["kind"].eq("feature")]
    node = int(circuit.nodes.loc[features, "attribution"].abs().idxmax())
    card = {
        "name": "L0.f7",
        "rate": 0.0125,
        "strongest": 3.5,
        "examples": [["<b>Mary</b> ", "and\u202e", " John", 3.5], ["", "a", "", 2.0]],
        "promoted": [[" Mary", 0.5], [" Anna", 0.25]],
        "suppressed": [[" John", -0.5]],
    }
    details = {**circuit.meta["details"], "cards": {str(node): card}}
    page = opened(circuit.data.noted(details=details), address=WHOLE)
    page.select(node)
    assert page.text(".card h3").endswith("L0.f7") and "1.25 % of tokens" in page.text(".card p")
    items = page.js("return [...document.querySelectorAll('.examples li')].map(e => e.textContent)")
    assert items == ["3.500 <b>Mary</b> and\\u202e John", "2.000 a"]
    assert page.js(
        "return [...document.querySelectorAll('.examples mark')].map(e => e.textContent)"
    ) == [
        "and\\u202e",
        "a",
    ]
    own = dict(map(tuple, circuit.meta["details"]["tokens"][str(node)]["promoted"]))
    assert set(page.bars("promoted")) == set(own), "the node's own tokens, once"
    page = opened(circuit.data.noted(details={"cards": {str(node): card}}), address=WHOLE)
    page.select(node)
    assert page.bars("promoted") == {" Mary": 0.5, " Anna": 0.25}
    assert page.bars("suppressed") == {" John": -0.5}
    other = next(number for number in features if number != node)
    page.select(int(other))
    assert page.js("return document.querySelector('.card')") is None


def test_in_a_notebooks_frame(driver: object, circuit: Class, tmp_path: Path) -> None:
    """An origin of its own, no address, no storage: it draws, and answers a click."""
    bundle = circuit._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/svg+xml", "text/html"}
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{bundle['text/html']}", encoding="utf-8")
    driver.get(path.as_uri())  # type: ignore[attr-defined]
    driver.get_log("browser")  # type: ignore[attr-defined]
    driver.switch_to.frame(0)  # type: ignore[attr-defined]
    try:
        page = Opened.__new__(Opened)
        page.driver = driver
        page.wait(lambda: page.js("return performance.getEntriesByName('drawn').length"))
        page.click(f'[data-unit="node {circuit.data.target}"]')
        assert page.text("#about h2") == circuit.meta["target"]["label"]
        page.slide("share", 50)
        assert page.kept()[0] < 40
        assert page.complaints() == []
    finally:
        driver.switch_to.default_content()  # type: ignore[attr-defined]
    assert escape("</script>") in bundle["text/html"] and "</script>" not in bundle["text/html"]
