"""The page as text: what it holds, what it forbids, how large it is, what it leaves out."""

import base64
import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.page import wide_graph
from graphs.example import worked_example
from graphs.files import read_file, save
from graphs.graph import Graph
from graphs.nodes import INTERIOR, edge_table, node_table
from graphs.pruning import at_most
from graphs.view.page import frame, page
from tests.graphs import samples


def data_of(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_only_its_own_script_and_styles_may_run() -> None:
    html = page(samples.circuit_like())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy and policy[1].startswith("default-src 'none';") and "unsafe" not in policy[1]
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    styles = re.findall(r"<style[^>]*>(.*?)</style>", html, re.DOTALL)
    assert (len(script), len(styles)) == (1, 2)
    for part in (*script, *styles):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert set(re.findall(r"""[a-z]+://[^"' ]*""", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<[^>]*\s(src|href|on[a-z]+|style)=", html.split("<script")[0])


def test_a_circuit_read_again_gives_the_same_files(tmp_path: Path) -> None:
    """However the facts about it were ordered when it was made."""
    graph = samples.circuit_like()
    given = {"versions": {"torch": "2", "nnsight": "1"}, **graph.meta, "layers": {"mlp": "a"}}
    graph = Graph(graph.nodes, graph.edges, dict(reversed(given.items())))
    again = read_file(save(graph, tmp_path / "a.circuit"))
    for ending in ("html", "json", "svg"):
        written = (save(one, tmp_path / f"a.{ending}").read_bytes() for one in (graph, again))
        assert next(written) == next(written)


def test_it_stays_small() -> None:
    """Issue 9: the code at most 80 KB, the page of 500 nodes at most 400 KB."""
    folder = resources.files("graphs.view") / "page"
    code = sum(len(Path(str(file)).read_bytes()) for file in folder.iterdir())
    assert 20_000 < code <= 80_000
    graph = wide_graph(500, 30_000)
    assert len(graph.edges) == 30_000
    assert len(page(graph).encode()) <= 400_000


def test_what_is_left_out_is_booked_and_said() -> None:
    graph = wide_graph(300, 4_000)
    small = at_most(graph, 50, 300)
    assert small.is_kind(*INTERIOR).sum() <= 50 and len(small.edges) <= 300
    assert small.conservation() < 1e-9
    assert small.explained().sum() == pytest.approx(graph.value)
    assert at_most(graph, 300, 4_000) is graph
    data = data_of(page(graph, max_nodes=50, max_edges=300))
    count = int(small.is_kind(*INTERIOR).sum())
    said = f"{count} of 300 nodes and {len(small.edges)} of 4,000 edges"
    assert said in data["left_out"]
    assert data_of(page(graph))["left_out"] == ""
    kept = small.nodes.loc[small.is_kind(*INTERIOR), "attribution"].abs()
    assert (
        kept.min()
        >= graph.nodes.loc[graph.is_kind(*INTERIOR), "attribution"].abs().nlargest(50).min()
    )


def test_edges_are_those_of_the_graph() -> None:
    graph = samples.circuit_like()
    data = data_of(page(graph))
    source = np.frombuffer(base64.b64decode(data["edges"]["source"]), "<u2")
    flow = np.frombuffer(base64.b64decode(data["edges"]["flow"][0]), "<f4")
    target = np.repeat(np.arange(len(data["nodes"]["id"])), data["edges"]["into"])
    ids = np.array(data["nodes"]["id"])
    assert (source < target).all(), "topological order"
    found = dict(
        zip(zip(ids[source].tolist(), ids[target].tolist(), strict=True), flow, strict=True)
    )
    wanted = graph.edges.set_index(["source", "target"])["flow"]
    assert found.keys() == set(wanted.index)
    assert all(found[pair] == pytest.approx(value, rel=1e-6) for pair, value in wanted.items())


def test_effects_without_a_flow_are_no_edges() -> None:
    graph = worked_example()
    edges = graph.edges
    extra = edge_table([1], [5], [0.0], via="head", effect=[3.0])
    both = Graph(graph.nodes, pd.concat([edges, extra], ignore_index=True), graph.meta)
    assert data_of(page(both))["edges"] == data_of(page(graph))["edges"]


def test_the_union_of_a_graph_with_itself_is_the_graph() -> None:
    graph = samples.circuit_like()
    alone, both = data_of(page(graph)), data_of(page(graph, graph))
    assert both["nodes"]["id"] and set(both["nodes"]["side"]) == {0}
    assert sorted(both["nodes"]["id"]) == sorted(alone["nodes"]["id"])
    assert both["columns"]["attribution"][0] == both["columns"]["attribution"][1]
    assert both["edges"]["flow"][0] == both["edges"]["flow"][1]
    assert set(both["edges"]["side"]) == {0}


def test_a_frame_lets_scripts_run_and_nothing_else() -> None:
    text = frame(page(worked_example()))
    assert text.startswith('<iframe sandbox="allow-scripts allow-downloads" srcdoc="&lt;!doctype')
    assert text.count("<") == 2


def test_many_errors_are_not_all_drawn() -> None:
    """A long prompt has an error row for every sublayer and token."""
    graph = worked_example()
    nodes = graph.nodes
    errors = node_table(
        {"kind": ["error"] * 40, "layer": [1] * 40, "pos": [0] * 40, "attribution": range(40)},
        node=range(10, 50),
    ).astype({"attribution": float})
    errors["sublayer"] = "mlp"
    many = Graph(pd.concat([nodes, errors]), graph.edges, graph.meta)
    data = data_of(page(many, max_nodes=5))
    assert sorted(set(data["nodes"]["id"]) - set(nodes.index)) == [45, 46, 47, 48, 49]


def test_more_nodes_than_16_bits_can_number() -> None:
    graph = worked_example()
    count = 1 << 16
    tokens = node_table({"kind": ["token"] * count, "pos": [0] * count}, node=range(10, 10 + count))
    wide = data_of(page(Graph(pd.concat([graph.nodes, tokens]), graph.edges, graph.meta)))
    assert wide["edges"]["wide"] and not data_of(page(graph))["edges"]["wide"]
    source = np.frombuffer(base64.b64decode(wide["edges"]["source"]), "<u4")
    assert len(source) == 13 and source.max() >= 1 << 16
