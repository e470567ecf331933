"""From scores of many prompts to nodes of another, by roles; and what those nodes do alone."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.selection.prompts import Asked
from circuits.by_role import BySlot, Masks, Scores, active_nodes
from replacement.edits.keeping import Part, Values, mean_values, values_of
from replacement.edits.live import Fill, LiveEdits


class Average:
    """The mean of scores over prompts, by part, role and node, where the node was active."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self.total: dict[Part, Float[Tensor, "slot node"]] = {}
        self.count: dict[Part, Float[Tensor, "slot node"]] = {}

    def add(self, asked: Asked, scores: Scores) -> None:
        """Add the scores of one prompt."""
        active = active_nodes(values_of(asked.run))
        for part, score in scores.items():
            for sums, one in ((self.total, score), (self.count, active[part].float())):
                if part not in sums:
                    sums[part] = one.new_zeros(self.n_slots, one.shape[1])
                sums[part].index_add_(0, asked.slots, one)

    def mean(self) -> dict[Part, Float[Tensor, "slot node"]]:
        """Return the mean where a node was active; 0 where it never was."""
        return {part: one / self.count[part].clamp_min(1) for part, one in self.total.items()}


def reference_values(runs: Iterable[Asked], n_slots: int) -> BySlot:
    """Return the mean of what nodes are, by role, over prompts; 0 in roles that none has."""
    return mean_values(((one.run, one.slots) for one in runs), n_slots)[0]


@torch.no_grad()
def values_alone(
    asked: Asked, sets: Sequence[Masks], reference: Values, *, batch: int = 64
) -> np.ndarray:
    """Return the metric in the real model with only each set of nodes as the model makes them.

    All other nodes are at the `reference`.
    """
    run, found = asked.run, []
    last, norm = 2 * run.weights.n_layers, run.weights.final_norm
    assert run.weights.unembedding_bias is None
    for start in range(0, len(sets), batch):
        some = sets[start : start + batch]
        kept = {part: torch.stack([one[part] for one in some]) for part in reference}
        fills = {part: Fill(mask, reference[part][None]) for part, mask in kept.items()}
        done = run.model.tracer.run_edited(
            run.token_ids.expand(len(some), -1),
            LiveEdits(run.weights, run.errors, fills=fills).substitutes(),
            {last},
        )
        end = done.streams[last][:, -1]
        logits = norm.apply(end, norm.scale(end)) @ run.weights.unembedding.T
        found.append(asked.metric(logits).numpy())
    return np.concatenate(found)
