"""What direct effects go to: rows, as batches of cotangents that start at one place.

Rows that start at the same stage and position see the same columns and are carried together. A
feature of an MLP, or a logit, starts at one position ("local"); a Lorsa head, a feature of
attention's output, or a combination of targets starts at several ("spread").
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held import HeldAttentionSAE, HeldFeatures, Reads, Sublayer
from replacement.run import Run
from replacement.target import Target


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that start at the same place, all positions after it left out."""

    row: Int[Tensor, " row"]
    """Their numbers in the table of targets."""
    n_pos: int
    seeds: dict[int, Reads]
    """By stage: what they read there. `local` ones have a single seed of one part."""
    local: bool
    constant: Float[Tensor, " row"]
    through_heads: bool = False
    """True for features of attention's output: the parts they read by are their layer's heads."""

    @property
    def stage(self) -> int:
        """The last stage they read."""
        return max(self.seeds)

    def __len__(self) -> int:
        return len(self.row)

    def vector(self) -> Float[Tensor, "row d_model"]:
        """Return what local rows read of the stream at their position."""
        (reads,) = self.seeds.values()
        return reads.vector[:, 0] * reads.factor[:, 0, self.n_pos - 1, None]

    def spread(self, stage: int) -> Float[Tensor, "row pos d_model"]:
        """Return what rows read of the stream at one stage."""
        reads = self.seeds[stage]
        return reads.factor[:, :, : self.n_pos].transpose(1, 2) @ reads.vector

    def split(self, most: int) -> Iterator["Rows"]:
        """Yield the rows, at most so many together."""
        for start in range(0, len(self), most):
            some = slice(start, start + most)
            seeds = {
                stage: Reads(reads.vector[some], reads.factor[some], reads.constant[some])
                for stage, reads in self.seeds.items()
            }
            yield replace(self, row=self.row[some], seeds=seeds, constant=self.constant[some])


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
        for pos in named.pos.unique().tolist():
            here = (named.pos == pos).nonzero().flatten()
            reads = layer.reads_of(named.pos[here], named.index[here])
            seeds = {layer.reads_at: reads}
            through = isinstance(layer, HeldAttentionSAE)
            row = here.cpu() + count
            groups.append(Rows(row, pos + 1, seeds, layer.local, reads.constant, through))
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
    return Rows(numbers, n_pos, seeds, len(places) == 1, constant)


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    names = ("kind", "layer", "sublayer", "pos", "index", "label")
    if not tables:
        return pd.DataFrame({name: [] for name in names})
    table = pd.concat(tables, ignore_index=True)
    return table.astype({"kind": str, "sublayer": str, "label": str})
