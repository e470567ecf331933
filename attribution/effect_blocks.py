"""Blocks of direct effects: cotangents carried down through heads and skips to all that wrote.

`effect[n, s] = read_n · J · write_s · a_s`. Rows go down the stages in batches; at each stage they
are multiplied with what was written there, all rows of a position at once, and then pass the
sublayer below by its heads or its skip alone. Nothing is computed above a row's stage or behind its
position. As long as a batch lies at its own positions only it is one vector a row, and the first
heads it passes are taken head by head; after them it is a table over positions.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.effect_sources import ENTERING, Columns
from attribution.effect_targets import Rows, Start, start_of
from replacement.held import Cone, HeadPassage, LowRank, Passage, Scratch, Sublayer

BATCH_ROWS = 2048
"""Vectors carried at once: enough for a matrix product to run at full speed."""
BATCH_EFFECTS = 2**23
"""Effects computed at once: they are copied to blocks from a table that has all columns below."""


PRECISIONS = {"float32": ("ieee", "ieee"), "bf16": ("bf16", "ieee"), "tf32": ("ieee", "tf32")}
"""What a processor and a GPU multiply float32 matrices in."""


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Inside the block float32 matrices are multiplied in a precision of `PRECISIONS`.

    "bf16": factors are rounded to bfloat16, sums are not, where the processor has units for that.
    It is for large products: small ones of many shapes are slower so than in float32. "tf32":
    factors are rounded to 10 bits on GPUs that have units for that.
    """
    backends: Any = (torch.backends.mkldnn, torch.backends.cuda)
    settings = [backend.matmul for backend in backends]
    before = [one.fp32_precision for one in settings]
    try:
        for one, wanted in zip(settings, PRECISIONS[precision], strict=True):
            one.fp32_precision = wanted
        yield
    finally:
        for one, kept in zip(settings, before, strict=True):
            one.fp32_precision = kept


@dataclass(frozen=True, eq=False)
class Block:
    """The effects on rows that see the same columns; all other effects on them are zero."""

    row: Int[Tensor, " row"]
    column: Int[Tensor, " column"]
    values: Float[Tensor, "row column"]
    split: Float[Tensor, "way row column"] | None = None
    """The same by the first head passed, where that was asked for."""


class EffectRows:
    """Carries rows down a held run and yields their effects, block by block."""

    def __init__(
        self,
        sublayers: Sequence[Sublayer],
        columns: Columns,
        passages: Sequence[Passage | None],
        batch_rows: int = BATCH_ROWS,
        precision: str = "float32",
    ) -> None:
        self.precision = precision
        self.columns, self.passages, self.batch_rows = columns, passages, batch_rows
        self.reads_at = [layer.reads_at for layer in sublayers]
        self.like = sublayers[0].error
        self.scratch = Scratch(self.like)

    def blocks(self, groups: Sequence[Rows]) -> Iterator[tuple[Rows, Block]]:
        """Yield every group of rows, or a part of one, with its block of effects."""
        for batch in self.batches(groups):
            start, sizes = start_of(batch), [len(rows) for rows in batch]
            effects = self._carry(batch, start)
            parts = zip(batch, effects.split(sizes), start.constant.split(sizes), strict=True)
            for rows, found, constant in parts:
                seen = self._seen(rows)
                column = self._numbers(seen)
                found[:, 0] = constant
                values = found.index_select(1, self.columns.place[column])
                yield rows, Block(rows.row, column, values)

    def width(self, rows: Rows) -> int:
        """Return how many columns rows see."""
        return 1 + sum(part.stop - part.start for part in self._seen(rows))

    def batches(self, groups: Sequence[Rows]) -> Iterator[list[Rows]]:
        """Yield groups of the same kind together, or parts of one, as many vectors as fit; the
        latest first. A batch is one batch again."""
        batch: list[Rows] = []
        size = count = 0
        for group in groups:
            most = max(1, BATCH_EFFECTS // self.columns.below(group.stage))
            for rows in group.split(max(1, min(most, self.batch_rows // group.n_pos))):
                size, count = size + len(rows) * rows.n_pos, count + len(rows)
                fits = size <= self.batch_rows and count <= most and rows.local
                if batch and not (fits and batch[0].local and batch[0].stage == rows.stage):
                    yield sorted(batch, key=lambda one: -one.n_pos)
                    batch, size, count = [], len(rows) * rows.n_pos, len(rows)
                batch.append(rows)
        if batch:
            yield sorted(batch, key=lambda one: -one.n_pos)

    def _numbers(self, seen: list[slice]) -> Int[Tensor, " column"]:
        own = torch.tensor([len(self.columns.pos) - 1])
        return torch.cat([*(torch.arange(part.start, part.stop) for part in seen), own])

    def _seen(self, rows: Rows) -> list[slice]:
        """The columns of every part below: a local row sees other positions under the first
        sublayer that spreads it."""
        below = rows.stage + 1
        if rows.local:
            spreading = [
                number + 1
                for number, passage in enumerate(self.passages[: rows.stage])
                if passage is not None and passage.spreads
            ]
            below = max(spreading, default=-1)
        return [
            self.columns.within(part, rows.n_pos - 1 if part + 1 >= below else 0, rows.n_pos)
            for part in range(ENTERING, rows.stage)
        ]

    def _carry(self, batch: list[Rows], start: Start) -> Float[Tensor, "row column"]:
        """Go down the stages with a batch: rows of one stage, local, or one group."""
        carried = _Carried(batch, start.vector, self.scratch, self.columns.spans)
        last, n_rows = batch[0].stage, sum(len(rows) for rows in batch)
        effects = self.scratch.take("effects", n_rows, self.columns.below(last)).zero_()
        same: list[int] = []  # stages between which nothing changes, to be met together
        for stage in range(last, -1, -1):
            carried.enter(stage)
            same += [stage] if self.columns.writes[stage] or self._images_at(stage) else []
            passage = self.passages[stage - 1] if stage else None
            passed = passage is not None and not self._images_at(stage)
            if same and (passed or not stage or carried.enters(stage - 1)):
                for here, gradient in carried.by_position():
                    for met in same:
                        self._meet(here, gradient, met, effects[here.targets])
                same = []
            if passage is not None and passed:
                carried.past(passage, stage, self.reads_at[stage - 1], self.precision)
        return effects

    def _images_at(self, stage: int) -> bool:
        """Whether rows meet images there, which spare them the passage below."""
        return stage == 1 and self.columns.seen_ahead

    def _meet(
        self,
        here: "_Here",
        gradient: Float[Tensor, "pos target d_model"],
        stage: int,
        effects: Float[Tensor, "target place"],
    ) -> None:
        """Multiply cotangents at some positions with what was written there."""
        at = (here.span, here.first, here.first + len(gradient))
        for writes in self.columns.writes[stage]:
            vectors = writes.vectors(*at)
            into = writes.places(effects, *at)[..., : vectors.shape[1]]
            into += torch.bmm(gradient, vectors.transpose(1, 2)).transpose(0, 1)
        if self._images_at(stage):
            images = self.columns.images[here.first : here.first + len(gradient)]
            for count, at_pos, image in zip(here.counts, gradient, images, strict=True):
                effects[:count, 1 : 1 + len(image)].addmm_(at_pos[:count], image.T)


class _Here(NamedTuple):
    """Positions of a span from `first` on, and the targets that have the first one of them."""

    targets: slice
    span: int
    first: int
    counts: list[int]
    """How many targets have each position: the first ones."""
    rows: Int[Tensor, "pos target"]
    """Where their cotangents are; of a target whose cone ends earlier its last one's."""


class _Carried:
    """The cotangents of a batch: one vector a row, or one a row and position once spread."""

    def __init__(
        self,
        batch: list[Rows],
        vector: Float[Tensor, "row d_model"] | None,
        scratch: Scratch,
        spans: Sequence[tuple[int, int]],
    ) -> None:
        self.batch, self.scratch, self.spans = batch, scratch, spans
        self.cones = [Cone(len(rows), rows.n_pos) for rows in batch]
        self.local = vector is not None
        self.gradient = self._table().zero_() if vector is None else vector
        self.few: LowRank | None = None
        """The same as few vectors a target, between the first heads and the next."""
        self.later: dict[int, Tensor] = {}
        """By stage: what joins there, of sublayers that read further down than they write."""

    def _table(self) -> Float[Tensor, "row d_model"]:
        return self.scratch.take("gradient", sum(b * n for b, n in self.cones), self.scratch.width)

    def _views(self, table: Tensor) -> list[Float[Tensor, "target pos d_model"]]:
        sizes = [n_targets * n_pos for n_targets, n_pos in self.cones]
        parts = zip(table.split(sizes), self.cones, strict=True)
        return [part.view(cone.n_targets, cone.n_pos, -1) for part, cone in parts]

    def by_position(self) -> Iterator[tuple[_Here, Float[Tensor, "pos target d_model"]]]:
        """Yield all cotangents, some positions at a time."""
        for here in self._alone if self.local else self._spread_out:
            table = self.scratch.take("by position", here.rows.numel(), self.scratch.width)
            torch.index_select(self.gradient, 0, here.rows.flatten(), out=table)
            yield here, table.view(*here.rows.shape, -1)

    @cached_property
    def _alone(self) -> list[_Here]:
        """Where cotangents of one position each are: cone by cone."""
        found, end = [], 0
        for count, n_pos in self.cones:
            start, end = end, end + count
            rows = torch.arange(start, end, device=self.gradient.device)[None]
            found.append(_Here(slice(start, end), self._span(n_pos - 1), n_pos - 1, [count], rows))
        return found

    @cached_property
    def _spread_out(self) -> list[_Here]:
        """Where cotangents at all positions of their cones are: span by span.

        The cones that reach furthest come first, so that those with a position are the first ones.
        """
        sizes = torch.tensor([n_pos for n_targets, n_pos in self.cones for _ in range(n_targets)])
        begins, last, found = sizes.cumsum(0) - sizes, sizes - 1, []
        for span, (first, end) in enumerate(self.spans[: self._span(int(last[0])) + 1]):
            pos = torch.arange(first, min(end, int(sizes[0])))[:, None]
            counts = (pos < sizes).sum(1).tolist()
            rows = (begins + pos.minimum(last))[:, : counts[0]].to(self.gradient.device)
            found.append(_Here(slice(0, counts[0]), span, first, counts, rows))
        return found

    def _span(self, pos: int) -> int:
        return next(number for number, (_, end) in enumerate(self.spans) if pos < end)

    def enters(self, stage: int) -> bool:
        """Whether anything joins at a stage."""
        return stage in self.later or (not self.local and stage in self.batch[0].stages)

    def enter(self, stage: int) -> None:
        """Add what joins at a stage."""
        if stage in self.later:
            self._change().add_(self.later.pop(stage))
        if not self.local and stage in self.batch[0].stages:
            (view,) = self._views(self._change())
            view += self.batch[0].spread(stage)

    def _change(self) -> Tensor:
        """The cotangents, about to be added to."""
        self.few = None
        return self.gradient

    def past(self, passage: Passage, stage: int, reads_at: int, precision: str) -> None:
        """Carry past the sublayer that writes at `stage`, through what it lets pass."""
        before, few = self.gradient, self.few
        if self.local and passage.spreads:
            self._spread()
        if reads_at == stage - 1:
            onto = self._change()
        else:
            onto = self.later.setdefault(reads_at, torch.zeros_like(self.gradient))
        if before is not self.gradient or self.local:
            made = passage.first(before, self.cones, onto)
            if made is not None and onto is self.gradient and not self.later:
                count = made.vector.shape[0] * made.vector.shape[1]
                self.few = made if count < len(onto) else None
            return
        with products_in(precision):
            if few is not None and isinstance(passage, HeadPassage):
                passage.back(few, self.cones, onto, self.scratch)
            else:
                passage.back(before, self.cones, onto, self.scratch)

    def _spread(self) -> None:
        """From one vector a row to a table over positions."""
        self.gradient, self.local = self._placed(self.gradient, self._table()), False
        self.later = {
            stage: self._placed(vectors, torch.empty_like(self.gradient))
            for stage, vectors in self.later.items()
        }

    def _placed(self, vectors: Tensor, table: Tensor) -> Float[Tensor, "row d_model"]:
        table.zero_()
        sizes = [n_targets for n_targets, _ in self.cones]
        for view, part in zip(self._views(table), vectors.split(sizes), strict=True):
            view[:, -1] = part
        return table
