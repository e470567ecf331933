"""From the direct effects of others' files to a graph whose flows add up.

Such a file says how much each node acts on each other node. Followed back from the explained logit
they become flows: a node hands the attribution it has to its sources in the share of its activation
that each of them made, `flow[n, s] = attribution_n / activation_n · effect[n, s]`, which is exact
for the features these files hold (gate 1, one number each). What of the activation no source in the
file made is `in_bias`. Errors and biases have no edges here: what they gave is in `in_error`, and
their own row holds the sum.
"""

import re
import warnings
from typing import Any

import numpy as np
import pandas as pd

from graphs.graph import Graph
from graphs.nodes import INTERIOR, edge_table, node_table
from graphs.order import topological_order

KINDS = {
    "embedding": ("token", ""),
    "cross layer transcoder": ("feature", "mlp"),
    "transcoder": ("feature", "mlp"),
    "lorsa": ("lorsa", "attn"),
    "mlp reconstruction error": ("error", "mlp"),
    "lorsa error": ("error", "attn"),
    "bias": ("bias", ""),
    "logit": ("target", ""),
}
_FEATURE_ID = re.compile(r"(\d+)_(?:[a-z-]+_)?(\d+)_(\d+)")
_TOKEN_ID = re.compile(r"E_(\d+)_(\d+)")
_PROBABILITY = re.compile(r"\s*\(p=[^()]*\)\s*$")


def graph_of_effects(content: dict[str, Any]) -> Graph:
    """The graph behind one logit of a file in Neuronpedia's format, checked for its parts.

    The logit is the one marked as the target, else the likeliest. Raises ValueError for node types
    that are not known, for a file without logits, and for positions outside the prompt.
    """
    metadata, given = content["metadata"], content["nodes"]
    tokens = metadata.get("prompt_tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError('metadata.prompt_tokens is no list of text. It says what "ctx_idx" means.')
    unknown = sorted({node["feature_type"] for node in given} - KINDS.keys())
    if unknown:
        raise ValueError(
            f"Node types {', '.join(map(repr, unknown[:5]))} are not known; known are "
            f"{', '.join(KINDS)}."
        )
    outside = [node["node_id"] for node in given if not 0 <= node["ctx_idx"] < len(tokens)]
    if outside:
        raise ValueError(
            f"Nodes {', '.join(outside[:3])} lie outside the {len(tokens)} tokens of the prompt."
        )
    logits = [node for node in given if node["feature_type"] == "logit"]
    if not logits:
        raise ValueError("It has no node of type logit, so nothing is explained.")
    logit = max(logits, key=lambda node: (bool(node.get("is_target_logit")), _chance(node)))
    nodes = [node for node in given if node["feature_type"] != "logit" or node is logit]
    row_of = {node["node_id"]: row for row, node in enumerate(nodes)}
    links = [
        (row_of[link["source"]], row_of[link["target"]], float(link["weight"]))
        for link in content["links"]
        if link["source"] in row_of and link["target"] in row_of
    ]
    table = _rows(nodes, tokens, metadata.get("schema_version"))
    is_leaf = np.isin(table["kind"], ["error", "bias"])
    lost = sum(is_leaf[source] for source, *_ in links)
    if len(logits) > 1 or lost:
        warnings.warn(
            f"read: one of {len(logits)} logits is explained ({logit['node_id']}), and the "
            f"{lost} links from errors and biases are kept as sums at their readers; a circuit has "
            "one target, and its errors no edges.",
            stacklevel=4,
        )
    writer, reader, effect = (
        np.array([link[place] for link in links], dtype=kind)
        for place, kind in enumerate((np.int64, np.int64, np.float64))
    )
    return _graph(table, (writer, reader, effect), _meta(metadata, logit, table, row_of, content))


def _graph(
    table: dict[str, list[Any]], links: tuple[np.ndarray, ...], meta: dict[str, Any]
) -> Graph:
    writer, reader, effect = links
    kind, n = np.array(table["kind"]), len(table["kind"])
    into = np.bincount(reader, effect, n)
    activation = np.array([np.nan if one is None else one for one in table["activation"]], float)
    interior, target = np.isin(kind, INTERIOR), int(np.flatnonzero(kind == "target")[0])
    # where the file does not say it, a node is what its sources made of it
    activation = np.where(np.isfinite(activation) & interior, activation, into)
    order = topological_order(writer, reader, n)
    if len(order) < n:
        raise ValueError("Its links run in a circle, so nothing can be followed back along them.")
    attribution, flow = np.zeros(n), np.zeros(len(effect))
    attribution[target] = into[target]
    by_reader = np.argsort(reader, kind="stable")
    starts = np.searchsorted(reader[by_reader], np.arange(n + 1))
    for row in order[::-1]:
        own = by_reader[starts[row] : starts[row + 1]]
        if attribution[row] and activation[row]:
            flow[own] = attribution[row] / activation[row] * effect[own]
            np.add.at(attribution, writer[own], flow[own])
    edge = ~np.isin(kind, ["error", "bias"])[writer]
    sums = {
        name: np.bincount(reader, np.where(kind[writer] == name, flow, 0.0), n)
        for name in ("error", "bias")
    }
    rest = attribution - np.bincount(reader, flow, n)
    reads = interior | (kind == "target")
    columns = {
        **table,
        "activation": np.where(interior, activation, 0.0),
        "attribution": attribution,
        "ungated": attribution,
        "in_error": np.where(reads, sums["error"], 0.0),
        "in_bias": np.where(reads, sums["bias"] + rest, 0.0),
    }
    meta["target"]["value"] = float(attribution[target])
    edges = edge_table(writer[edge], reader[edge], flow[edge], effect=effect[edge])
    added = edges.groupby(["source", "target", "via"], as_index=False, sort=False).sum()
    return Graph(node_table(columns), pd.DataFrame(added), meta)


def _rows(nodes: list[dict[str, Any]], tokens: list[str], version: Any) -> dict[str, list[Any]]:
    """The columns of the node table, but for the numbers made of links."""
    table: dict[str, list[Any]] = {
        name: []
        for name in ("kind", "layer", "sublayer", "pos", "index", "token", "label", "activation")
    }
    above = max((_layer(node) for node in nodes if node["feature_type"] != "logit"), default=-1)
    for node in nodes:
        kind, sublayer = KINDS[node["feature_type"]]
        layer = max(above + 1, 1) if kind == "target" else _layer(node)
        clerp = node.get("clerp")
        row = {
            "kind": kind,
            "layer": -1 if kind == "token" else layer,
            "sublayer": sublayer,
            "pos": node["ctx_idx"],
            "index": _index(node, kind, version),
            "token": tokens[node["ctx_idx"]],
            "label": clerp if isinstance(clerp, str) and kind in INTERIOR else "",
            "activation": node.get("activation"),
        }
        for name, value in row.items():
            table[name].append(value)
    return table


def _layer(node: dict[str, Any]) -> int:
    text = str(node.get("layer"))
    return int(text) if text.isdecimal() and len(text) < 7 else -1


def _index(node: dict[str, Any], kind: str, version: Any) -> int:
    """The number of a feature or token; from the id, else from the paired number."""
    found = (_TOKEN_ID if kind == "token" else _FEATURE_ID).fullmatch(node["node_id"])
    if kind == "token":
        return int(found[1]) if found else -1
    if kind not in INTERIOR:
        return -1
    if found:
        return int(found[2])
    number, layer = node.get("feature"), max(_layer(node), 0)
    if type(number) is not int or number < 0:
        return -1
    if version == 1:  # Cantor's pairing of layer and index
        diagonal = int(((8 * number + 1) ** 0.5 - 1) / 2)
        return number - diagonal * (diagonal + 1) // 2
    return number - 100_000 * layer if number >= 100_000 * layer else number


def _chance(node: dict[str, Any]) -> float:
    chance = node.get("token_prob")
    return float(chance) if isinstance(chance, int | float) else 0.0


def _meta(
    metadata: dict[str, Any],
    logit: dict[str, Any],
    table: dict[str, list[Any]],
    row_of: dict[str, int],
    content: dict[str, Any],
) -> dict[str, Any]:
    asked = content.get("qParams") or {}
    label = _PROBABILITY.sub("", str(logit.get("clerp") or logit["node_id"]))
    groups = [
        {"label": str(one[0]), "nodes": [row_of[name] for name in one[1:] if name in row_of]}
        for one in asked.get("supernodes") or []
        if isinstance(one, list) and one
    ]
    return {
        "tokens": metadata["prompt_tokens"],
        "n_layers": table["layer"][row_of[logit["node_id"]]],
        "target": {"label": label, "value": 0.0, "pos": logit["ctx_idx"]},
        "prompt": str(metadata.get("prompt", "".join(metadata["prompt_tokens"]))),
        "model": str(metadata.get("scan", "")),
        "edges": "direct",
        "groups": groups,
        "pins": [row_of[name] for name in asked.get("pinnedIds") or [] if name in row_of],
    }
