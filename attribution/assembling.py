"""From a sweep and its flow edges to a `Graph`: the end of tensors, the beginning of tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution.direct_edges import Edges
from attribution.sweep import Sweep
from graphs.graph import Graph
from graphs.nodes import edge_table, node_table
from replacement.held import Sublayer
from replacement.run import Run
from replacement.secant import RunPair
from replacement.target import Target

Rows = dict[str, list[Any]]
_FIELDS = ("kind", "layer", "sublayer", "pos", "index", "activation", "attribution", "ungated")


def graph_of_sweep(
    target: Target,
    sublayers: Sequence[Sublayer],
    swept: Sweep,
    flow: Edges,
    *,
    kept: Sequence[Tensor],
    ungated: Sweep,
    meta: dict[str, Any],
) -> Graph:
    """Return the graph of a traced target: sources, `kept` nodes, target, then the leaves.

    Rows of kind error, bias, pruned and switch say where in the run they lie; how much of them goes
    into which node is in the columns `in_error`, `in_bias`, `in_pruned` and `in_switch`.
    """
    rows: Rows = {field: [] for field in _FIELDS}
    _add_sources(rows, target.run, swept, ungated)
    for number, (layer, nodes) in enumerate(zip(sublayers, kept, strict=True)):
        _add_kept(rows, layer, nodes, swept.attribution[number], ungated.attribution[number])
    end = target.run.weights.n_layers
    _add(rows, "target", end, "", [target.pos], activation=[target.value])
    rows["attribution"][-1] = rows["ungated"][-1] = target.value
    n_connected = len(rows["kind"])
    _add_leaves(rows, target, sublayers, swept, ungated)

    texts = np.array([*target.run.tokens, ""], dtype=object)  # the last for rows without position
    inflow = {
        name: _padded(getattr(flow, name), rows)
        for name in ("in_bias", "in_error", "in_pruned", "in_switch")
    }
    nodes = node_table({**rows, **inflow, "token": texts[rows["pos"]].tolist()})
    edges = edge_table(flow.source, flow.target, flow.flow, via=flow.via, effect=flow.effect)
    assert n_connected == len(flow.in_bias), "flow numbers its nodes as the table does"
    return Graph(nodes, edges, meta)


def _add(
    rows: Rows, kind: str | list[str], layer: int, sublayer: str, pos: list[int], **columns: list
) -> None:
    count = len(pos)
    filled = {
        "kind": [kind] * count if isinstance(kind, str) else kind,
        "layer": [layer] * count,
        "sublayer": [sublayer] * count,
        "pos": pos,
        "index": [-1] * count,
        **{name: [0.0] * count for name in ("activation", "attribution", "ungated")},
        **columns,
    }
    for field in _FIELDS:
        rows[field] += filled[field]


def _add_sources(rows: Rows, run: Run | RunPair, swept: Sweep, ungated: Sweep) -> None:
    places = list(range(len(run.tokens)))
    for kind, writes in (("token", run.token_writes), ("position", run.position_writes)):
        _add(
            rows,
            kind,
            -1,
            "",
            places,
            index=run.token_ids.tolist() if kind == "token" else places,
            activation=writes.norm(dim=-1).tolist(),
            attribution=getattr(swept.leaves, kind).tolist(),
            ungated=getattr(ungated.leaves, kind).tolist(),
        )


def _add_kept(rows: Rows, layer: Sublayer, nodes: Tensor, swept: Tensor, ungated: Tensor) -> None:
    named = layer.rows(nodes)
    _add(
        rows,
        named.kind,
        layer.layer,
        layer.name,
        named.pos.tolist(),
        index=named.index.tolist(),
        activation=named.activation.tolist(),
        attribution=swept[nodes].tolist(),
        ungated=ungated[nodes].tolist(),
    )


def _add_leaves(
    rows: Rows, target: Target, sublayers: Sequence[Sublayer], swept: Sweep, ungated: Sweep
) -> None:
    for kind in ("error", "bias", "pruned", "switch"):
        for number, layer in enumerate(sublayers):
            amount, before = (getattr(s.leaves, kind)[number] for s in (swept, ungated))
            pos = amount.nonzero(as_tuple=True)[0]
            written = layer.error if kind == "error" else torch.zeros_like(layer.error)
            _add(
                rows,
                kind,
                layer.layer,
                layer.name,
                pos.tolist(),
                activation=written[pos].norm(dim=-1).tolist(),
                attribution=amount[pos].tolist(),
                ungated=before[pos].tolist(),
            )
    if target.bias:
        constant = [target.bias]
        end = target.run.weights.n_layers
        _add(rows, "bias", end, "", [target.pos], attribution=constant, ungated=constant)


def _padded(amount: np.ndarray, rows: Rows) -> np.ndarray:
    """The column of an inflow: leaves, which come last, have none."""
    column = np.zeros(len(rows["kind"]))
    column[: len(amount)] = amount
    return column
