"""Direct effects: what every node adds to every other's pre-activation (DESIGN 2.5).

The adjacency matrix of an attribution graph (Ameisen et al. 2025): through the residual stream, the
model's heads with their patterns held, and skips, but through no feature, neuron or Lorsa head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from attribution.effect_blocks import PRECISIONS, Block, EffectRows
from attribution.effect_sources import columns_of
from attribution.effect_targets import Rows, rows_of_nodes, rows_of_targets
from attribution.first_heads import FirstHeads
from attribution.plan import free_bytes, size_text
from replacement.held import HeldFeatures, HeldHalves, Sublayer
from replacement.run import Run
from replacement.target import Target


@dataclass(frozen=True, eq=False)
class DirectEffects:
    """Direct effects as blocks of rows that see the same columns; what is in no block is zero."""

    targets: pd.DataFrame
    """One row a target: kind, layer, sublayer, pos, index, label."""
    sources: pd.DataFrame
    """One row a source: kind, layer, sublayer, pos, index, activation. Besides nodes the tokens and
    positions, every sublayer's error and bias at every position where it is not zero, and last the
    constants that a target reads itself (kind "bias", layer -1)."""
    blocks: list[Block]
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
    precision: str = "float32",
) -> DirectEffects:
    """Return the direct effect of every source on every target's value.

    `effect[n, s] = read_n · J · write_s · a_s`, with J the held map of the residual stream through
    heads and skips that stops at every feature, neuron and Lorsa head; no gate. The value of a node
    is its pre-activation. With all sources a row sums to it: identity 3 of docs/design.md.

    `targets`: all active features, neurons and Lorsa heads (None); chosen ones, given for every
    sublayer of `run.sublayers` as a mask, node numbers or None; or targets made by `run.logit` and
    the like. `sources`: nodes likewise; what is no node is always there. `via="head"` splits every
    effect by the first head that reads what the source wrote; what passes none is the "bypass". It
    takes as much memory again for every head of the model, so choose targets for it.

    `precision="bf16"` rounds the factors of a float32 run's large matrix products to bfloat16,
    which is faster on processors with units for that and changes nothing on others: effects are
    then off by some thousandths of a row's largest, and rows do not sum to values exactly.

    Raises TypeError, ValueError or IndexError for what is none of these, MemoryError before
    anything is computed if the blocks do not fit.

    >>> from circuits import load
    >>> run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    >>> target = run.logit(" Mary") - run.logit(" John")
    >>> effects = direct_effects(run, target)
    >>> bool(abs(effects.sums[0] - target.value) < 1e-3)
    True
    """
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
    if isinstance(targets, Target):
        targets = [targets]
    if _are_targets(targets):
        table, groups = rows_of_targets(_of_run(run, targets))
    else:
        table, groups = rows_of_nodes(sublayers, _nodes(run, targets, "targets"))
    passages = [layer.passage() for layer in sublayers]
    columns = columns_of(run, chosen, passages, ahead=via is None)
    rows = EffectRows(sublayers, columns, passages, precision=precision)
    first = None
    if via is not None:
        first = FirstHeads(sublayers, columns, passages, run.weights.layers[0].heads.n_heads)
    ways = [] if first is None else first.names
    _refuse_too_many(run, groups, rows, 1 + len(ways))
    blocks = []
    for some, block in rows.blocks(groups):
        split = None if first is None else first.split(some, block)
        blocks.append(replace(block, split=split))
    return DirectEffects(table, columns.table, blocks, ways, columns.nodes)


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


def _are_targets(given: Any) -> bool:
    is_list = isinstance(given, Sequence) and len(given) > 0
    return is_list and all(isinstance(one, Target) for one in given)


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
    "targets": ", or targets made by run.logit(...), run.feature(...) and the like, and no others.",
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


def _refuse_too_many(run: Run, groups: Sequence[Rows], rows: EffectRows, n_tables: int) -> None:
    count = n_tables * sum(len(group) * rows.width(group) for group in groups)
    needed = count * run.token_writes.element_size()
    free = free_bytes(run.token_writes.device)
    if needed > free:
        n_rows = sum(len(group) for group in groups)
        plural = "" if n_rows == 1 else "s"
        raise MemoryError(
            f"direct_effects(...): {count:,} effects on {n_rows:,} target{plural} take "
            f"{size_text(needed)}, {size_text(free)} are free. Choose targets: about "
            f"{int(0.9 * n_rows * free / needed):,} of them fit."
        )
