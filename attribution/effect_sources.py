"""What direct effects come from: the columns, and the vectors that were written, by stage.

Columns are ordered by sublayer, then position, so that what a target can see of a sublayer is one
slice: tokens and positions first, then for every sublayer and position its nodes, what its layer
missed (error), and what it adds whatever is active (bias). The last column is what a target reads
of constants itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held import HeadPassage, Passage, Sublayer
from replacement.run import Run

ENTERING = -1
"""The part of the columns that enters layer 0; others are numbered as sublayers are."""


IMAGE_BYTES = 2**28
"""What the images of tokens and positions behind layer 0's attention may take."""


class Writes(NamedTuple):
    """What one part of the columns wrote at one stage and position."""

    part: int
    columns: slice
    vectors: Float[Tensor, "column d_model"]


@dataclass(frozen=True, eq=False)
class Columns:
    """The sources of one run, in column order."""

    table: pd.DataFrame
    """kind, layer, sublayer, pos, index, activation: one row a column."""
    starts: list[list[int]]
    """Of every part, `ENTERING` last: its columns at position p are `starts[p]:starts[p + 1]`."""
    writes: list[list[list[Writes]]]
    """By stage and position."""
    part: Int[Tensor, " column"]
    """`ENTERING`, or the number of the sublayer; of the last column one more than there are."""
    pos: Int[Tensor, " column"]
    """-1 for the last column."""
    seen_ahead: bool
    """True if the writes of stage 1 hold what layer 0's attention passes on of what enters it, so
    that rows need not be carried through it."""
    nodes: list[Int[Tensor, " _"]]
    """Of every sublayer: the columns of its chosen nodes, in node order."""

    def within(self, part: int, first: int, end: int) -> slice:
        """Return the columns of a part at positions `first` to `end - 1`."""
        starts = self.starts[part]
        return slice(starts[first], starts[end])


class _Part(NamedTuple):
    """One part of the columns before it has its place: rows sorted by position."""

    pos: Int[Tensor, " row"]
    rows: pd.DataFrame
    at: dict[int, tuple[Int[Tensor, " some"], Float[Tensor, "some d_model"]]]
    """By stage: which rows write there, in order, and what."""
    nodes: Int[Tensor, " node"]
    """Which rows are the nodes."""


def columns_of(
    run: Run,
    chosen: Sequence[Int[Tensor, " _"]],
    passages: Sequence[Passage | None],
    *,
    ahead: bool = True,
) -> Columns:
    """Return the columns of a run: `chosen` nodes of every sublayer, and everything that is no
    node.

    `ahead`: also what layer 0's attention passes on of tokens and positions, if it fits.
    """
    n_pos = len(run.tokens)
    parts = [_entering(run)]
    for layer, nodes, passage in zip(run.sublayers, chosen, passages, strict=True):
        parts.append(_of_sublayer(layer, nodes, passage))
    own = _table(["bias"], -1, "", torch.tensor([-1]), [-1], [0.0])
    writes: list[list[list[Writes]]] = [[[] for _ in range(n_pos)] for _ in range(len(parts))]
    starts, nodes_at, numbers, count = [], [], [], 0
    for number, part in enumerate(parts, start=ENTERING):
        bounds = torch.searchsorted(part.pos, torch.arange(n_pos + 1))
        starts.append((bounds + count).tolist())
        numbers += [number] * len(part.pos)
        nodes_at.append(part.nodes + count)
        for stage, (rows, vectors) in part.at.items():
            edges = torch.searchsorted(part.pos[rows], torch.arange(n_pos + 1)).tolist()
            for pos, (first, end) in enumerate(pairwise(edges)):
                if end > first:  # rows of one stage at one position are next to each other
                    begin = count + int(rows[first])
                    columns = slice(begin, begin + end - first)
                    writes[stage][pos].append(Writes(number, columns, vectors[first:end]))
        count += len(part.pos)
    seen_ahead = ahead and _add_images(writes, parts[0], passages[0])
    return Columns(
        table=pd.concat([*(part.rows for part in parts), own], ignore_index=True),
        starts=[*starts[1:], starts[0]],
        writes=writes,
        part=torch.tensor([*numbers, len(passages)]),
        pos=torch.cat([*(part.pos for part in parts), torch.tensor([-1])]),
        nodes=nodes_at[1:],
        seen_ahead=seen_ahead,
    )


def _add_images(writes: list[list[list[Writes]]], entering: _Part, passage: Passage | None) -> bool:
    """Add what enters layer 0 once more, as its attention passes it on to every later position.

    Two vectors a position are carried up more cheaply than all rows down to them. True if done:
    not if there are no heads to pass, nor if the images would take too much memory.
    """
    _, vectors = entering.at[0]
    n_pos = len(writes[0])
    size = n_pos * vectors.numel() // 2 * vectors.element_size()
    if not isinstance(passage, HeadPassage) or size > IMAGE_BYTES:
        return False
    images = passage.ahead(vectors, entering.pos.to(vectors.device))
    for at_query, image in zip(writes[1], images, strict=True):
        at_query.append(Writes(ENTERING, slice(0, len(image)), image))
    return True


def _entering(run: Run) -> _Part:
    """Tokens, and positions where the model has learned ones."""
    kinds = ["token"]
    vectors = [run.token_writes]
    if bool(run.position_writes.any()):
        kinds, vectors = ["token", "position"], [run.token_writes, run.position_writes]
    places = torch.arange(len(run.tokens))
    index = {"token": run.token_ids.cpu(), "position": places}
    rows = [
        _table([kind] * len(places), -1, "", places, index[kind].tolist(), written.norm(dim=-1))
        for kind, written in zip(kinds, vectors, strict=True)
    ]
    return _sorted(places.repeat(len(kinds)), rows, {0: torch.cat(vectors)}, n_nodes=0)


def _of_sublayer(layer: Sublayer, nodes: Int[Tensor, " chosen"], passage: Passage | None) -> _Part:
    named = layer.rows(nodes)
    pos, places = named.pos.cpu(), torch.arange(layer.error.shape[0])
    tables = [
        _table(named.kind, layer.layer, layer.name, pos, named.index.tolist(), named.activation)
    ]
    leaves, bias = [], layer.write_bias
    if passage is not None:
        bias = passage.constant if bias is None else bias + passage.constant
    for kind, vectors in (("error", layer.error), ("bias", bias)):
        if vectors is not None and bool(vectors.any()):
            none, size = [-1] * len(places), vectors.norm(dim=-1)
            activation = size if kind == "error" else torch.zeros_like(size)
            kinds = [kind] * len(places)
            tables.append(_table(kinds, layer.layer, layer.name, places, none, activation))
            leaves.append(vectors)
    at = {stage: layer.writes(nodes, stage) for stage in layer.write_stages}
    at[layer.writes_at] = torch.cat([at[layer.writes_at], *leaves])
    return _sorted(torch.cat([pos, places.repeat(len(leaves))]), tables, at, n_nodes=len(nodes))


def _sorted(
    pos: Int[Tensor, " row"],
    tables: list[pd.DataFrame],
    at: dict[int, Float[Tensor, "_ d_model"]],
    *,
    n_nodes: int,
) -> _Part:
    """A part sorted by position; what `at` has fewer rows for was written by the nodes alone."""
    order = torch.argsort(pos, stable=True)
    place = torch.argsort(order)
    rows = pd.concat(tables, ignore_index=True).iloc[order.numpy()]
    sorted_at = {}
    for stage, vectors in at.items():
        who = order[order < len(vectors)]
        sorted_at[stage] = (place[who], vectors[who.to(vectors.device)])
    return _Part(pos[order], rows, sorted_at, place[:n_nodes])


def _table(
    kind: list[str],
    layer: int,
    sublayer: str,
    pos: Int[Tensor, " row"],
    index: list[int],
    activation: Tensor | list[float],
) -> pd.DataFrame:
    amount = activation.tolist() if isinstance(activation, Tensor) else activation
    return pd.DataFrame(
        {
            "kind": pd.Series(kind, dtype=str),
            "layer": layer,
            "sublayer": pd.Series([sublayer] * len(kind), dtype=str),
            "pos": pos.numpy(),
            "index": pd.Series(index, dtype="int64"),
            "activation": pd.Series(amount, dtype="float64"),
        }
    )
