"""From our rows to the names Neuronpedia's format has for them; one text with page/save.js."""

from typing import Any

from graphs.graph import Graph
from graphs.names import readable

OURS = "linear_circuits"
"""Under this key the format, which allows more, holds what it has no place for."""
TYPES = {
    "token": "embedding",
    "position": "embedding",
    "lorsa": "lorsa",
    "head": "lorsa",
    "target": "logit",
}


def metadata_of(graph: Graph) -> dict[str, Any]:
    """The ``metadata`` of the format; meta stands in it whole, but what has a place elsewhere."""
    meta = graph.meta
    for name in ("details", "groups", "pins"):
        meta.pop(name, None)
    label = "".join(sign if sign.isalnum() else "-" for sign in meta["target"]["label"])
    return {
        "slug": "-".join(filter(None, label.split("-")))[:60] or "circuit",
        "scan": str(meta.get("model", "")),
        "prompt_tokens": meta["tokens"],
        "prompt": str(meta.get("prompt", "".join(meta["tokens"]))),
        "schema_version": 1,
        OURS: meta,
    }


def foreign_id(row: dict[str, Any], n_layers: int) -> str:
    """The id of a node; ids of rows that differ differ.

    >>> foreign_id({"kind": "lorsa", "layer": 2, "sublayer": "attn", "pos": 9, "index": 7}, 4)
    '2_lorsa_7_9'
    """
    kind, layer, pos, index = (row[name] for name in ("kind", "layer", "pos", "index"))
    if kind == "token":
        return f"E_{index}_{pos}"
    if kind == "position":
        return f"P_{index}_{pos}"
    if kind == "target":
        return f"{n_layers}_target_{pos}"
    if kind == "feature":
        kind = "transcoder" if row["sublayer"] == "mlp" else f"{row['sublayer']}-sae"
    elif kind == "error":
        kind, index = "error", row["sublayer"]
    return f"{layer}_{kind}_{index}_{pos}"


def foreign_node(row: dict[str, Any], name: str, n_layers: int) -> dict[str, Any]:
    """What the format asks of a node."""
    kind, layer, index = row["kind"], row["layer"], row["index"]
    node_id = foreign_id(row, n_layers)
    source = kind in ("token", "position")
    kind_there = TYPES.get(kind, "cross layer transcoder")
    if kind == "error":
        kind_there = "lorsa error" if row["sublayer"] == "attn" else "mlp reconstruction error"
    elif kind == "feature" and row["sublayer"] == "attn":
        kind_there = "lorsa"
    known = not source and kind not in ("error", "target") and index >= 0 and layer >= 0
    clerp = row["label"] or name
    return {
        "node_id": node_id,
        "feature": (layer + index) * (layer + index + 1) // 2 + index if known else None,
        "layer": "E" if source else str(n_layers if kind == "target" else layer),
        "ctx_idx": row["pos"],
        "feature_type": kind_there,
        "jsNodeId": f"{node_id}-0",
        # the page there splits a logit's label at "(p="; there is one target, of weight 1
        "clerp": f"{readable(clerp)} (p=1.000)" if kind == "target" else clerp,
        "influence": None,
        "activation": None if source or kind in ("error", "target") else row["activation"],
        "is_target_logit": kind == "target",
    }
