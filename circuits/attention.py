"""Why a head looks where it looks: what it moved from where, and the pairs behind its scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.score_pairs import ScorePairs, score_pairs
from attribution.sweep import sweep
from circuits.testing import kept_masks, removals_of, tested_nodes
from graphs.graph import Graph
from graphs.names import node_names, readable
from replacement.edits import Removal, number_of
from replacement.held import Sublayer
from replacement.layers import Lorsa
from replacement.run import Run
from replacement.scores import rest_weights

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
            contrast = self.contrasts[key]
            lines += ["", f"why {key}: {pairs}", "", f"rather than elsewhere: {contrast}"]
        return "\n".join(lines)


def attention_of(
    graph: Graph, run: Run, node: int | str, *, keys: int, max_nodes: int
) -> AttentionOf:
    """Return where a node of a traced circuit moved its attribution from, and why it looked there.

    `moved[key] = u · A[query, key] · (what was read at key)`, u being what the target gets per unit
    of the node's output through the nodes of the circuit; constants (value bias, norm bias) count
    where the pattern took them from. Raises KeyError for a node that is not in the circuit,
    ValueError for one that is no head.
    """
    name, row = _looked_up(graph, node)
    target = run.target(graph.meta["target"]["terms"])
    removals = removals_of(tested_nodes(graph))
    with torch.no_grad():
        swept = sweep(target, run.sublayers, only=kept_masks(removals, run.sublayers))
        layer = run.sublayers[2 * row.layer]
        head = _query_key_head(run, row)
        pattern = run.layers[row.layer].attention.pattern[head, row.pos]
        moved = _moved(run, layer, swept.gradients[layer.writes_at], row, pattern)
        table = _key_table(run, row, head, moved, pattern)
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
            key: score_pairs(*at, rest_weights(pattern, key), max_nodes=max_nodes) for key in chosen
        },
    )


def _looked_up(graph: Graph, node: int | str) -> tuple[str, Removal]:
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
    return names[number], removals_of(graph.nodes.loc[[number]])[0]


def _query_key_head(run: Run, row: Removal) -> int:
    reading = run.weights.layers[row.layer].attention
    return row.index // reading.group if isinstance(reading, Lorsa) else row.index


def _moved(
    run: Run,
    layer: Sublayer,
    gradient: Float[Tensor, "pos d_model"],
    row: Removal,
    pattern: Float[Tensor, " key"],
) -> Float[Tensor, " key"]:
    """The node's attribution by the position it was read at."""
    node = torch.tensor([number_of(layer, row)], device=gradient.device)
    reads = layer.reads(gradient, node)
    read = run.residuals[layer.reads_at] @ reads.vector[0, 0]
    return reads.factor[0, 0] * read + reads.constant * pattern / pattern.sum()


def _key_table(
    run: Run,
    row: Removal,
    head: int,
    moved: Float[Tensor, " key"],
    pattern: Float[Tensor, " key"],
) -> pd.DataFrame:
    """One row per key that the query sees."""
    heads, recorded = run.weights.query_key(row.layer), run.layers[row.layer].attention
    y = run.weights.layers[row.layer].attention_norm.apply(
        run.residuals[2 * row.layer], recorded.scale
    )
    query = heads.queries(y[row.pos, None], row.pos)[head, 0]
    score = heads.scale * (heads.keys(y)[heads.key_head(head)] @ query)
    seen = heads.visible(len(run.tokens), y.device)[row.pos]
    rest = (pattern * ~torch.eye(len(pattern), dtype=torch.bool, device=y.device))[seen]
    contrast = score[seen] - (rest @ score) / rest.sum(-1).clamp_min(torch.finfo(y.dtype).tiny)
    total = float(moved.sum())
    columns = {
        "pattern": pattern[seen],
        "moved": moved[seen],
        "share": moved[seen] / total if total else torch.full_like(moved[seen], torch.nan),
        "score": score[seen],
        "contrast": contrast,
    }
    places = seen.nonzero().flatten().tolist()
    return pd.DataFrame(
        {
            "token": [readable(run.tokens[pos]) for pos in places],
            **{name: column.double().cpu().numpy() for name, column in columns.items()},
        },
        index=pd.Index(places, name="key"),
    )
