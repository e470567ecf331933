"""What direct effects go to: rows, as batches of cotangents that start at one place.

Rows that start at the same stage and position see the same columns and are carried together. A
feature of an MLP, or a logit, starts at one position ("local"); a Lorsa head, a feature of
attention's output, or a combination of targets starts at several ("spread").
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held import HeldAttentionSAE, HeldFeatures, Reads, Sublayer
from replacement.run import Run
from replacement.target import Target


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that start at the same place, all positions after it left out.

    What nodes read is looked up in their layer when it is needed, and not kept.
    """

    row: Int[Tensor, " row"]
    """Their numbers in the table of targets."""
    n_pos: int
    stages: tuple[int, ...]
    """Where they read, in order. `local` ones read one stage at one position."""
    local: bool
    source: "NodesAt | Mapping[int, Reads]"
    """Features that they are, or how they read by stage."""
    through_heads: bool = False
    """True for features of attention's output: the parts they read by are their layer's heads."""

    @property
    def stage(self) -> int:
        """The last stage they read."""
        return self.stages[-1]

    def __len__(self) -> int:
        return len(self.row)

    def reads(self, stage: int) -> Reads:
        """Return how they read one of their stages."""
        return self.source.reads() if isinstance(self.source, NodesAt) else self.source[stage]

    def spread(self, stage: int) -> Float[Tensor, "row pos d_model"]:
        """Return what rows read of the stream at one stage."""
        reads = self.reads(stage)
        return reads.factor[:, :, : self.n_pos].transpose(1, 2) @ reads.vector

    def split(self, most: int) -> Iterator["Rows"]:
        """Yield the rows, at most so many together."""
        if len(self) <= most:
            yield self
            return
        for start in range(0, len(self), most):
            some = slice(start, start + most)
            if isinstance(self.source, NodesAt):
                source = self.source.only(some)
            else:
                source = {
                    stage: Reads(reads.vector[some], reads.factor[some], reads.constant[some])
                    for stage, reads in self.source.items()
                }
            yield replace(self, row=self.row[some], source=source)


class NodesAt(NamedTuple):
    """Features of one sublayer at positions."""

    layer: HeldFeatures
    pos: Int[Tensor, " node"]
    index: Int[Tensor, " node"]

    def only(self, some: slice) -> "NodesAt":
        """Return some of them."""
        return NodesAt(self.layer, self.pos[some], self.index[some])

    def reads(self) -> Reads:
        """Return how they read."""
        return self.layer.reads_of(self.pos, self.index)


class Start(NamedTuple):
    """Where a batch of rows starts: what local ones read, and the constants of any."""

    vector: Float[Tensor, "row d_model"] | None
    constant: Float[Tensor, " row"]


def start_of(batch: Sequence[Rows]) -> Start:
    """Return what a batch starts with; rows of one sublayer are looked up at once."""
    first, pos = batch[0].source, []
    if isinstance(first, NodesAt) and all(_of_layer(rows, first.layer) for rows in batch):
        nodes = [rows.source for rows in batch if isinstance(rows.source, NodesAt)]
        at = torch.cat([one.pos for one in nodes])
        found = [NodesAt(first.layer, at, torch.cat([one.index for one in nodes])).reads()]
    else:
        found = [rows.reads(rows.stage) for rows in batch]
    constant = torch.cat([reads.constant for reads in found])
    if not batch[0].local:
        return Start(None, constant)
    pos = torch.cat([torch.full((len(rows),), rows.n_pos - 1) for rows in batch])
    vector = torch.cat([reads.vector[:, 0] for reads in found])
    factor = torch.cat([reads.factor[:, 0] for reads in found])
    at = pos.to(factor.device)[:, None]
    return Start(vector * factor.gather(1, at), constant)


def _of_layer(rows: Rows, layer: HeldFeatures) -> bool:
    return isinstance(rows.source, NodesAt) and rows.source.layer is layer


def rows_of_nodes(
    sublayers: Sequence[Sublayer], chosen: Sequence[Int[Tensor, " _"]]
) -> tuple[pd.DataFrame, list[Rows]]:
    """Return the table and the rows of chosen features, neurons and Lorsa heads."""
    tables, groups, count = [], [], 0
    for layer, nodes in zip(sublayers, chosen, strict=True):
        if not len(nodes):
            continue
        assert isinstance(layer, HeldFeatures), "heads and skips are passed, not read"
        named = layer.rows(nodes)
        tables.append(
            pd.DataFrame(
                {
                    "kind": named.kind,
                    "layer": layer.layer,
                    "sublayer": layer.name,
                    "pos": named.pos.cpu().numpy(),
                    "index": named.index.cpu().numpy(),
                    "label": "",
                }
            )
        )
        order, counts = named.pos.argsort(stable=True), named.pos.bincount().tolist()
        for pos, here in enumerate(order.split(counts)):
            if not len(here):
                continue
            source = NodesAt(layer, named.pos[here], named.index[here])
            through = isinstance(layer, HeldAttentionSAE)
            row, stages = here.cpu() + count, (layer.reads_at,)
            groups.append(Rows(row, pos + 1, stages, layer.local, source, through))
        count += len(nodes)
    return _joined(tables), groups


def rows_of_targets(targets: Sequence[Target]) -> tuple[pd.DataFrame, list[Rows]]:
    """Return the table and the rows of targets of one run."""
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for number, target in enumerate(targets):
        places = tuple(sorted({(seed.stage, seed.pos) for seed in target.seeds}))
        groups.setdefault(places, []).append(number)
    last = targets[0].run.weights.n_layers
    table = pd.DataFrame(
        {
            "kind": "target",
            "layer": last,
            "sublayer": "",
            "pos": [target.pos for target in targets],
            "index": -1,
            "label": [target.label for target in targets],
        }
    )
    made = [
        _seeded(torch.tensor(numbers), [targets[number] for number in numbers], places)
        for places, numbers in groups.items()
    ]
    return _joined([table]), made


def _seeded(
    numbers: Int[Tensor, " row"], targets: Sequence[Target], places: Sequence[tuple[int, int]]
) -> Rows:
    """Rows of targets that read the same stages and positions."""
    run: Run = targets[0].run
    zeros = run.token_writes.new_zeros
    constant = run.token_writes.new_tensor([target.bias for target in targets])
    n_pos = 1 + max((pos for _, pos in places), default=0)
    seeds = {}
    for stage in {stage for stage, _ in places} or {0}:
        at = [pos for where, pos in places if where == stage]
        vector = zeros(len(targets), len(at), run.weights.d_model)
        factor = zeros(len(targets), len(at), len(run.tokens))
        for part, pos in enumerate(at):
            factor[:, part, pos] = 1
        for row, target in enumerate(targets):
            for seed in target.seeds:
                if seed.stage == stage:
                    vector[row, at.index(seed.pos)] += seed.vector
        seeds[stage] = Reads(vector, factor, constant)
    return Rows(numbers, n_pos, tuple(sorted(seeds)), len(places) == 1, seeds)


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    names = ("kind", "layer", "sublayer", "pos", "index", "label")
    if not tables:
        return pd.DataFrame({name: [] for name in names})
    table = pd.concat(tables, ignore_index=True)
    return table.astype({"kind": str, "sublayer": str, "label": str})
