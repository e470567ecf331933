"""Neuronpedia's and circuit-tracer's JSON: written so that nothing of ours is lost, and read.

What the format asks of a node, link and prompt is filled (``graphs.files.foreign``). What it has no
place for (the columns of the node table, the rest of meta) stands under the key
``linear_circuits`` of every node and of ``metadata``; the format allows more keys, and others pass
over them. A file of other makers has none of them: it is read as a graph of effects.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graphs.files.atomic import write_whole
from graphs.files.effects import graph_of_effects
from graphs.files.foreign import OURS, foreign_node, metadata_of
from graphs.graph import Graph
from graphs.names import node_names
from graphs.nodes import EDGE_COLUMNS, LEAVES, NODE_COLUMNS

MAX_BYTES = 1 << 30


def write_json(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """The path, once the graph is written there in Neuronpedia's format."""
    text = json.dumps(to_foreign(graph), ensure_ascii=False, allow_nan=False, indent=1)
    return write_whole(path, text.encode("utf-8", "surrogatepass"))


def to_foreign(graph: Graph) -> dict[str, Any]:
    """The graph as Neuronpedia's JSON has it: metadata, qParams, nodes, links.

    Rows of kind bias, pruned and switch, which have no edges, stand in metadata.

    >>> from graphs.example import worked_example
    >>> content = to_foreign(worked_example())
    >>> content["links"][0]
    {'source': 'E_7_0', 'target': '0_neuron_0_0', 'weight': 4.0}
    """
    metadata = metadata_of(graph)
    rows = graph.nodes.reset_index().to_dict("records")
    names, n_layers = node_names(graph), graph.meta["n_layers"]
    ids: dict[int, str] = {}
    nodes, leaves = [], []
    for row, name in zip(rows, names, strict=True):
        if row["kind"] in LEAVES and row["kind"] != "error":
            leaves.append(row)
            continue
        node = foreign_node(row, name, n_layers)
        if node["node_id"] in ids.values():  # two rows of the same place; ours are told by number
            node["node_id"] += f"_{row['node']}"
        ids[row["node"]] = node["node_id"]
        nodes.append({**node, OURS: row})
    metadata[OURS] |= {"leaves": leaves, "details": graph.meta.get("details", {})}
    links = []
    for source, target, via, flow, effect in graph.edges.itertuples(index=False):
        link = {"source": ids[source], "target": ids[target], "weight": flow}
        link |= {} if via == "residual" else {"via": via}
        links.append(link if np.isnan(effect) else {**link, "effect": effect})
    _add_attention(nodes, graph, ids)
    return {
        "metadata": metadata,
        "qParams": {
            "linkType": "both",
            "pinnedIds": [ids[node] for node in graph.meta.get("pins", []) if node in ids],
            "supernodes": [
                [one["label"], *(ids[node] for node in one["nodes"] if node in ids)]
                for one in graph.meta.get("groups", [])
            ],
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": links,
    }


def _add_attention(nodes: list[dict[str, Any]], graph: Graph, ids: dict[int, str]) -> None:
    """``qk_tracing_results`` of heads and Lorsa heads whose scores were split, for nodes here."""
    known = {name: ids[node] for node, name in _named(graph) if node in ids}
    for number, told in graph.meta.get("details", {}).get("attention", {}).items():
        node = next((one for one in nodes if str(one[OURS]["node"]) == number), None)
        if node is None or not told.get("why"):
            continue
        pairs = [
            [known[query], known[key], amount]
            for why in told["why"]
            for query, key, amount in why["score"]["pairs"]
            if query in known and key in known
        ]
        sums: list[dict[str, float]] = [{}, {}]
        for *ends, amount in pairs:
            for side, end in zip(sums, ends, strict=True):
                side[end] = side.get(end, 0.0) + amount
        queries, keys = (
            [list(pair) for pair in sorted(side.items(), key=lambda pair: -abs(pair[1]))]
            for side in sums
        )
        node["qk_tracing_results"] = {
            "pair_wise_contributors": pairs,
            "top_q_marginal_contributors": queries,
            "top_k_marginal_contributors": keys,
        }


def _named(graph: Graph) -> list[tuple[int, str]]:
    return list(zip(graph.nodes.index.tolist(), node_names(graph), strict=True))


def read_json(path: str | os.PathLike[str]) -> Graph:
    """The graph in a JSON file of ours, of Neuronpedia or of circuit-tracer.

    Of others' files weights are direct effects: they become the column ``effect``, and flows are
    made of them (``graphs.files.effects``). Raises ValueError where it is none of these.
    """
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"It is larger than {MAX_BYTES:,} bytes, which no such file is.")
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"It is not JSON ({problem}).") from None
    _check(content)
    if all(OURS in node for node in content["nodes"]) and OURS in content["metadata"]:
        try:
            return _own(content)
        except (KeyError, TypeError, AttributeError) as problem:
            raise ValueError(
                f'What it holds under "{OURS}" is damaged ({type(problem).__name__}: {problem}). '
                "Save the circuit again."
            ) from None
    return graph_of_effects(content)


def _check(content: Any) -> None:
    """Refuse what lacks the parts of the format."""
    parts = {"metadata": dict, "qParams": dict, "nodes": list, "links": list}
    given = content if isinstance(content, dict) else {}
    wrong = [name for name, kind in parts.items() if not isinstance(given.get(name), kind)]
    if "qParams" in wrong and "qParams" not in given:
        given["qParams"] = {}
        wrong.remove("qParams")
    if wrong:
        raise ValueError(
            "It is not a graph in Neuronpedia's format: missing or of another type: "
            f"{', '.join(wrong)}. Such files come from circuit.save, circuit-tracer and "
            "neuronpedia.org."
        )
    asked = {
        "nodes": {"node_id": str, "ctx_idx": int, "feature_type": str},
        "links": {"source": str, "target": str, "weight": int | float},
    }
    for part, keys in asked.items():
        for place, one in enumerate(given[part]):
            fits = isinstance(one, dict) and all(
                isinstance(one.get(key), kind) for key, kind in keys.items()
            )
            if not fits:
                raise ValueError(
                    f"{part}[{place}] lacks {', '.join(keys)}, or they are of another type: "
                    f"{str(one)[:80]}."
                )
    ids = [node["node_id"] for node in given["nodes"]]
    unknown = {link[end] for link in given["links"] for end in ("source", "target")} - set(ids)
    if len(set(ids)) < len(ids) or unknown:
        raise ValueError(
            f"Of {len(ids)} node ids {len(set(ids))} differ, and {len(unknown)} ends of links are "
            "no node of it: the file is damaged, or its ids collide. Fetch or make it again."
        )


def _own(content: dict[str, Any]) -> Graph:
    meta = dict(content["metadata"][OURS])
    rows = [node[OURS] for node in content["nodes"]] + meta.pop("leaves", [])
    rows = [{name: _whole(row.get(name), kind) for name, kind in _ROW.items()} for row in rows]
    number = {node["node_id"]: node[OURS]["node"] for node in content["nodes"]}
    nodes = pd.DataFrame({name: [row[name] for row in rows] for name in _ROW}).set_index("node")
    links = content["links"]
    edges = pd.DataFrame(
        {
            "source": np.array([number[link["source"]] for link in links], dtype=np.int64),
            "target": np.array([number[link["target"]] for link in links], dtype=np.int64),
            "via": pd.Series([link.get("via", "residual") for link in links], dtype=str),
            "flow": np.array([link["weight"] for link in links], dtype=np.float64),
            "effect": np.array([link.get("effect", np.nan) for link in links], dtype=np.float64),
        }
    )
    asked = content["qParams"]
    groups = [
        {"label": label, "nodes": [number[one] for one in ids if one in number]}
        for label, *ids in asked.get("supernodes") or []
    ]
    pins = [number[one] for one in asked.get("pinnedIds") or [] if one in number]
    for name, given in (("groups", groups), ("pins", pins), ("details", meta.get("details"))):
        meta.pop(name, None)
        if given:
            meta[name] = given
    return Graph(nodes, edges.reindex(columns=list(EDGE_COLUMNS)), meta)


_ROW: dict[str, type] = {"node": int, **NODE_COLUMNS}


def _whole(value: Any, kind: type) -> Any:
    """What a page leaves out (``ungated``) is 0."""
    if value is None:
        return {int: -1, float: 0.0, str: ""}[kind]
    return float(value) if kind is float else value
