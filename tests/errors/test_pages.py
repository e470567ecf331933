"""Wrong calls that ask for a page, labels or groups."""

from pathlib import Path

import pytest

from circuits import Circuit
from graphs.example import worked_example
from graphs.graph import Graph
from graphs.view.page import page
from tests.errors.mistakes import Mistake, assert_explained, each


def deeper() -> Graph:
    graph = worked_example()
    return graph.noted(n_layers=3)


PAGES = [
    Mistake(
        "no nodes at all",
        lambda _: page(worked_example(), max_nodes=0),
        ValueError,
        ("max_nodes = 0", "1 to 30,000", "The defaults"),
    ),
    Mistake(
        "two models",
        lambda _: page(worked_example(), deeper()),
        ValueError,
        ("circuits of 2 and 3 layers", "the same model"),
    ),
    Mistake(
        "a label for no node",
        lambda _: Circuit(worked_example()).label({77: "x"}),
        KeyError,
        ("77 is no node here", "node table"),
    ),
    Mistake(
        "a group of no nodes",
        lambda _: Circuit(worked_example()).group({"a": [1, 77]}),
        ValueError,
        ("not in this circuit: [77]", "one group at most"),
    ),
    Mistake(
        "a node in two groups",
        lambda _: Circuit(worked_example()).group({"a": [1, 2], "b": [2, 3]}),
        ValueError,
        ("in two groups: [2]", "one group at most"),
    ),
    Mistake(
        "groups that are none",
        lambda _: worked_example().noted(groups=[{"label": "a"}]),
        ValueError,
        ("missing or of another type", '"groups": [{"label": text, "nodes": [node numbers]}]'),
    ),
    Mistake(
        "pins that are no numbers",
        lambda _: worked_example().noted(pins=["a"]),
        ValueError,
        ('"pins": [node numbers]',),
    ),
    Mistake(
        "details that are none",
        lambda _: worked_example().noted(details={"tokens": [1]}),
        ValueError,
        ('"details": {name: {node number',),
    ),
    Mistake(
        "details without a model",
        lambda _: Circuit(worked_example()).detailed(),
        ValueError,
        ("circuit.detailed(...)", "circuit.attach(load("),
    ),
]


@each(PAGES)
def test_pages(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)


def test_labels_and_groups_are_kept() -> None:
    """Control: the right calls go through, and pruning keeps what is left of them."""
    circuit = Circuit(worked_example()).label({1: "one"}).group({"both": [1, 2]})
    assert circuit.nodes.loc[1, "label"] == "one"
    assert circuit.meta["groups"] == [{"label": "both", "nodes": [1, 2]}]
    assert "both" in circuit.prune(0.5).page()
    with pytest.raises(KeyError):
        circuit.label({9: ""})
