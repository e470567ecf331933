"""Which pairs of nodes an attention score is made of (docs/design.md, 2.6).

With both sides held a score is bilinear in what was written at the query and at the key position:
`pairs[s, s'] = scale · (read_q write_s) · (read_k write_s')`. All pairs, with those of biases,
errors and what is lumped together as pruned, sum to the score: identity 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from graphs.names import row_names
from replacement.held import writing
from replacement.run import Run
from replacement.scores import HeldScore, StreamSide, held_score

PREFILTER = 2048
"""Rows of a side that take part in the choice of the strongest; neurons can be many more."""
COLUMNS = ("kind", "layer", "sublayer", "pos", "index", "token")
SAME = ("kind", "layer", "sublayer", "index")
"""What makes rows at different keys the same part of the model."""


@dataclass(frozen=True, eq=False)
class ScorePairs:
    """The exact split of a score, or of a contrast of one query's scores, over pairs of nodes."""

    label: str
    value: float
    """The score; what all pairs sum to."""
    query: pd.DataFrame
    """Rows of the query's side, strongest first: kind, layer, sublayer, pos, index, token, name,
    amount. `amount` is a row's sum over all pairs: what it adds to the score."""
    key: pd.DataFrame
    """Rows of the key's side, likewise."""
    matrix: np.ndarray
    """Pairs [row of `query`, row of `key`]."""

    def strongest(self, count: int = 10) -> pd.DataFrame:
        """Return the pairs of largest |amount|: query, key (names), amount, share of the score."""
        order = np.argsort(-np.abs(self.matrix), axis=None, kind="stable")[:count]
        rows, columns = np.unravel_index(order, self.matrix.shape)
        amount = self.matrix[rows, columns]
        share = amount / self.value if self.value else np.full(len(amount), np.nan)
        return pd.DataFrame(
            {
                "query": self.query["name"].to_numpy()[rows],
                "key": self.key["name"].to_numpy()[columns],
                "amount": amount,
                "share": share,
            }
        )

    def __repr__(self) -> str:
        lines = self.strongest(6).to_string(index=False, float_format=lambda x: f"{x:.4f}")
        return f"{self.label} = {self.value:.4f}; strongest pairs of nodes\n{lines}"


class _Side(NamedTuple):
    """One side of a score: who wrote what into the query or the key."""

    rows: dict[str, list[Any]]
    parts: Float[Tensor, "row d_head"]


@torch.no_grad()
def score_pairs(
    run: Run,
    layer: SupportsIndex,
    head: SupportsIndex,
    query: SupportsIndex,
    key: SupportsIndex | Mapping[int, float],
    *,
    max_nodes: int = 64,
) -> ScorePairs:
    """Return the pairs of nodes behind one attention score of a run.

    `key`: a position, or positions with weights for a weighted sum of scores (a contrast of keys,
    `replacement.scores.rest_weights`). In a sum what the same part of the model wrote at several
    keys is one row (without a position), so that what all keys have in common cancels.
    `max_nodes`: so many nodes a side are rows of their own, those with the largest sum of |pairs|;
    the others together are the row `pruned`. Rows of kind `bias` hold what no node wrote: the
    sublayers' write biases, the norm's bias and the query's or key's own. Raises IndexError or
    ValueError for a layer, head or position that does not exist or is not seen.

    >>> from circuits import load
    >>> run = load("four-tasks").run("apple Oliver tower siege apple Oliver")
    >>> pairs = score_pairs(run, layer=1, head=0, query=6, key=3)
    >>> bool(abs(pairs.matrix.sum() - pairs.value) < 1e-3)
    True
    """
    given = key if isinstance(key, Mapping) else {key: 1.0}
    places = {pos: run.score_place(layer, head, query, pos) for pos in given}
    weights = {places[pos][3]: weight for pos, weight in given.items()}
    layer, head, query, _ = next(iter(places.values()))
    scores = {pos: held_score(run, layer, head, query, pos) for pos in weights}
    first: HeldScore = next(iter(scores.values()))
    of_query = _side(run, layer, first.query)
    of_keys = _joined(
        [
            _scaled(_side(run, layer, score.key), first.scale * weights[pos])
            for pos, score in scores.items()
        ]
    )
    whole = of_query.parts.sum(0), of_keys.parts.sum(0)
    of_query, of_keys = _few(of_query, whole[1], PREFILTER), _few(of_keys, whole[0], PREFILTER)
    pairs = of_query.parts @ of_keys.parts.T
    of_query = _chosen(of_query, pairs.abs().sum(1), max_nodes)
    of_keys = _chosen(of_keys, pairs.abs().sum(0), max_nodes)
    matrix = (of_query.parts @ of_keys.parts.T).cpu().numpy().astype(np.float64)
    name = "score" if len(weights) == 1 else "contrast"
    return ScorePairs(
        label=f"{name}(L{layer}.h{head} {query}→{next(iter(weights))})",
        value=sum(weights[pos] * score.value for pos, score in scores.items()),
        query=_table(of_query, run, matrix.sum(1)),
        key=_table(of_keys, run, matrix.sum(0)),
        matrix=matrix,
    )


def _side(run: Run, layer: int, side: StreamSide) -> _Side:
    """Everything that wrote into one query or key."""
    pos = side.pos
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    found = writing(run.sublayers, 2 * layer)
    parts, bias = [], side.constant.clone()
    if not any(below.replaces for below, _ in found):
        parts += [(side.read @ part[pos])[None] for part in (run.token_writes, run.position_writes)]
        _add(rows, ["token", "position"], -1, "", pos, [int(run.token_ids[pos]), pos])
    for below, stages in found:
        nodes = (below.positions() == pos).nonzero().flatten()
        named = below.rows(nodes)
        _add(rows, named.kind, below.layer, below.name, pos, named.index.tolist())
        parts.append(below.written(nodes, stages) @ side.read.T)
        if below.writes_at not in stages:  # it wrote before the stream was replaced
            continue
        if bool(below.error[pos].any()):
            _add(rows, ["error"], below.layer, below.name, pos, [-1])
            parts.append((side.read @ below.error[pos])[None])
        if below.write_bias is not None:
            bias += side.read @ below.write_bias[pos]
    _add(rows, ["bias"], -1, "", pos, [-1])
    return _Side(rows, torch.cat([*parts, bias[None]]))


def _add(
    rows: dict[str, list[Any]],
    kind: list[str],
    layer: int,
    sublayer: str,
    pos: int,
    index: list[int],
) -> None:
    count = len(kind)
    rows["kind"] += kind
    rows["layer"] += [layer] * count
    rows["sublayer"] += [sublayer] * count
    rows["pos"] += [pos] * count
    rows["index"] += index


def _scaled(side: _Side, factor: float) -> _Side:
    return _Side(side.rows, side.parts * factor)


def _joined(sides: list[_Side]) -> _Side:
    """Several keys as one side; what the same part of the model wrote at each is one row."""
    if len(sides) == 1:
        return sides[0]
    numbers: dict[tuple[Any, ...], int] = {}
    place = [
        numbers.setdefault(same, len(numbers))
        for side in sides
        for same in zip(*(side.rows[name] for name in SAME), strict=True)
    ]
    parts = torch.cat([side.parts for side in sides])
    merged = parts.new_zeros(len(numbers), parts.shape[1])
    merged.index_add_(0, torch.tensor(place, device=parts.device), parts)
    kept = dict(zip(SAME, map(list, zip(*numbers, strict=True)), strict=True))
    # a position embedding is written at one position only, whatever else is at many
    pos = [same[-1] if same[0] == "position" else -1 for same in numbers]
    return _Side({**kept, "pos": pos, "token": []}, merged)


def _few(side: _Side, other: Float[Tensor, " d_head"], most: int) -> _Side:
    """The side with at most so many rows: those with the largest vectors and marginals."""
    if len(side.parts) <= most:
        return side
    size = side.parts.norm(dim=-1) * other.norm() + (side.parts @ other).abs()
    return _chosen(side, size, most)


def _chosen(side: _Side, strength: Float[Tensor, " row"], most: int) -> _Side:
    """The strongest rows, strongest first, then biases, then the others as one row `pruned`."""
    kind = side.rows["kind"]
    bias = [row for row, one in enumerate(kind) if one == "bias"]
    lumped = [row for row, one in enumerate(kind) if one == "pruned"]
    apart = torch.zeros_like(strength)
    apart[bias + lumped] = torch.inf
    order = (strength - apart).sort(descending=True, stable=True).indices
    nodes = order[: len(kind) - len(bias) - len(lumped)].tolist()
    kept = [*nodes[:most], *bias]
    rows = {name: [side.rows[name][row] for row in kept] for name in COLUMNS if name != "token"}
    left = nodes[most:] + lumped
    parts = side.parts[kept]
    if len(left):
        _add(rows, ["pruned"], -1, "", -1, [-1])
        parts = torch.cat([parts, side.parts[left].sum(0, keepdim=True)])
    return _Side({**rows, "token": []}, parts)


def _table(side: _Side, run: Run, amount: np.ndarray) -> pd.DataFrame:
    rows = dict(side.rows)
    rows["token"] = [
        _token(run, *row) for row in zip(rows["kind"], rows["pos"], rows["index"], strict=True)
    ]
    table = pd.DataFrame({name: rows[name] for name in COLUMNS})
    return table.assign(name=row_names(table), amount=amount)


def _token(run: Run, kind: str, pos: int, index: int) -> str:
    """The text at a row's position; of a token merged over positions, its own."""
    if pos >= 0:
        return run.tokens[pos]
    if kind != "token":
        return ""
    return run.tokens[run.token_ids.tolist().index(index)]
