"""Files of other formats: written, read back, checked by what else reads them."""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import jsonschema
import networkx
import numpy as np
import pandas as pd
import pytest

from circuits.parquet import read_table
from graphs.example import worked_example
from graphs.files import read_file, save
from graphs.files.neuronpedia import to_foreign
from graphs.graph import Graph
from graphs.names import node_names
from graphs.nodes import edge_table, node_table
from graphs.view.picture import svg
from tests.browser.hostile import STRINGS
from tests.graphs import samples
from tests.graphs.neuronpedia_schema import SCHEMA

MADE = Path(__file__).parent / "made_by_others"


def noted(graph: Graph) -> Graph:
    """With labels, groups, pins, and what a model said of one head's attention."""
    nodes = graph.nodes
    head, *others = nodes.index[graph.is_kind("head", "feature")][:4].tolist()
    nodes.loc[head, "label"] = "mover </script> 👩‍👧"
    names = dict(zip(nodes.index, node_names(graph), strict=True))
    split = {
        "value": 3.0,
        "rest": 0.5,
        "pairs": [[names[others[0]], names[others[1]], 2.0], ["elsewhere", names[head], 0.5]],
    }
    told = {
        "keys": [3],
        "pattern": [1.0],
        "moved": [2.0],
        "why": [{"key": 3, "score": split, "contrast": None}],
    }
    leaves = node_table(
        {"kind": ["bias", "pruned"], "layer": [1, 2], "pos": [3, 3], "attribution": [0.5, -0.25]},
        node=[700, 701],
    )
    nodes = pd.concat([nodes, leaves])
    return Graph(nodes, graph.edges, graph.meta).noted(
        groups=[
            {"label": "names", "nodes": [head, others[0]]},
            {"label": "two", "nodes": others[1:]},
        ],
        pins=[others[0], graph.target],
        details={"attention": {str(head): told}},
    )


def assert_same(one: Graph, other: Graph) -> None:
    pd.testing.assert_frame_equal(one.nodes.sort_index(), other.nodes.sort_index())
    pd.testing.assert_frame_equal(one.edges, other.edges)
    assert one.meta == other.meta


@pytest.mark.parametrize("seed", range(3))
def test_neuronpedia_and_back(tmp_path: Path, seed: int) -> None:
    graph = noted(samples.circuit_like(seed))
    path = save(graph, tmp_path / "a.json")
    assert_same(read_file(path), graph)
    content = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(SCHEMA).validate(content)
    ids = [node["node_id"] for node in content["nodes"]]
    assert len(set(ids)) == len(ids)
    logits = [node for node in content["nodes"] if node["feature_type"] == "logit"]
    assert len(logits) == 1 and logits[0]["clerp"].endswith(" (p=1.000)")
    told = [node for node in content["nodes"] if "qk_tracing_results" in node]
    assert len(told) == 1 and told[0]["feature_type"] == "lorsa"
    (pair,) = told[0]["qk_tracing_results"]["pair_wise_contributors"]
    assert set(pair[:2]) <= set(ids) and pair[2] == 2.0, "pairs of nodes that are here"
    labels = [one[0] for one in content["qParams"]["supernodes"]]
    assert labels == ["names", "two"] and len(content["qParams"]["pinnedIds"]) == 2


def test_the_schema_can_fail() -> None:
    content = to_foreign(worked_example())
    for part, key in (("nodes", "clerp"), ("links", "weight")):
        broken = json.loads(json.dumps(content))
        del broken[part][0][key]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(SCHEMA).validate(broken)


def test_ids_do_not_collide_where_rows_do() -> None:
    graph = worked_example()
    nodes = graph.nodes
    nodes["index"] = 1
    twice = Graph(nodes, graph.edges, graph.meta)
    ids = [node["node_id"] for node in to_foreign(twice)["nodes"]]
    assert len(set(ids)) == len(ids) == 6


def test_effects_and_via_are_kept(tmp_path: Path) -> None:
    graph = worked_example()
    edges = graph.edges
    edges["effect"] = np.where(np.arange(len(edges)) % 2, np.nan, 0.25)
    edges["via"] = ["q" if row % 3 == 0 else "residual" for row in range(len(edges))]
    both = Graph(graph.nodes, edges, graph.meta)
    assert_same(read_file(save(both, tmp_path / "a.json")), both)


def test_hostile_text_survives(tmp_path: Path) -> None:
    texts = [text for text in STRINGS if "\ud800" not in text]
    count = len(texts)
    nodes = node_table(
        {
            "kind": ["token"] * count + ["target"],
            "pos": [*range(count), count - 1],
            "index": [*range(count), -1],
            "token": [*texts, ""],
            "label": [*texts, ""],
            "attribution": [1.0] * count + [float(count)],
            "layer": [-1] * count + [1],
        }
    )
    edges = edge_table(range(count), [count] * count, [1.0] * count)
    target = {"label": texts[0], "value": float(count), "pos": 0}
    graph = Graph(nodes, edges, {"tokens": texts, "n_layers": 1, "target": target})
    assert_same(read_file(save(graph, tmp_path / "a.json")), graph)
    network = networkx.read_graphml(save(graph, tmp_path / "a.graphml"))
    assert len(network) == count + 1
    table = pd.read_csv(save(graph, tmp_path / "a.csv"), keep_default_na=False)
    assert len(table) == count
    nodes = pd.read_csv(tmp_path / "a.nodes.csv", keep_default_na=False)
    plain = [at for at, text in enumerate(texts) if "\r" not in text and "\x00" not in text]
    assert [nodes["label"][at] for at in plain] == [texts[at] for at in plain]


def test_graphml_is_read_by_networkx(tmp_path: Path) -> None:
    graph = samples.circuit_like()
    network = networkx.read_graphml(save(graph, tmp_path / "a.graphml"), node_type=int)
    connected = graph.nodes.loc[~graph.is_kind("error", "bias", "pruned", "switch")]
    assert set(network.nodes) == set(connected.index)
    names = dict(zip(graph.nodes.index, node_names(graph), strict=True))
    for node, row in connected.iterrows():
        assert network.nodes[node]["attribution"] == pytest.approx(row["attribution"])
        assert network.nodes[node]["name"] == names[node]
    flows = networkx.get_edge_attributes(network, "flow")
    wanted = graph.edges.set_index(["source", "target"])["flow"].to_dict()
    assert flows == pytest.approx(wanted)
    assert not networkx.get_edge_attributes(network, "effect"), "what is not known is left out"
    several = Graph(
        graph.nodes,
        graph.edges.assign(via=["q" if at % 2 else "residual" for at in range(len(graph.edges))]),
        graph.meta,
    )
    again = networkx.read_graphml(save(several, tmp_path / "b.graphml"), node_type=int)
    assert again.number_of_edges() == len(graph.edges)


def test_csv_has_both_tables(tmp_path: Path) -> None:
    graph = samples.circuit_like()
    edges = pd.read_csv(save(graph, tmp_path / "a.csv"))
    np.testing.assert_allclose(edges["flow"], graph.edges["flow"])
    names = dict(zip(graph.nodes.index, node_names(graph), strict=True))
    assert edges["source_name"].tolist() == [names[node] for node in graph.edges["source"]]
    nodes = pd.read_csv(tmp_path / "a.nodes.csv", index_col="node", keep_default_na=False)
    np.testing.assert_allclose(nodes["attribution"], graph.nodes["attribution"])
    assert nodes["name"].tolist() == node_names(graph)


def test_parquet_holds_what_csv_holds(tmp_path: Path) -> None:
    graph = samples.circuit_like()
    for ending in ("csv", "parquet"):
        assert save(graph, tmp_path / f"a.{ending}") == tmp_path / f"a.{ending}"
    for name in ("a", "a.nodes"):
        csv = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, na_values={"effect": ""})
        pd.testing.assert_frame_equal(
            read_table(tmp_path / f"{name}.parquet"), csv, check_dtype=False, rtol=1e-12
        )


def test_parquet_holds_any_token(tmp_path: Path) -> None:
    nodes = worked_example().nodes
    nodes["token"] = STRINGS[: len(nodes)]
    nodes.loc[nodes.index[0], "token"] = "\ud800"
    graph = worked_example()
    save(Graph(nodes, graph.edges, graph.meta), tmp_path / "a.parquet")
    kept = read_table(tmp_path / "a.nodes.parquet")["token"].tolist()
    assert kept == ["\\ud800", *STRINGS[1 : len(nodes)]]


def test_png_is_the_picture_at_twice_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By cairosvg where it is installed (it needs the system's cairo), else by a stand-in."""
    graph, path = worked_example(), tmp_path / "a.png"
    if importlib.util.find_spec("cairosvg") is not None:
        size = [int(text) for text in re.findall(r' (?:width|height)="(\d+)"', svg(graph))[:2]]
        head = save(graph, path).read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        assert [int.from_bytes(head[at : at + 4]) for at in (16, 20)] == [2 * one for one in size]
    assert "paint-order" not in svg(graph), "cairosvg would paint the labels over"
    given = {}
    cairo = types.ModuleType("cairosvg")
    cairo.svg2png = lambda bytestring, scale: given.update(svg=bytestring, scale=scale) or b"PNG"  # type: ignore[attr-defined]
    cairo.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "cairosvg", cairo)
    assert save(graph, path).read_bytes() == b"PNG"
    assert given["svg"] == svg(graph).encode() and given["scale"] == 2.0


def test_a_real_file_of_circuit_tracer_opens() -> None:
    """Made by the package itself (made_by_others/make.py)."""
    with pytest.warns(UserWarning, match="one of 2 logits is explained.*12 links from errors"):
        graph = read_file(MADE / "circuit_tracer.json")
    raw = json.loads((MADE / "circuit_tracer.json").read_text())
    assert graph.conservation() < 1e-6
    assert graph.explained().sum() == pytest.approx(graph.value)
    weights = {(link["source"], link["target"]): link["weight"] for link in raw["links"]}
    features = graph.nodes.loc[graph.is_kind("feature")]
    assert features[["layer", "pos", "index"]].to_numpy().tolist() == [
        [0, 1, 7], [0, 2, 3], [1, 2, 11], [1, 2, 500],
    ]  # fmt: skip
    assert features["activation"].tolist() == [1.5, 0.5, 2.0, 1.0]
    assert graph.value == pytest.approx(
        sum(weight for (_, target), weight in weights.items() if target == "3_4_2")
    )
    # one flow by hand: what the target gives 1_500_2, split by what made its activation
    last = int(features.index[features["index"].eq(500)][0])
    first = int(features.index[features["index"].eq(7)][0])
    flow = graph.edges.set_index(["source", "target"])["flow"]
    given = weights["1_500_2", "3_4_2"]
    assert flow[last, graph.target] == pytest.approx(given)
    assert flow[first, last] == pytest.approx(given / 1.0 * weights["0_7_1", "1_500_2"])
    assert graph.meta["tokens"] == ["<bos>", " Mary", " gave"]
    assert graph.meta["target"]["label"] == 'Output " John"'


def test_older_ids_and_numbers_are_understood(tmp_path: Path) -> None:
    raw = json.loads((MADE / "circuit_tracer.json").read_text())
    with pytest.warns(UserWarning):
        known = read_file(MADE / "circuit_tracer.json")
    for version, pair in (
        (1, lambda a, b: (a + b) * (a + b + 1) // 2 + b),
        (0, lambda a, b: 100_000 * a + b),
    ):
        old = json.loads(json.dumps(raw))
        old["metadata"]["schema_version"] = version
        renamed = {}
        for node in old["nodes"]:
            if node["feature_type"] == "cross layer transcoder":
                layer, index, _ = map(int, node["node_id"].split("_"))
                renamed[node["node_id"]] = f"feature-{node['node_id']}"
                node |= {"node_id": renamed[node["node_id"]], "feature": pair(layer, index)}
        for link in old["links"]:
            for end in ("source", "target"):
                link[end] = renamed.get(link[end], link[end])
        path = tmp_path / f"{version}.json"
        path.write_text(json.dumps(old))
        with pytest.warns(UserWarning):
            found = read_file(path)
        assert found.nodes["index"].tolist() == known.nodes["index"].tolist()
