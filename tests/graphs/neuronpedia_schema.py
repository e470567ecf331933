"""What Neuronpedia's upload asks of a graph, written from its documentation (draft 7)."""

from typing import Any


def _all(kind: str, **properties: Any) -> dict[str, Any]:
    return {"type": kind, "properties": properties, "required": list(properties)}


_TEXT = {"type": "string"}
_NUMBER = {"type": ["number", "null"]}
_LAYER = {"type": ["string", "integer"]}
_NODE: dict[str, Any] = _all(
    "object",
    node_id=_TEXT,
    feature={"type": ["integer", "null"]},
    layer=_LAYER,
    ctx_idx={"type": "integer"},
    feature_type=_TEXT,
    jsNodeId=_TEXT,
    clerp=_TEXT,
)


def _rows(*kinds: str) -> dict[str, Any]:
    row = {"items": [{"type": kind} for kind in kinds], "additionalItems": False}
    return {"type": "array", "items": {"type": "array", "minItems": len(kinds), **row}}


_NODE["properties"] |= {
    "influence": _NUMBER,
    "activation": _NUMBER,
    "qk_tracing_results": _all(
        "object",
        pair_wise_contributors=_rows("string", "string", "number"),
        top_q_marginal_contributors=_rows("string", "number"),
        top_k_marginal_contributors=_rows("string", "number"),
    ),
}
SCHEMA: dict[str, Any] = _all(
    "object",
    metadata=_all(
        "object",
        slug=_TEXT,
        scan=_TEXT,
        prompt_tokens={"type": "array", "items": _TEXT},
        prompt=_TEXT,
    ),
    qParams={
        "type": "object",
        "properties": {
            "pinnedIds": {"type": "array", "items": _TEXT},
            "supernodes": {
                "type": "array",
                "items": {"type": "array", "items": _TEXT, "minItems": 1},
            },
            "linkType": _TEXT,
            "clickedId": _TEXT,
            "sg_pos": _TEXT,
        },
    },
    nodes={"type": "array", "items": _NODE},
    links={
        "type": "array",
        "items": _all("object", source=_TEXT, target=_TEXT, weight={"type": "number"}),
    },
)
