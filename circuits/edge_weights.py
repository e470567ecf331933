"""Edges of a traced circuit as what the run brought times what the weights hold (DESIGN 2.7)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.coactivation import denominators, held_at, pattern_numbers
from attribution.global_weights import Way
from attribution.places import GATE, RESIDUAL, Place, Places
from attribution.sweep import Sweep, traced_sweep
from graphs.graph import Graph
from graphs.names import node_names
from replacement.held import HeldFeatures, HeldHalves
from replacement.run import Run
from replacement.target import Target

AT_ONCE = 2**14
"""How many edges are multiplied out at once."""
COLUMNS = (
    "source",
    "target",
    "writer",
    "reader",
    "via",
    "activation",
    "to_target",
    "held",
    "factor",
    "weight",
    "flow",
)


class _Readers(NamedTuple):
    """Nodes that read one stage of the stream in one way."""

    number: np.ndarray
    """In the node table."""
    stage: int
    front: bool
    via: str
    vector: Float[Tensor, "node d_model"]
    held: Float[Tensor, "node pos"]
    """Pattern entry over denominator."""
    to_target: Float[Tensor, " node"]


class _Writers(NamedTuple):
    """Nodes, and what a unit of their activation adds to the stream."""

    number: np.ndarray
    pos: np.ndarray
    activation: Float[Tensor, " node"]
    scale: Float[Tensor, " node"]
    """Denominators of a norm behind them."""
    vector: Float[Tensor, "node d_model"]


def edge_weights(graph: Graph, run: Run) -> pd.DataFrame:
    """Return the edges between scalar nodes, split into input-dependent × input-invariant.

    One row an edge (several where a neuron reads through both branches of its MLP, or a feature
    writes to several layers behind norms): source, target, their names (writer, reader), via, and

    ==========  ===================================================================================
    activation  of the writer; of tokens and positions 1, their weight being that of what they write
    to_target   what the target gets per unit of the reader's pre-activation (u · gate)
    held        the pattern's entry (1 where there is none) over the denominators of the norms
    factor      the product of these: what the input brought
    weight      the global weight (`attribution.global_weights.virtual_weights`)
    flow        factor × weight; rows of an edge sum to its flow in `circuit.edges`
    ==========  ===================================================================================

    Edges from or to heads and skips, which are no scalars, are left out, as are those into a target
    other than logits of one position and features.
    """
    places = Places(run.weights)
    target = run.target(graph.meta["target"]["terms"])
    with torch.no_grad():
        meta = graph.meta
        swept = traced_sweep(
            target, meta["threshold"], rule=meta["gate"], limit=meta["max_nodes"]
        ).swept
        readers = [*_interior(graph, run, places, swept), *_target(graph, target, places)]
        found = [
            _rows(graph, one, other)
            for one in readers
            for other in _writers(graph, run, places, one)
        ]
    whole: Any = pd.concat([part for part in found if len(part)] or found[:1])
    names: Any = dict(zip(graph.nodes.index.tolist(), node_names(graph), strict=True))
    whole["writer"], whole["reader"] = whole["source"].map(names), whole["target"].map(names)
    return whole[list(COLUMNS)].sort_values(["source", "target"]).reset_index(drop=True)


def _interior(graph: Graph, run: Run, places: Places, swept: Sweep) -> Iterator[_Readers]:
    """Features, neurons and Lorsa heads of the circuit, as they read."""
    for place in places.every:
        held = held_at(run, place)
        number, nodes = _nodes(graph, place, held)
        gradients = swept.gradients[run.place(place.layer, place.name)]
        to_target = held.coefficients(gradients, nodes)
        pos, index = held.active.pos[nodes], held.active.index[nodes]
        for reader in _as_read(run, places, place, number, pos, index):
            if reader.via == GATE and isinstance(held, HeldHalves):
                to_target = held.other_coefficients(gradients, nodes)
            yield reader._replace(to_target=to_target)


def _target(graph: Graph, target: Target, places: Places) -> Iterator[_Readers]:
    """The target, as its logits (those of one position together) and its features read."""
    run, node = target.run, np.array([graph.target])
    logits: dict[int, Tensor] = {}
    for term in target.terms:
        if term.kind in ("logit", "centered_logit"):
            (seed,) = run.target([term.as_data()]).seeds
            logits[term.pos] = logits.get(term.pos, 0) + seed.vector * run.final_scale[term.pos]
        elif term.kind == "feature":
            place = places.named(term.layer, term.sublayer)
            where = torch.tensor([[term.pos], [term.index]], device=run.final_scale.device)
            weight = run.final_scale.new_full((1,), term.weight)
            for reader in _as_read(run, places, place, node, *where):
                if reader.via != GATE:  # what is explained of a halved neuron is the other branch
                    yield reader._replace(to_target=weight)
    for pos, vector in logits.items():
        held = torch.zeros_like(run.final_scale)
        held[pos] = 1 / run.final_scale[pos]
        one, end = held.new_ones(1), 2 * run.weights.n_layers
        yield _Readers(node, end, False, RESIDUAL, vector[None], held[None], one)


def _as_read(
    run: Run,
    places: Places,
    place: Place,
    number: np.ndarray,
    pos: Int[Tensor, " node"],
    index: Int[Tensor, " node"],
) -> Iterator[_Readers]:
    """Features at positions by each of their branches, in units of their pre-activation."""
    for branch in place.branches:
        patterns = pattern_numbers(place, Way(branch.via, branch, None), index)
        if patterns is None:
            at = torch.nn.functional.one_hot(pos, len(run.tokens)).to(run.final_scale)
        else:
            at = run.layers[place.layer].attention.pattern[patterns, pos]
        yield _Readers(
            number,
            place.reads_at,
            place.replaces,
            branch.via,
            places.pulled(branch, branch.rows[index]),
            at / denominators(run, place),
            at.new_ones(len(pos)),
        )


def _writers(graph: Graph, run: Run, places: Places, reader: _Readers) -> Iterator[_Writers]:
    """Everything scalar in the stream that some nodes read."""
    replaced = [one for one in places.weights.streams if one < reader.stage + (not reader.front)]
    for kind, vectors in (("token", run.token_writes), ("position", run.position_writes)):
        rows = graph.nodes.loc[graph.is_kind(kind)]
        pos = np.array(rows["pos"])
        one = vectors.new_ones(len(rows))
        if not replaced:
            yield _Writers(rows.index.to_numpy(), pos, one, one, vectors[pos])
    for place in places.every:
        held = held_at(run, place)
        number, nodes = _nodes(graph, place, held)
        pos, index = held.active.pos[nodes], held.active.index[nodes]
        activation, here = held.active.activation[nodes], pos.cpu().numpy()
        one = torch.ones_like(activation)
        whole, together = held.error.new_zeros(len(nodes), held.error.shape[1]), False
        for write in places.visible(place, reader.stage, front=reader.front):
            added, scale = places.added(place, index, write), held.joints[write].scale
            if place.joints[write] is None or scale is None:
                whole, together = whole + added, True
            else:
                yield _Writers(number, here, activation, scale[pos], added)
        if together:
            yield _Writers(number, here, activation, one, whole)


def _nodes(graph: Graph, place: Place, held: HeldFeatures) -> tuple[np.ndarray, Tensor]:
    """The circuit's nodes of one place: their numbers in its table and among the run's."""
    table = graph.nodes
    here = table.loc[
        table["kind"].eq(held.node_kind)
        & table["layer"].eq(place.layer)
        & table["sublayer"].eq(place.name)
    ]
    pairs = zip(here["pos"].tolist(), here["index"].tolist(), strict=True)
    nodes = [held.find(held.node_kind, pos, index) for pos, index in pairs]
    return here.index.to_numpy(), torch.tensor(nodes, dtype=torch.int64, device=held.error.device)


def _rows(graph: Graph, reader: _Readers, writer: _Writers) -> pd.DataFrame:
    """The edges between some writers and some readers."""
    edges = graph.edges
    to = pd.Index(reader.number).get_indexer(edges["target"].to_numpy())
    of = pd.Index(writer.number).get_indexer(edges["source"].to_numpy())
    there = (to >= 0) & (of >= 0)
    device = writer.vector.device
    row, column = (torch.tensor(part[there], device=device) for part in (to, of))
    weight = [
        (reader.vector[one] * writer.vector[other]).sum(-1)
        for one, other in zip(row.split(AT_ONCE), column.split(AT_ONCE), strict=True)
    ]
    pos = torch.tensor(writer.pos, device=device)[column]
    columns: dict[str, Any] = {
        "activation": writer.activation[column],
        "to_target": reader.to_target[row],
        "held": reader.held[row, pos] / writer.scale[column],
    }
    columns["factor"] = columns["activation"] * columns["to_target"] * columns["held"]
    columns["weight"] = torch.cat(weight)
    columns["flow"] = columns["factor"] * columns["weight"]
    return edges.loc[there, ["source", "target"]].assign(
        via=reader.via,
        **{name: part.double().cpu().numpy() for name, part in columns.items()},
    )
