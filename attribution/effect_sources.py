"""What direct effects come from: the columns, and the vectors that were written, by stage.

Columns are ordered by sublayer, then position, so that what a target can see of a sublayer is one
slice: tokens and positions first, then for every sublayer and position its nodes, what its layer
missed (error), and what it adds whatever is active (bias). The last column is what a target reads
of constants itself. Written vectors are looked up when rows meet them, since all of them together
take more than a batch at work; positions are met some at a time, in spans, each with as many places
as its fullest position needs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from replacement.held import HeadPassage, Passage, Sublayer
from replacement.run import Run

ENTERING = -1
"""The part of the columns that enters layer 0; others are numbered as sublayers are."""


IMAGE_BYTES = 2**28
"""What the images of tokens and positions behind layer 0's attention may take."""
PADDING = 1.4
"""A span of positions ends where it would have so many times as many places as columns."""
SPANS = 4
"""At least so many spans: what is looked up at once stays small."""


class Span(NamedTuple):
    """Positions `first` to `end - 1` of one part, and where its places begin."""

    first: int
    end: int
    begin: int
    width: int
    """Places a position."""
    nodes: Int[Tensor, "pos place"]
    """Which node has a place, the first where none has; leaves have the last ones."""


@dataclass(frozen=True, eq=False)
class Writes:
    """What one part of the columns wrote at one stage."""

    layer: Sublayer | None
    """Whose nodes they are; None where there are leaves only."""
    stage: int
    leaves: Float[Tensor, "pos leaf d_model"]
    """What is no node: written at the first stage of the nodes alone."""
    spans: list[Span]
    """Of all positions."""

    def vectors(self, number: int, first: int, end: int) -> Float[Tensor, "pos place d_model"]:
        """Return what was written at positions `first` to `end - 1` of a span."""
        if self.layer is None:
            return self.leaves[first:end]
        span, n_leaves = self.spans[number], self.leaves.shape[1]
        width = span.width if self.stage == self.layer.writes_at else span.width - n_leaves
        nodes = span.nodes[first - span.first : end - span.first, :width]
        made = self.layer.writes(nodes.flatten(), self.stage)
        made = made.view(*nodes.shape, made.shape[-1])
        if self.stage == self.layer.writes_at:
            made[:, width - n_leaves :] = self.leaves[first:end]
        return made

    def places(
        self, effects: Shaped[Tensor, "row all_places"], number: int, first: int, end: int
    ) -> Shaped[Tensor, "row pos place"]:
        """Return the part of a table of effects that is of positions of a span, as a view."""
        span = self.spans[number]
        begin, sizes = span.begin + (first - span.first) * span.width, (end - first, span.width)
        return effects[:, begin : begin + math.prod(sizes)].unflatten(1, sizes)


@dataclass(frozen=True, eq=False)
class Columns:
    """The sources of one run, in column order."""

    table: pd.DataFrame
    """kind, layer, sublayer, pos, index, activation: one row a column."""
    starts: list[list[int]]
    """Of every part, `ENTERING` last: its columns at position p are `starts[p]:starts[p + 1]`."""
    writes: list[list[Writes]]
    """By stage."""
    spans: list[tuple[int, int]]
    """First and end position of the spans of every part."""
    place: Int[Tensor, " column"]
    """Where a column is in a batch's table of effects."""
    ends: list[int]
    """Where the places of every part end, `ENTERING` last: parts in order."""
    images: list[Float[Tensor, "_ d_model"]]
    """By position: what layer 0's attention passes on there of what enters it, so that rows need
    not be carried through it. Empty where that is not done."""
    part: Int[Tensor, " column"]
    """`ENTERING`, or the number of the sublayer; of the last column one more than there are."""
    pos: Int[Tensor, " column"]
    """-1 for the last column."""
    nodes: list[Int[Tensor, " _"]]
    """Of every sublayer: the columns of its chosen nodes, in node order."""

    def within(self, part: int, first: int, end: int) -> slice:
        """Return the columns of a part at positions `first` to `end - 1`."""
        starts = self.starts[part]
        return slice(starts[first], starts[end])

    def below(self, stage: int) -> int:
        """Return how many places there are of parts that a stage can see: they come first."""
        return self.ends[stage - 1]

    def written(
        self, stage: int
    ) -> Iterator[tuple[Int[Tensor, " some"], Float[Tensor, "some d_model"]]]:
        """Yield columns that write at a stage, and what: images apart."""
        column = torch.full((max(self.ends),), -1, device=self.place.device)
        column[self.place] = torch.arange(len(self.place), device=column.device)
        for writes in self.writes[stage]:
            for number, span in enumerate(writes.spans):
                vectors = writes.vectors(number, span.first, span.end)
                places = writes.places(column[None], number, span.first, span.end)[0]
                which = places[:, : vectors.shape[1]]
                yield which[which >= 0], vectors[which >= 0]

    @property
    def seen_ahead(self) -> bool:
        """Whether there are images."""
        return bool(self.images)


class _Part(NamedTuple):
    """One part of the columns before it has its places: nodes sorted by position, and leaves."""

    layer: Sublayer | None
    nodes: Int[Tensor, " node"]
    pos: Int[Tensor, " node"]
    leaves: Float[Tensor, "pos leaf d_model"]
    columns: list["_Named"]
    """What nodes are called, then leaves, kind by kind."""


class _Named(NamedTuple):
    """What some columns of one sublayer are called."""

    layer: int
    sublayer: str
    kind: list[str]
    index: Int[Tensor, " column"]
    activation: Float[Tensor, " column"]


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
    counts = [part.pos.bincount(minlength=n_pos) + part.leaves.shape[1] for part in parts]
    spans = _spans(torch.stack(counts))
    writes: list[list[Writes]] = [[] for _ in parts]
    starts, ends, nodes_at, numbers, places, positions, orders = [], [], [], [], [], [], []
    count, end = 0, 1  # a target's own constants have the first place
    for number, (part, full) in enumerate(zip(parts, counts, strict=True), start=ENTERING):
        laid, place, end = _laid_out(part, spans, full, end)
        pos = torch.cat([part.pos, torch.arange(n_pos).repeat(part.leaves.shape[1])])
        order = pos.argsort(stable=True)
        starts.append([count, *(full.cumsum(0) + count).tolist()])
        ends.append(end)
        nodes_at.append(order.argsort()[: len(part.nodes)] + count)
        orders.append(order + count)
        places.append(place[order])
        positions.append(pos[order])
        numbers += [number] * len(pos)
        stages = (0,) if part.layer is None else part.layer.write_stages
        layer = part.layer if len(part.nodes) else None
        for stage in stages if layer else stages[:1]:
            if len(pos):
                writes[stage].append(Writes(layer, stage, part.leaves, laid))
        count += len(pos)
    return Columns(
        table=_table([one for part in parts for one in part.columns], orders, positions),
        starts=[*starts[1:], starts[0]],
        writes=writes,
        spans=spans,
        place=torch.cat([*places, torch.zeros(1, dtype=torch.long)]).to(run.token_writes.device),
        ends=[*ends[1:], ends[0]],
        images=_images(parts[0], passages[0]) if ahead else [],
        part=torch.tensor([*numbers, len(passages)]),
        pos=torch.cat([*positions, torch.tensor([-1])]),
        nodes=nodes_at[1:],
    )


def _spans(counts: Int[Tensor, "part pos"]) -> list[tuple[int, int]]:
    """Positions next to each other that have about as many columns of every part."""
    table, begun = counts.numpy(), 0
    longest = math.ceil(table.shape[1] / SPANS)
    most, total, spans = table[:, 0], 0, []
    for pos, here in enumerate(table.T):
        most, total, length = np.maximum(most, here), total + here.sum(), pos + 1 - begun
        if length > longest or most.sum() * length > PADDING * total:
            spans.append((begun, pos))
            begun, most, total = pos, here, here.sum()
    return [*spans, (begun, table.shape[1])]


def _laid_out(
    part: _Part, spans: Sequence[tuple[int, int]], full: Int[Tensor, " pos"], begin: int
) -> tuple[list[Span], Int[Tensor, " column"], int]:
    """The spans of a part, the places of its nodes and then of its leaves, and where they end."""
    n_leaves = part.leaves.shape[1]
    before = torch.cat([full.new_zeros(1), (full - n_leaves).cumsum(0)])
    laid, of_nodes, of_leaves = [], [], []
    for first, end in spans:
        width = int(full[first:end].max())
        begins = begin + width * torch.arange(end - first)
        some = slice(int(before[first]), int(before[end]))
        pos = part.pos[some] - first
        rank = torch.arange(some.start, some.stop) - before[part.pos[some]]
        nodes = part.nodes.new_zeros(end - first, width)
        nodes[pos, rank] = part.nodes[some]
        laid.append(Span(first, end, begin, width, nodes))
        of_nodes.append(begins[pos] + rank)
        of_leaves.append(begins[:, None] + width - n_leaves + torch.arange(n_leaves))
        begin += width * (end - first)
    return laid, torch.cat([*of_nodes, torch.cat(of_leaves).T.flatten()]), begin


def _images(entering: _Part, passage: Passage | None) -> list[Float[Tensor, "_ d_model"]]:
    """What enters layer 0 as its attention passes it on to every later position.

    Two vectors a position are carried up more cheaply than all rows down to them. None if there are
    no heads to pass, or if the images would take too much memory.
    """
    vectors = entering.leaves
    n_pos, n_leaves, _ = vectors.shape
    size = n_pos * vectors.numel() // 2 * vectors.element_size()
    if not isinstance(passage, HeadPassage) or size > IMAGE_BYTES:
        return []
    pos = torch.arange(n_pos, device=vectors.device).repeat_interleave(n_leaves)
    return list(passage.ahead(vectors.flatten(0, 1), pos))


def _entering(run: Run) -> _Part:
    """Tokens, and positions where the model has learned ones."""
    places = torch.arange(len(run.tokens))
    given = [("token", run.token_ids, run.token_writes)]
    if bool(run.position_writes.any()):
        given.append(("position", places, run.position_writes))
    named = [
        _Named(-1, "", [kind] * len(places), index, vectors.norm(dim=-1))
        for kind, index, vectors in given
    ]
    none = places[:0]
    return _Part(None, none, none, torch.stack([one for *_, one in given], dim=1), named)


def _of_sublayer(layer: Sublayer, nodes: Int[Tensor, " chosen"], passage: Passage | None) -> _Part:
    rows = layer.rows(nodes)
    named = [_Named(layer.layer, layer.name, rows.kind, rows.index, rows.activation)]
    places, leaves, bias = layer.error.shape[0], [], layer.write_bias
    if passage is not None:
        bias = passage.constant if bias is None else bias + passage.constant
    for kind, vectors in (("error", layer.error), ("bias", bias)):
        if vectors is not None and bool(vectors.any()):
            size = vectors.norm(dim=-1)
            activation = size if kind == "error" else torch.zeros_like(size)
            none = torch.full((places,), -1)
            named.append(_Named(layer.layer, layer.name, [kind] * places, none, activation))
            leaves.append(vectors)
    of_leaves = torch.stack(leaves, dim=1) if leaves else layer.error[:, None][:, :0]
    return _Part(layer, nodes, rows.pos.cpu(), of_leaves, named)


def _table(named: Sequence[_Named], orders: list[Tensor], positions: list[Tensor]) -> pd.DataFrame:
    """What columns are called, in their order; the last is what a target reads of constants."""
    sizes = [len(one.kind) for one in named]
    order = torch.cat(orders).numpy()

    def column(given: Sequence[Any], last: Any, dtype: Any) -> np.ndarray:
        return np.append(np.concatenate(given)[order], last).astype(dtype)

    def repeated(given: Sequence[Any], last: Any, dtype: Any) -> np.ndarray:
        return column([np.repeat(np.array(given, dtype=dtype), sizes)], last, dtype)

    return pd.DataFrame(
        {
            "kind": pd.Series(column([one.kind for one in named], "bias", object), dtype=str),
            "layer": repeated([one.layer for one in named], -1, np.int64),
            "sublayer": pd.Series(repeated([one.sublayer for one in named], "", object), dtype=str),
            "pos": np.append(torch.cat(positions).numpy(), -1),
            "index": column([one.index.cpu().numpy() for one in named], -1, np.int64),
            "activation": column(
                [one.activation.double().cpu().numpy() for one in named], 0.0, np.float64
            ),
        }
    )
