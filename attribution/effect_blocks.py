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
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.effect_sources import ENTERING, Columns
from attribution.effect_targets import Rows
from replacement.held import Cone, Passage, Scratch, Sublayer

BATCH_ROWS = 4096
"""Vectors carried at once: enough for a matrix product to run at full speed."""
BATCH_EFFECTS = 2**23
"""Effects computed at once: they are copied to blocks from a table that has all columns below."""


PRECISIONS = ("float32", "bf16")


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Inside the block a processor multiplies float32 matrices in a precision of `PRECISIONS`.

    "bf16": factors are rounded to bfloat16, sums are not, where the processor has units for that.
    It is for large products: small ones of many shapes are slower so than in float32.
    """
    settings: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    settings.fp32_precision = {"float32": "ieee", "bf16": "bf16"}[precision]
    try:
        yield
    finally:
        settings.fp32_precision = before


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
            effects = self._carry(batch)
            for rows, found in zip(
                batch, effects.split([len(rows) for rows in batch]), strict=True
            ):
                seen = self._seen(rows)
                values = found.new_empty(
                    len(rows), 1 + sum(part.stop - part.start for part in seen)
                )
                torch.cat([found[:, part] for part in seen], dim=1, out=values[:, :-1])
                values[:, -1] = rows.constant
                yield rows, Block(rows.row, self._numbers(seen), values)

    def width(self, rows: Rows) -> int:
        """Return how many columns rows see."""
        return 1 + sum(part.stop - part.start for part in self._seen(rows))

    def batches(self, groups: Sequence[Rows]) -> Iterator[list[Rows]]:
        """Yield groups of the same kind together, or parts of one, as many vectors as fit; the
        latest first. A batch is one batch again."""
        batch: list[Rows] = []
        size = count = 0
        for group in groups:
            most = max(1, BATCH_EFFECTS // self._below(group.stage))
            for rows in group.split(max(1, min(most, self.batch_rows // group.n_pos))):
                size, count = size + len(rows) * rows.n_pos, count + len(rows)
                fits = size <= self.batch_rows and count <= most and rows.local
                if batch and not (fits and batch[0].local and batch[0].stage == rows.stage):
                    yield sorted(batch, key=lambda one: -one.n_pos)
                    batch, size, count = [], len(rows) * rows.n_pos, len(rows)
                batch.append(rows)
        if batch:
            yield sorted(batch, key=lambda one: -one.n_pos)

    def _below(self, stage: int) -> int:
        """How many columns are of parts that a stage can see: they come first."""
        return self.columns.within(stage - 1, 0, len(self.like)).stop

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

    def _carry(self, batch: list[Rows]) -> Float[Tensor, "row column"]:
        """Go down the stages with a batch: rows of one stage, local, or one group."""
        carried, last = _Carried(batch, self.scratch), batch[0].stage
        n_rows = sum(len(rows) for rows in batch)
        effects = self.scratch.take("effects", n_rows, self._below(last)).zero_()
        for stage in range(last, -1, -1):
            carried.enter(stage)
            for pos, targets, gradient in carried.by_position():
                for _, columns, vectors in self.columns.writes[stage][pos]:
                    effects[targets, columns].addmm_(gradient, vectors.T)
            passage = self.passages[stage - 1] if stage else None
            seen_ahead = stage == 1 and self.columns.seen_ahead
            if passage is not None and not seen_ahead:
                carried.past(passage, stage, self.reads_at[stage - 1], self.precision)
        return effects


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

    def by_position(self) -> Iterator[tuple[int, slice, Float[Tensor, "target d_model"]]]:
        """Yield every position that has cotangents, of which targets, and these.

        The cones that reach furthest come first, so that those with a position are the first ones.
        """
        if self.local:
            end = 0
            for n_targets, n_pos in self.cones:
                start, end = end, end + n_targets
                yield n_pos - 1, slice(start, end), self.gradient[start:end]
            return
        for pos in range(self.cones[0].n_pos):
            count = sum(n_targets for n_targets, n_pos in self.cones if n_pos > pos)
            here = self.scratch.take("here", count, self.gradient.shape[-1])
            torch.index_select(self.gradient, 0, self._first_rows[:count] + pos, out=here)
            yield pos, slice(0, count), here

    @cached_property
    def _first_rows(self) -> Int[Tensor, " target"]:
        """Of every target: its first row in a table over positions."""
        sizes = [n_pos for n_targets, n_pos in self.cones for _ in range(n_targets)]
        ends = torch.tensor(sizes, device=self.gradient.device).cumsum(0)
        return ends - ends.new_tensor(sizes)

    def enter(self, stage: int) -> None:
        """Add what joins at a stage."""
        if stage in self.later:
            self.gradient += self.later.pop(stage)
        if not self.local and stage in self.batch[0].seeds:
            (view,) = self._views(self.gradient)
            view += self.batch[0].spread(stage)

    def past(self, passage: Passage, stage: int, reads_at: int, precision: str) -> None:
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
            with products_in(precision):
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
