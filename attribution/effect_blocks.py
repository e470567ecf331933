"""Blocks of direct effects: cotangents carried down through heads and skips to all that wrote.

`effect[n, s] = read_n · J · write_s · a_s`. Rows go down the stages in batches; at each stage they
are multiplied with what was written there, position by position, and then pass the sublayer below
by its heads or its skip alone. Nothing is computed above a row's stage or behind its position. As
long as a batch lies at its own position only it is one vector a row, and the first heads it passes
are taken head by head; after them it is a table over positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.effect_sources import ENTERING, Columns
from attribution.effect_targets import Rows
from replacement.held import Cone, Passage, Scratch, Sublayer

BATCH_ROWS = 4096
"""Vectors carried at once: enough for a matrix product to run at full speed."""


@dataclass(frozen=True, eq=False)
class Block:
    """The effects on rows that see the same columns; all other effects on them are zero."""

    row: Int[Tensor, " row"]
    column: Int[Tensor, " column"]
    values: Float[Tensor, "row column"]
    split: Float[Tensor, "way row column"] | None = None
    """The same by the first head passed, where that was asked for."""


class _Reach:
    """Which columns one group of rows can see, and where in its block they are."""

    def __init__(self, rows: Rows, columns: Columns, below: int) -> None:
        """`below`: the stage under which rows see all positions of their cone."""
        self.offset: dict[int, int] = {}
        parts, self.width = [], 0
        for part in range(ENTERING, rows.stage):
            first = rows.n_pos - 1 if part + 1 >= below else 0
            seen = columns.within(part, first, rows.n_pos)
            self.offset[part] = self.width - seen.start
            self.width += seen.stop - seen.start
            parts.append(torch.arange(seen.start, seen.stop))
        own = len(columns.pos) - 1
        self.column = torch.cat([*parts, torch.tensor([own])])
        self.width += 1

    def place(self, part: int, columns: slice) -> slice:
        """Return where columns of a part are in the block."""
        offset = self.offset[part]
        return slice(columns.start + offset, columns.stop + offset)


class EffectRows:
    """Carries rows down a held run and yields their effects, block by block."""

    def __init__(
        self,
        sublayers: Sequence[Sublayer],
        columns: Columns,
        passages: Sequence[Passage | None],
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self.columns, self.passages, self.batch_rows = columns, passages, batch_rows
        self.reads_at = [layer.reads_at for layer in sublayers]
        self.like = sublayers[0].error
        self.scratch = Scratch(self.like)

    def blocks(self, groups: Sequence[Rows]) -> Iterator[tuple[Rows, Block]]:
        """Yield every group of rows, or a part of one, with its block of effects."""
        for batch in self.batches(groups):
            reach = [self._reach(rows) for rows in batch]
            values = [
                self.like.new_zeros(len(rows), seen.width)
                for rows, seen in zip(batch, reach, strict=True)
            ]
            self._carry(batch, reach, values)
            for rows, seen, value in zip(batch, reach, values, strict=True):
                value[:, -1] = rows.constant
                yield rows, Block(rows.row, seen.column, value)

    def width(self, rows: Rows) -> int:
        """Return how many columns rows see."""
        return self._reach(rows).width

    def batches(self, groups: Sequence[Rows]) -> Iterator[list[Rows]]:
        """Yield groups of the same kind together, or parts of one, as many vectors as fit.

        A batch is one batch again.
        """
        batch: list[Rows] = []
        size = 0
        for group in groups:
            for rows in group.split(max(1, self.batch_rows // group.n_pos)):
                added = len(rows) * rows.n_pos
                fits = size + added <= self.batch_rows and rows.local
                if batch and not (fits and batch[0].local and batch[0].stage == rows.stage):
                    yield batch
                    batch, size = [], 0
                batch.append(rows)
                size += added
        if batch:
            yield batch

    def _reach(self, rows: Rows) -> _Reach:
        """A local row sees other positions under the first sublayer that spreads it."""
        below = rows.stage + 1
        if rows.local:
            spreading = [
                number + 1
                for number, passage in enumerate(self.passages[: rows.stage])
                if passage is not None and passage.spreads
            ]
            below = max(spreading, default=-1)
        return _Reach(rows, self.columns, below)

    def _carry(self, batch: list[Rows], reach: list[_Reach], values: list[Tensor]) -> None:
        """Go down the stages with a batch: rows of one stage, local, or one group."""
        carried = _Carried(batch, self.scratch)
        for stage in range(batch[0].stage, -1, -1):
            carried.enter(stage)
            for number, (gradient, first) in enumerate(carried.tables()):
                for pos in range(first, batch[number].n_pos):
                    for part, columns, vectors in self.columns.writes[stage][pos]:
                        into = values[number][:, reach[number].place(part, columns)]
                        into.addmm_(gradient[:, pos - first], vectors.T)
            passage = self.passages[stage - 1] if stage else None
            seen_ahead = stage == 1 and self.columns.seen_ahead
            if passage is not None and not seen_ahead:
                carried.past(passage, stage, self.reads_at[stage - 1])


class _Carried:
    """The cotangents of a batch: one vector a row, or one a row and position once spread."""

    def __init__(self, batch: list[Rows], scratch: Scratch) -> None:
        self.batch, self.scratch = batch, scratch
        self.cones = [Cone(len(rows), rows.n_pos) for rows in batch]
        self.local = batch[0].local
        self.gradient = (
            torch.cat([rows.vector() for rows in batch]) if self.local else self._table()
        )
        if not self.local:
            self.gradient.zero_()
        self.later: dict[int, Tensor] = {}
        """By stage: what joins there, of sublayers that read further down than they write."""

    def _table(self) -> Float[Tensor, "row d_model"]:
        width = self.batch[0].seeds[self.batch[0].stage].vector.shape[-1]
        return self.scratch.take("gradient", sum(b * n for b, n in self.cones), width)

    def _views(self, table: Tensor) -> list[Float[Tensor, "target pos d_model"]]:
        sizes = [n_targets * n_pos for n_targets, n_pos in self.cones]
        parts = zip(table.split(sizes), self.cones, strict=True)
        return [part.view(cone.n_targets, cone.n_pos, -1) for part, cone in parts]

    def tables(self) -> Iterator[tuple[Float[Tensor, "target pos d_model"], int]]:
        """Yield every group's cotangents, and the position that they begin at."""
        if self.local:
            sizes = [n_targets for n_targets, _ in self.cones]
            parts = zip(self.gradient.split(sizes), self.cones, strict=True)
            yield from ((part[:, None], cone.n_pos - 1) for part, cone in parts)
        else:
            yield from ((view, 0) for view in self._views(self.gradient))

    def enter(self, stage: int) -> None:
        """Add what joins at a stage."""
        if stage in self.later:
            self.gradient += self.later.pop(stage)
        if not self.local and stage in self.batch[0].seeds:
            (view,) = self._views(self.gradient)
            view += self.batch[0].spread(stage)

    def past(self, passage: Passage, stage: int, reads_at: int) -> None:
        """Carry past the sublayer that writes at `stage`, through what it lets pass."""
        before = self.gradient
        if self.local and passage.spreads:
            self._spread()
        if reads_at == stage - 1:
            onto = self.gradient
        else:
            onto = self.later.setdefault(reads_at, torch.zeros_like(self.gradient))
        if before is not self.gradient or self.local:
            passage.first(before, self.cones, onto)
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
