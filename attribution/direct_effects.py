"""Direct effects: what every node adds to every other's pre-activation (DESIGN 2.5).

The adjacency matrix of an attribution graph (Ameisen et al. 2025): through the residual stream, the
model's heads with their patterns held, and skips, but through no feature, neuron or Lorsa head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from attribution.effect_blocks import Block
from attribution.effect_request import asked_of
from attribution.effect_store import EffectStore, manifest_of
from attribution.plan import EffectsPlan, matmul_rate
from replacement.run import Run


@dataclass(frozen=True, eq=False)
class DirectEffects:
    """Direct effects as blocks of rows that see the same columns; what is in no block is zero."""

    targets: pd.DataFrame
    """One row a target: kind, layer, sublayer, pos, index, label."""
    sources: pd.DataFrame
    """One row a source: kind, layer, sublayer, pos, index, activation. Besides nodes the tokens and
    positions, every sublayer's error and bias at every position where it is not zero, and last the
    constants that a target reads itself (kind "bias", layer -1)."""
    blocks: Sequence[Block]
    """In memory, or on disk and read as they are looked at."""
    ways: list[str]
    """With `via="head"`: "L0.h0", … and "bypass", in the order of a block's `split`."""
    nodes: list[Int[Tensor, " _"]]
    """Of every sublayer: the rows of `sources` that are its chosen nodes, in their order."""

    def matrix(self, way: str | None = None) -> csr_array:
        """Return the effects as a sparse matrix [target, source], zeros left out.

        With all sources the rows sum to the targets' values. `way`: only the part of one of the
        `ways`. Raises ValueError for another.
        """
        if way is not None and way not in self.ways:
            known = f"one of {', '.join(self.ways)}" if self.ways else 'none without via="head"'
            raise ValueError(f"DirectEffects.matrix({way!r}): no such way; there is {known}.")
        shape = (len(self.targets), len(self.sources))
        width = np.zeros(shape[0], dtype=np.int64)
        for block in self.blocks:
            width[block.row.numpy()] = len(block.column)
        ends = np.concatenate([[0], np.cumsum(width)])
        small = max(ends[-1], *shape) < np.iinfo(np.int32).max
        column = np.empty(ends[-1], dtype=np.int32 if small else np.int64)
        values = np.empty(ends[-1], dtype=self._dtype)
        for block in self.blocks:
            part = block.values
            if way is not None and block.split is not None:
                part = block.split[self.ways.index(way)]
            found = part.cpu().numpy()
            for number, row in enumerate(block.row.tolist()):
                column[ends[row] : ends[row + 1]] = block.column.numpy()
                values[ends[row] : ends[row + 1]] = found[number]
        made = csr_array((values, column, ends.astype(column.dtype)), shape=shape)
        made.eliminate_zeros()
        return made

    def table(self) -> pd.DataFrame:
        """Return the effects that are not zero, one a row: target, source, via, effect.

        `via` is the way, or "" where effects are not split.
        """
        tables = []
        for way in self.ways or [None]:
            found = self.matrix(way).tocoo()
            target, source = found.coords
            rows = {"target": target, "source": source, "via": way or "", "effect": found.data}
            tables.append(pd.DataFrame(rows))
        return pd.concat(tables, ignore_index=True).astype({"via": str})

    @cached_property
    def sums(self) -> Float[Tensor, " target"]:
        """The sum of every row in double precision: with all sources, the targets' values."""
        total = torch.zeros(len(self.targets), dtype=torch.float64)
        for block in self.blocks:
            total[block.row] = block.values.sum(-1, dtype=torch.float64).cpu()
        return total

    @property
    def _dtype(self) -> Any:
        return self.blocks[0].values.cpu().numpy().dtype if self.blocks else np.float32

    def __repr__(self) -> str:
        count = sum(block.values.numel() for block in self.blocks)
        return (
            f"DirectEffects({len(self.targets)} targets, {len(self.sources)} sources, "
            f"{count} effects in {len(self.blocks)} blocks)"
        )


@torch.no_grad()
def direct_effects(
    run: Run,
    targets: Any = None,
    sources: Any = None,
    via: str | None = None,
    *,
    precision: str = "float32",
    resume: str | Path | None = None,
    memory: int | str | None = None,
) -> DirectEffects:
    """Return the direct effect of every source on every target's value.

    `effect[n, s] = read_n · J · write_s · a_s`, with J the held map of the residual stream through
    heads and skips that stops at every feature, neuron and Lorsa head; no gate. The value of a node
    is its pre-activation. With all sources a row sums to it: identity 3 of docs/design.md.

    `targets`: all active features, neurons and Lorsa heads (None); chosen ones, given for every
    sublayer of `run.sublayers` as a mask, node numbers or None; targets made by `run.logit` and the
    like; or both in one list, which is faster than two calls. `sources`: nodes as above; what is no
    node is always there. `via="head"` splits every effect by the first head that reads what the
    source wrote; what passes none is the "bypass". It takes as much memory again for every head of
    the model, so choose targets for it.

    `precision="bf16"` rounds the factors of a float32 run's large matrix products to bfloat16,
    which is faster on processors with units for that and changes nothing on others: effects are
    then off by some thousandths of a row's largest, and rows do not sum to values exactly. "tf32"
    does so on GPUs, with three more bits; by default nothing is rounded.

    `resume`: a folder to which finished batches go, and from which they are read; a job that was
    killed goes on with the same call, and gives the same bits. Where `torch.distributed` is
    initialised (torchrun) and all ranks make the same call with the same folder, every rank does
    its share of the batches, and all get the whole. `memory`: bytes, or text such as
    "4 GB", that may be taken besides the run; where the blocks do not fit they stay on disk (in
    `resume`, or a temporary folder) and are read as they are looked at. The batches, and with them
    all bits, are the same with and without; only a budget that a batch of 2048 vectors exceeds
    makes them smaller, which can change last digits. `matrix()` and `table()` take the whole
    result's memory.

    Raises TypeError, ValueError or IndexError for what is none of these, ValueError for a folder
    that holds anything else, MemoryError before anything is computed if the blocks do not fit.

    >>> from circuits import load
    >>> run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    >>> target = run.logit(" Mary") - run.logit(" John")
    >>> effects = direct_effects(run, target)
    >>> bool(abs(effects.sums[0] - target.value) < 1e-3)
    True
    """
    asked = asked_of(run, targets, sources, via, precision)
    plan = asked.plan(resume, memory)
    rows, first, columns = asked.rows, asked.first, asked.columns
    store = None
    if plan.on_disk:
        about = (asked.table, asked.groups)
        manifest = manifest_of(run, about, columns.table, (via, precision), plan.batch_rows)
        if resume is None:
            store = EffectStore.temporary(manifest)
        else:
            store = EffectStore.of_all_ranks(Path(resume), manifest)
    blocks: Any = []
    for number, batch in enumerate(rows.batches(asked.groups)):
        if store is not None and (not store.is_mine(number) or store.has(number)):
            continue
        made = [
            replace(block, split=None if first is None else first.split(some, block))
            for some, block in rows.blocks(batch)
        ]
        if store is None:
            blocks += made
        else:
            store.write(number, made)
    if store is not None:
        store.wait()
        blocks = store.blocks(plan.batches, keep=resume is not None)
    ways = [] if first is None else first.names
    return DirectEffects(asked.table, columns.table, blocks, ways, columns.nodes)


@torch.no_grad()
def plan_effects(
    run: Run,
    targets: Any = None,
    sources: Any = None,
    via: str | None = None,
    *,
    resume: str | Path | None = None,
    memory: int | str | None = None,
) -> EffectsPlan:
    """Return what `direct_effects` with these arguments takes, without computing any.

    Seconds are operations over the rate of matrix products, measured here and now (0.1 s). Raises
    what `direct_effects` raises before it starts.

    >>> from circuits import load
    >>> run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    >>> plan_effects(run, run.logit(" Mary")).rows
    1
    """
    asked = asked_of(run, targets, sources, via)
    seconds = asked.operations() / matmul_rate(run.token_writes)
    return replace(asked.plan(resume, memory), seconds=seconds)
