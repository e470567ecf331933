"""What a node and an edge are: the kinds, and which column says what.

A graph is two tables. A row of the *node table* is a node; its index, named ``node``, is a number
that stays the same when the graph is pruned. A row of the *edge table* says how much of the
target's value went from one node to another.

Node table
    ======================  ======  ============================================================
    column                  type    meaning
    ======================  ======  ============================================================
    kind                    str     one of ``KINDS``
    layer                   int     -1 where there is none; target: number of layers
    sublayer                str     "attn", "mlp"; of the residual stream "resid" (entering the
                                    layer, or of layer n_layers the final norm) or "mid" (entering
                                    its MLP); "" where there is none
    pos                     int     token position it writes at (a head: the query), or -1
    index                   int     number of the feature, neuron, head; token id; else -1
    token                   str     text of the token at ``pos``
    label                   str     what a person calls it, or ""
    activation              float   head, error, token: the norm of what it writes
    attribution             float   all it contributes to the target, along every kept path
    ungated                 float   the same in a sweep that passes through every node
    in_bias                 float   part of its attribution that came from constants
    in_error                float   ... from what the replacement layers miss
    in_pruned               float   ... from nodes and edges that were cut
    in_switch               float   ... from itself switching on or off between two runs
    out_pruned              float   part of its attribution that went to what was cut
    ======================  ======  ============================================================

Edge table
    ======================  ======  ============================================================
    source, target          int     node numbers: who wrote, who read
    via                     str     "residual"; in a contrast of two runs also q, k, v or mlp
    flow                    float   the part of the target's value that took this edge
    effect                  float   effect on the reader's pre-activation; NaN unless asked
    ======================  ======  ============================================================

The conservation law (Identity 2 of docs/design.md), for every interior node and the target, and for
every interior node, token and position:

    sum of flow in  + in_bias + in_error + in_pruned + in_switch = attribution
    sum of flow out + out_pruned                                 = attribution
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

SOURCES = ("token", "position")
INTERIOR = ("feature", "neuron", "lorsa", "head", "skip")
LEAVES = ("error", "bias", "pruned", "switch")
KINDS = (*SOURCES, *INTERIOR, *LEAVES, "target")
SUBLAYERS = ("", "resid", "attn", "mid", "mlp")

NODE_COLUMNS: dict[str, type] = {
    "kind": str,
    "layer": int,
    "sublayer": str,
    "pos": int,
    "index": int,
    "token": str,
    "label": str,
    "activation": float,
    "attribution": float,
    "ungated": float,
    "in_bias": float,
    "in_error": float,
    "in_pruned": float,
    "in_switch": float,
    "out_pruned": float,
}
EDGE_COLUMNS: dict[str, type] = {
    "source": int,
    "target": int,
    "via": str,
    "flow": float,
    "effect": float,
}

_WHEN_ABSENT: dict[type, Any] = {str: "", int: -1, float: 0.0}


def rows_of(nodes: pd.DataFrame, numbers: np.ndarray) -> np.ndarray:
    """The row of each node number in the node table, -1 where it has none."""
    count = len(nodes)
    if np.array_equal(np.asarray(nodes.index), np.arange(count)):
        return np.where((numbers >= 0) & (numbers < count), numbers, -1)
    return nodes.index.get_indexer(numbers)


def node_table(
    columns: Mapping[str, Any], node: Sequence[int] | np.ndarray | None = None
) -> pd.DataFrame:
    """The node table with these columns; those not given hold "", -1 or 0.

    Nodes are numbered from 0 unless ``node`` numbers them.
    Raises ValueError where ``kind`` is missing or a column is unknown.

    >>> table = node_table({"kind": ["token", "target"], "pos": [0, 0]})
    >>> table[["kind", "pos", "index", "attribution"]].iloc[0].to_dict()
    {'kind': 'token', 'pos': 0, 'index': -1, 'attribution': 0.0}
    """
    unknown = sorted(set(columns) - set(NODE_COLUMNS))
    if unknown or "kind" not in columns:
        raise ValueError(
            f"node_table: columns given: {', '.join(columns) or 'none'}. Known: "
            f"{', '.join(NODE_COLUMNS)}. Give kind, and drop what is not known "
            f"({', '.join(unknown) or 'nothing here'})."
        )
    count = len(columns["kind"])
    numbers = np.arange(count) if node is None else np.asarray(node)
    filled = {
        name: columns.get(
            name, np.full(count, _WHEN_ABSENT[kind], dtype=object if kind is str else kind)
        )
        for name, kind in NODE_COLUMNS.items()
    }
    return pd.DataFrame(filled, index=pd.Index(numbers, name="node"))


def edge_table(
    source: Sequence[int] | np.ndarray,
    target: Sequence[int] | np.ndarray,
    flow: Sequence[float] | np.ndarray,
    *,
    via: str | Sequence[str] | np.ndarray = "residual",
    effect: Sequence[float] | np.ndarray | None = None,
) -> pd.DataFrame:
    """The edge table of these edges; ``effect`` is NaN unless given.

    >>> edge_table([0], [1], [2.5])
       source  target       via  flow  effect
    0       0       1  residual   2.5     NaN
    """
    count = len(source)
    return pd.DataFrame(
        {
            "source": np.asarray(source, dtype=np.int64),
            "target": np.asarray(target, dtype=np.int64),
            "via": pd.Series([via] * count if isinstance(via, str) else via, dtype=str),
            "flow": np.asarray(flow, dtype=np.float64),
            "effect": np.full(count, np.nan)
            if effect is None
            else np.asarray(effect, dtype=np.float64),
        }
    )
