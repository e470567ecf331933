"""What direct effects are asked for: rows, columns and the batches that fit, before any work."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from attribution.effect_blocks import PRECISIONS, EffectRows
from attribution.effect_sources import Columns, columns_of
from attribution.effect_targets import Rows, rows_of_nodes, rows_of_targets
from attribution.first_heads import FirstHeads
from attribution.plan import EffectsPlan, bytes_of, disk_bytes, free_bytes, size_text
from replacement.held import HeldFeatures, HeldHalves, Passage, Sublayer
from replacement.run import Run
from replacement.target import Target

TABLES = 12
"""Tables of a batch's vectors that are there at once: carried, joining later, heads' own, and what
products of matrices take; measured on GPT-2 small's shape."""
COPIES = 4
"""Copies of a batch's blocks: computed, cut out, and their bytes on the way to disk."""


@dataclass(frozen=True, eq=False)
class Asked:
    """Direct effects that are asked for, before they are computed."""

    run: Run
    table: pd.DataFrame
    groups: list[Rows]
    columns: Columns
    passages: list[Passage | None]
    rows: EffectRows
    first: FirstHeads | None

    @property
    def n_tables(self) -> int:
        return 1 if self.first is None else 1 + len(self.first.names)

    def plan(self, resume: str | Path | None, memory: int | str | None) -> EffectsPlan:
        """Choose the batches; MemoryError for what fits in no way."""
        budget = None if memory is None else bytes_of("direct_effects", memory)
        size = self.run.token_writes.element_size()
        effects = self.n_tables * self._effects(self.groups)
        fixed = size * self._fixed()
        working, n_batches = self._working()
        while budget is not None and fixed + working > budget and self.rows.batch_rows > 1:
            self.rows.batch_rows //= 2
            working, n_batches = self._working()
        needed = fixed + working
        if budget is not None and needed > budget:
            raise MemoryError(
                f"direct_effects(memory={memory!r}): row by row, and with the blocks on disk, "
                f"{size_text(needed)} are needed. Give memory={math.ceil(needed)} or more, or "
                "choose fewer targets or sources."
            )
        over = budget is not None and needed + size * effects > budget
        on_disk = resume is not None or over
        place = Path(tempfile.gettempdir() if resume is None else resume)
        free = disk_bytes(place) if on_disk else free_bytes(self.run.token_writes.device)
        if size * effects > free:
            raise MemoryError(self._does_not_fit(effects, size * effects, free, on_disk))
        return EffectsPlan(
            rows=len(self.table),
            effects=effects,
            bytes=size * effects,
            batch_rows=self.rows.batch_rows,
            batches=n_batches,
            working_bytes=needed,
            on_disk=on_disk,
            free_bytes=free,
            place=str(place) if on_disk else str(self.run.token_writes.device),
        )

    def _does_not_fit(self, count: int, needed: int, free: int, on_disk: bool) -> str:
        n_rows = len(self.table)
        place = " on disk" if on_disk else ""
        other = "another disk, by resume=FOLDER" if on_disk else "the disk, by resume=FOLDER"
        return (
            f"direct_effects(...): {count:,} effects on {n_rows:,} target"
            f"{'' if n_rows == 1 else 's'} take {size_text(needed)}, {size_text(free)} are free"
            f"{place}. Choose targets: about {int(0.9 * n_rows * free / needed):,} of them fit; "
            f"or {other}."
        )

    def _effects(self, groups: Sequence[Rows]) -> int:
        return sum(len(group) * self.rows.width(group) for group in groups)

    def _fixed(self) -> int:
        """Numbers there are whatever the batches: what rows read, what leaves wrote, heads pass."""
        given = [rows.source for rows in self.groups if isinstance(rows.source, Mapping)]
        reads = sum(one.vector.numel() for source in given for one in source.values())
        kept = [one.leaves for stage in self.columns.writes for one in stage]
        written = sum(one.numel() for one in [*kept, *self.columns.images])
        passed = sum(
            part.numel()
            for passage in self.passages
            if passage is not None
            for part in vars(passage).values()
            if isinstance(part, Tensor)
        )
        width = self.run.token_writes.shape[1]
        images = 0 if self.first is None else len(self.passages) * len(self.columns.pos) * width
        return reads + written + passed + images

    def _working(self) -> tuple[int, int]:
        """Bytes of one batch at work, its blocks, and the same on their way to disk; and how many
        batches there are."""
        batches = list(self.rows.batches(self.groups))
        vectors = max((sum(len(one) * one.n_pos for one in batch) for batch in batches), default=0)
        largest = max((self._effects(batch) for batch in batches), default=0)
        width, size = self.run.token_writes.shape[1], self.run.token_writes.element_size()
        count = TABLES * vectors * width + COPIES * self.n_tables * largest
        return count * size, len(batches)

    def operations(self) -> float:
        """Multiplications and additions: what rows meet, and the heads and skips they pass."""
        width, total = self.run.token_writes.shape[1], 0.0
        n_heads = self.run.weights.layers[0].heads.n_heads
        for group in self.groups:
            each = 2.0 * width * self.rows.width(group)
            at = 1 if group.local else group.n_pos
            lowest = int(self.columns.seen_ahead)
            for passage in reversed(self.passages[lowest : group.stage]):
                if passage is None:
                    continue
                if not passage.spreads:
                    each += 2 * width * width * at
                    continue
                mixing = n_heads if at == 1 else at
                each += width * (4 * width * at + 2 * group.n_pos * mixing)
                at = group.n_pos
            total += len(group) * each
        return total * self.n_tables


def asked_of(
    run: Run, targets: Any, sources: Any, via: str | None, precision: str = "float32"
) -> Asked:
    """Raise TypeError, ValueError or IndexError for what cannot be asked."""
    if via not in (None, "head"):
        raise ValueError(
            f'direct_effects(via={via!r}): "head" for a split by the first head passed, or None.'
        )
    if precision not in PRECISIONS:
        raise ValueError(
            f"direct_effects(precision={precision!r}): choose one of {', '.join(PRECISIONS)}."
        )
    sublayers = run.sublayers
    _refuse_uncovered(sublayers)
    chosen = _nodes(run, sources, "sources")
    table, groups = _rows_asked(run, targets)
    passages = [layer.passage() for layer in sublayers]
    columns = columns_of(run, chosen, passages, ahead=via is None)
    rows = EffectRows(sublayers, columns, passages, precision=precision)
    first = None
    if via is not None:
        first = FirstHeads(sublayers, columns, passages, run.weights.layers[0].heads.n_heads)
    return Asked(run, table, groups, columns, passages, rows, first)


def _refuse_uncovered(sublayers: Sequence[Sublayer]) -> None:
    for layer in sublayers:
        if layer.replaces:
            raise ValueError(
                f"direct_effects: the residual stream is read as features at stage {layer.reads_at}"
                ", where every path ends and begins anew; that is not covered yet. Load the model "
                'without residual=, or trace(..., edges="flow").'
            )
        if isinstance(layer, HeldHalves):
            raise ValueError(
                'direct_effects: with split="half" a neuron has two pre-activations, so its direct '
                "effects are not one number. Load the model without split, or trace(..., "
                'edges="flow").'
            )


def _rows_asked(run: Run, given: Any) -> tuple[pd.DataFrame, list[Rows]]:
    """Rows of nodes, of targets, or of nodes and then of targets."""
    if isinstance(given, Target):
        given = [given]
    made = []
    if isinstance(given, Sequence) and not isinstance(given, str):
        made = [one for one in given if isinstance(one, Target)]
        if made:
            given = [one for one in given if not isinstance(one, Target)]
    if made and not given:
        return rows_of_targets(_of_run(run, made))
    table, groups = rows_of_nodes(run.sublayers, _nodes(run, given, "targets"))
    if not made:
        return table, groups
    count = len(table)
    others, more = rows_of_targets(_of_run(run, made))
    later = [replace(rows, row=rows.row + count) for rows in more]
    return pd.concat([table, others], ignore_index=True), groups + later


def _of_run(run: Run, targets: Sequence[Any]) -> list[Target]:
    for target in targets:
        if target.run is not run:
            raise ValueError(
                f"direct_effects: {target.label} belongs to another run. Make it from the run "
                "that is given."
            )
    return list(targets)


def _nodes(run: Run, given: Any, name: str) -> list[Int[Tensor, " _"]]:
    """Node numbers of every sublayer, from what was asked for."""
    sublayers = run.sublayers
    if given is None:
        return [torch.arange(_scalars(layer), device=layer.error.device) for layer in sublayers]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(
            f"direct_effects({name}=...): got {type(given).__name__}. Give None for all active "
            f"features, or a list with a mask, node numbers or None for each of the "
            f"{len(sublayers)} sublayers" + _TARGETS_TOO[name]
        )
    if len(given) != len(sublayers):
        ending = "y" if len(given) == 1 else "ies"
        raise ValueError(
            f"direct_effects({name}=...): {len(given)} entr{ending}; one for each of the "
            f"{len(sublayers)} sublayers of run.sublayers is needed" + _TARGETS_TOO[name]
        )
    return [_chosen(layer, part, name) for layer, part in zip(sublayers, given, strict=True)]


_TARGETS_TOO = {
    "targets": ", or targets made by run.logit(...), run.feature(...) and the like, or both.",
    "sources": ".",
}


def _scalars(layer: Sublayer) -> int:
    """How many nodes of a sublayer have a direct effect: the others are passed, and come last."""
    return layer.n_active if isinstance(layer, HeldFeatures) else 0


def _chosen(layer: Sublayer, given: Any, name: str) -> Int[Tensor, " chosen"]:
    where = f"layer {layer.layer} ({layer.name})"
    nodes = _as_tensor([] if given is None else given, layer.error.device)
    if nodes is None or (nodes.is_floating_point() and len(nodes)) or nodes.is_complex():
        raise TypeError(
            f"direct_effects({name}=...): {given!r:.60} for {where}. Give a mask of True and "
            "False, node numbers, or None for none."
        )
    if nodes.dtype == torch.bool:
        if nodes.shape != (layer.n_nodes,):
            raise ValueError(
                f"direct_effects({name}=...): a mask of {len(nodes)} entries for {where}, which "
                f"has {layer.n_nodes} nodes. Give one entry a node."
            )
        nodes = nodes.nonzero().flatten()
    nodes = nodes.long().unique()
    wrong = nodes[(nodes < 0) | (nodes >= layer.n_nodes)]
    if len(wrong):
        raise IndexError(
            f"direct_effects({name}=...): {where} has no node {int(wrong[0])}; its nodes are "
            f"numbered from 0 to {layer.n_nodes - 1}."
        )
    if len(nodes) and int(nodes[-1]) >= _scalars(layer):
        raise ValueError(
            f"direct_effects({name}=...): node {int(nodes[-1])} of {where} is a head or a skip. "
            "Direct effects pass through these, so choose features, neurons or Lorsa heads; "
            'edges of heads are flows: trace(..., edges="flow").'
        )
    return nodes


def _as_tensor(given: Any, device: torch.device) -> Tensor | None:
    try:
        return torch.as_tensor(given, device=device).flatten()
    except (TypeError, ValueError, RuntimeError):
        return None
