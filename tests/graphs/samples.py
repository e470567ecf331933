"""Conserved graphs for the tests: small random ones, and one that looks like a circuit.

Every one comes from a random network of scalars, a_n = Σ_s w[n, s]·a_s + constants, followed back
as the sweep does: u_s = Σ_n u_n·w[n, s] + what readers outside the graph take, flow[n, s] =
u_n·w[n, s]·a_s, attribution = a·u. Both laws then hold by construction, not by booking.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from hypothesis import strategies

from graphs.graph import Graph
from graphs.nodes import INTERIOR, edge_table, node_table

Row = tuple[str, int, str, int, int]  # kind, layer, sublayer, pos, index

PROMPT = "When Mary and John went to the store, John gave a drink to"
TOKENS = PROMPT.replace(",", " ,").replace(" ", "| ").replace(" ,", ",").split("|")


def conserved(
    columns: dict[str, list], reads: list[tuple[int, int]], rng: np.random.Generator, **meta: object
) -> Graph:
    """A graph of these nodes, writers first and the target last; reads are (writer, reader)."""
    kinds = columns["kind"]
    interior = np.isin(kinds, INTERIOR)
    weight = np.zeros((len(kinds), len(kinds)))
    for writer, reader in reads:
        weight[reader, writer] = rng.choice([-1, 1], p=[0.3, 0.7]) * rng.lognormal(-0.5, 0.8)
    weight /= np.maximum(np.abs(weight).sum(axis=1, keepdims=True), 1e-9) ** 0.7
    inside = interior | (np.array(kinds) == "target")
    constants = rng.normal(0, 0.15, (3, len(kinds))) * inside
    elsewhere = rng.normal(0, 0.05, len(kinds)) * interior
    own = np.where(inside, constants.sum(axis=0), rng.lognormal(0, 0.4, len(kinds)))
    activation, upstream = _followed(weight, own, elsewhere)
    attribution = activation * upstream
    nodes = node_table(
        {
            **columns,
            "activation": activation,
            "attribution": attribution,
            "ungated": attribution * 1.1,
            "in_bias": constants[0] * upstream,
            "in_error": constants[1] * upstream,
            "in_pruned": constants[2] * upstream,
            "out_pruned": elsewhere * activation,
        }
    )
    ends = np.array(reads, dtype=np.int64).reshape(-1, 2)
    flow = upstream[ends[:, 1]] * weight[ends[:, 1], ends[:, 0]] * activation[ends[:, 0]]
    facts = {
        "tokens": ["a"],
        "n_layers": 1,
        "target": {
            "label": "logit",
            "value": float(attribution[-1]),
            "pos": 0,
        },
        **meta,
    }
    return Graph(nodes, edge_table(ends[:, 0], ends[:, 1], flow), facts)


def _followed(
    weight: np.ndarray, own: np.ndarray, elsewhere: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Activations, and what one unit of each is worth to the target."""
    activation, upstream = np.zeros(len(own)), np.zeros(len(own))
    for node in range(len(own)):
        activation[node] = weight[node] @ activation + own[node]
    upstream[-1] = 1.0
    for node in range(len(own) - 2, -1, -1):
        upstream[node] = upstream @ weight[:, node] + elsewhere[node]
    return activation, upstream


def random_graph(seed: int, sources: int, interior: int, density: float) -> Graph:
    """A random conserved graph; its rows are shuffled, its node numbers arbitrary."""
    rng = np.random.default_rng(seed)
    kinds = [
        *rng.choice(["token", "position"], sources).tolist(),
        *rng.choice(INTERIOR, interior).tolist(),
        "target",
    ]
    count = len(kinds)
    reads = [
        (writer, reader)
        for reader in range(sources, count)
        for writer in range(min(reader, count - 1))
        if rng.random() < density
    ]
    graph = conserved({"kind": kinds, "pos": [0] * count}, reads, rng)
    return relabelled(graph, rng.permutation(count), rng.permutation(len(reads)), rng)


def relabelled(
    graph: Graph, nodes: np.ndarray, edges: np.ndarray, rng: np.random.Generator
) -> Graph:
    """The same graph with its rows in another order and new node numbers."""
    table = graph.nodes
    names = dict(
        zip(
            table.index.tolist(),
            rng.permutation(3 * len(table))[: len(table)].tolist(),
            strict=True,
        )
    )
    moved = graph.edges.iloc[edges].copy()
    moved["source"], moved["target"] = moved["source"].map(names), moved["target"].map(names)
    table.index = table.index.map(names)
    return Graph(table.iloc[nodes], moved, graph.meta)


@dataclass(frozen=True)
class Recipe:
    """What a random graph is made from; made in the test, since type checks there draw numbers."""

    seed: int
    sources: int
    interior: int
    density: float

    def graph(self) -> Graph:
        """The graph."""
        return random_graph(self.seed, self.sources, self.interior, self.density)


def recipes(max_interior: int = 7) -> strategies.SearchStrategy[Recipe]:
    """Recipes for random conserved graphs."""
    return strategies.builds(
        Recipe,
        seed=strategies.integers(0, 2**32 - 1),
        sources=strategies.integers(0, 4),
        interior=strategies.integers(0, max_interior),
        density=strategies.floats(0.1, 1.0),
    )


def circuit_like(seed: int = 0, rename: Callable[[str], str] = str) -> Graph:
    """A graph as a trace of four layers gives it: 14 tokens, 40 nodes, 250 edges."""
    rng = np.random.default_rng(seed)
    tokens, layers, last = [rename(token) for token in TOKENS], 4, len(TOKENS) - 1
    rows = _rows(rng, layers, last)
    columns: dict[str, list] = {
        name: [row[place] for row in rows]
        for place, name in enumerate(("kind", "layer", "sublayer", "pos", "index"))
    }
    columns["token"] = [tokens[row[3]] for row in rows]
    keys = [
        int(rng.choice([key for key in (1, 3, 4, 9, 10) if key <= row[3]] or [0])) for row in rows
    ]
    reads = [
        (writer, reader)
        for reader in range(len(rows))
        for writer in range(reader)
        if _can_read(rows[writer], rows[reader], keys[reader]) and rng.random() < 0.8
    ]
    graph = conserved(
        columns,
        reads,
        rng,
        tokens=tokens,
        n_layers=layers,
        model="four-tasks",
        prompt="".join(tokens),
        checks={"closure": 3e-8, "conservation": 2e-8},
        target={"label": rename('" Mary" - " John"'), "value": 0.0, "pos": last},
    )
    return with_leaves(graph, [(2, "mlp", last), (1, "attn", 9), (0, "mlp", 3)])


def _rows(rng: np.random.Generator, layers: int, last: int) -> list[Row]:
    """Every row, writers first."""
    rows: list[Row] = []
    rows += [("token", -1, "", pos, 1000 + pos) for pos in range(last + 1)]
    rows += [("position", -1, "", pos, -1) for pos in (3, 9, last)]
    busy = [1, 3, 9, 9, last, last, last]
    for layer in range(layers):
        rows += _unique(("head", layer, "attn"), rng.choice(busy, 4), rng.integers(0, 8, 4))
        rows += _unique(("feature", layer, "mlp"), rng.choice(busy, 7), rng.integers(0, 2048, 7))
    rows += [
        ("neuron", 3, "mlp", last, 411),
        ("skip", 2, "mlp", last, -1),
        ("lorsa", 3, "attn", last, 1733),
    ]
    rows.sort(key=lambda row: (row[1], row[2] == "mlp"))
    rows.append(("target", layers, "", last, -1))
    return rows


def with_leaves(graph: Graph, places: list[tuple[int, str, int]]) -> Graph:
    """The graph with error rows at these places and the value its target row says."""
    table, meta = graph.nodes, graph.meta
    meta["target"]["value"] = float(graph.column("attribution")[graph.is_kind("target")][0])
    first = int(np.max(table.index)) + 1
    errors = node_table(
        {
            "kind": ["error"] * len(places),
            "layer": [place[0] for place in places],
            "sublayer": [place[1] for place in places],
            "pos": [place[2] for place in places],
            "attribution": [
                0.05 * meta["target"]["value"] * (-1) ** row for row in range(len(places))
            ],
        },
        node=range(first, first + len(places)),
    )
    return Graph(pd.concat([table, errors]), graph.edges, meta)


def _unique(place: tuple[str, int, str], positions: np.ndarray, numbers: np.ndarray) -> list[Row]:
    kind, layer, sublayer = place
    found = {(int(pos), int(number)) for pos, number in zip(positions, numbers, strict=True)}
    return [(kind, layer, sublayer, pos, number) for pos, number in sorted(found)]


def _can_read(writer: Row, reader: Row, key: int) -> bool:
    """Whether the writer comes before the reader and writes where it reads: heads also at a key."""
    if reader[0] in ("token", "position") or writer[0] == "target":
        return False
    earlier = (writer[1], writer[2] == "mlp") < (reader[1], reader[2] == "mlp")
    return earlier and (writer[3] == reader[3] or (reader[2] == "attn" and writer[3] == key))
