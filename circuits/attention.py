"""Why a head looks where it looks: what it moved from where, and the pairs behind its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.by_influence import chosen_nodes
from attribution.score_pairs import ScorePairs, score_pairs
from attribution.sweep import traced_sweep
from circuits.testing import as_nodes
from graphs.graph import Graph
from graphs.names import node_names, readable
from replacement.edits import Node, number_of
from replacement.held import Gradients, Reads, Sublayer
from replacement.layers import Lorsa
from replacement.run import Run
from replacement.scores import rest_weights, scores_of

READ_BY_HEADS = ("head", "lorsa")
LEAST_SHARE = 0.05
"""A key from which less of all that was moved came is not looked into."""


@dataclass(frozen=True, eq=False)
class AttentionOf:
    """What a head or Lorsa head of a circuit moved, from which keys, and why it looked there."""

    name: str
    layer: int
    head: int
    """The query-key head whose pattern it reads by."""
    query: int
    attribution: float
    keys: pd.DataFrame
    """One row per key, by position: token, pattern, moved (its part of the node's attribution; they
    sum to it), share, score, contrast (the score less the other keys' mean, as the softmax weighs
    them)."""
    pairs: Mapping[int, ScorePairs]
    """For the keys most was moved from: the pairs of nodes behind the score."""
    contrasts: Mapping[int, ScorePairs]
    """For the same keys: the pairs behind the contrast with all other keys."""

    def __repr__(self) -> str:
        order = np.argsort(-np.abs(self.keys["moved"].to_numpy()), kind="stable")
        lines = [
            f"{self.name}: attribution {self.attribution:.4f}, moved from",
            self.keys.iloc[order[:4]].to_string(float_format=lambda number: f"{number:.4f}"),
        ]
        for key, pairs in self.pairs.items():
            lines += ["", f"why {key}: {pairs}"]
            if key in self.contrasts:  # a query that sees one key only has nothing to choose from
                lines += ["", f"rather than elsewhere: {self.contrasts[key]}"]
        return "\n".join(lines)


def attention_of(
    graph: Graph, run: Run, node: int | str, *, keys: int, max_nodes: int
) -> AttentionOf:
    """Return where a node of a traced circuit moved its attribution from, and why it looked there.

    `moved[key] = u · A[query, key] · (what was read at key)`, u being what the target gets per unit
    of the node's output through the nodes of the trace (before any pruning, so that the sum is the
    node table's attribution); constants (value bias, norm bias) count
    where the pattern took them from. Raises KeyError for a node that is not in the circuit,
    ValueError for one that is no head.
    """
    name, row = _looked_up(graph, node)
    target = run.target(graph.meta["target"]["terms"])
    meta = graph.meta
    with torch.no_grad():
        swept = traced_sweep(
            target,
            meta["threshold"],
            rule=meta["gate"],
            limit=meta["max_nodes"],
            contract=meta.get("edges") == "direct",
            only=chosen_nodes(meta.get("select", "attribution"), target, meta["max_nodes"]),
        ).swept
        assert row.pos is not None, "rows of a node table have a position"
        place = run.place(row.layer, row.sublayer)
        layer = run.sublayers[place]
        head = _query_key_head(run, row)
        pattern = run.layers[row.layer].attention.pattern[head, row.pos]
        moved = _moved(run, layer, swept.gradients[place], row, pattern)
        scores = scores_of(run, row.layer, head, row.pos)
        rest = [
            rest_weights(scores, key, run.weights.query_key(row.layer).soft_cap)
            for key in torch.isfinite(scores).nonzero().flatten().tolist()
        ]
        table = _key_table(run, moved, pattern, scores, rest)
        size = np.abs(table["moved"].to_numpy())
        strongest = np.argsort(-size, kind="stable")[:keys]
        enough = size >= LEAST_SHARE * size.sum()
        chosen = [int(table.index[place]) for place in strongest if enough[place]]
    at = (run, row.layer, head, row.pos)
    return AttentionOf(
        name=name,
        layer=row.layer,
        head=head,
        query=row.pos,
        attribution=float(moved.sum()),
        keys=table,
        pairs={key: score_pairs(*at, key, max_nodes=max_nodes) for key in chosen},
        contrasts={
            key: score_pairs(*at, weights, max_nodes=max_nodes)
            for key in chosen
            for weights in rest
            if next(iter(weights)) == key and len(weights) > 1
        },
    )


def _looked_up(graph: Graph, node: int | str) -> tuple[str, Node]:
    """The name and row of a node given by its number or its name."""
    names = dict(zip(graph.nodes.index.tolist(), node_names(graph), strict=True))
    numbers = {name: number for number, name in names.items()}
    number = numbers.get(node) if isinstance(node, str) else node
    heads = graph.nodes.loc[graph.is_kind(*READ_BY_HEADS)]
    order = np.argsort(-np.abs(np.asarray(heads["attribution"])), kind="stable")[:3]
    strongest = heads.index.to_numpy()[order].tolist()
    fitting = ", ".join(f"{one} ({names[one]})" for one in strongest) or "none here"
    if number not in names:
        raise KeyError(
            f"circuit.attention({node!r}): no such node in this circuit. Give a number or a name "
            f"of its node table; the strongest heads: {fitting}."
        )
    if number not in heads.index:
        raise ValueError(
            f"circuit.attention({node!r}): {names[number]} is a {graph.nodes.loc[number, 'kind']}, "
            f"and only heads and Lorsa heads read through one pattern. The strongest: {fitting}."
        )
    return names[number], as_nodes(graph.nodes.loc[[number]])[0]


def _query_key_head(run: Run, row: Node) -> int:
    reading = run.weights.layers[row.layer].attention
    return row.index // reading.group if isinstance(reading, Lorsa) else row.index


def _moved(
    run: Run,
    layer: Sublayer,
    gradients: Gradients,
    row: Node,
    pattern: Float[Tensor, " key"],
) -> Float[Tensor, " key"]:
    """The node's attribution by the position it was read at."""
    node = torch.tensor([number_of(layer, row)], device=pattern.device)
    reads = layer.reads(gradients, node)
    assert isinstance(reads, Reads), "of one run"
    read = run.residuals[layer.reads_at] @ reads.vector[0, 0]
    return reads.factor[0, 0] * read + reads.constant * pattern / pattern.sum()


def _key_table(
    run: Run,
    moved: Float[Tensor, " key"],
    pattern: Float[Tensor, " key"],
    scores: Float[Tensor, " key"],
    rest: Sequence[Mapping[int, float]],
) -> pd.DataFrame:
    """One row per key that the query sees; `rest`: what each of them is contrasted with."""
    places = torch.isfinite(scores).nonzero().flatten().tolist()
    score, total = scores.double().tolist(), float(moved.sum())
    contrast = [
        sum(weight * score[pos] for pos, weight in weights.items())
        if len(weights) > 1
        else float("nan")
        for weights in rest
    ]
    by_key = moved.double()[places].cpu().numpy()
    return pd.DataFrame(
        {
            "token": [readable(run.tokens[pos]) for pos in places],
            "pattern": pattern.double()[places].cpu().numpy(),
            "moved": by_key,
            "share": by_key / total if total else np.full(len(places), np.nan),
            "score": [score[pos] for pos in places],
            "contrast": contrast,
        },
        index=pd.Index(places, name="key"),
    )
