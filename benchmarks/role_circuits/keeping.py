"""From mean circuits to an order of nodes, and what the model does with only the first of them.

Every other node of the real model, active or not, is set to its mean over prompts at its role;
tokens and positions stay. Shares are (m − m(∅)) / (m(M) − m(∅)), means over prompts taken first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from benchmarks.role_circuits.asking import Asked
from circuits import AverageCircuit
from circuits.faithfulness import keep_each, share_of
from circuits.references import ablation_of
from replacement.edits import Node
from replacement.edits.keeping import RunNodes, nodes_of_run

Part = tuple[str, str, int, int, str]
"""kind, sublayer, layer, index and role of a node of a mean circuit."""


@dataclass(frozen=True)
class Kept:
    """What is left of the metric with the first so many parts of an order."""

    parts: int
    share: float
    """Of the nodes of a run, the mean over prompts."""
    alone: float
    complement: float
    random: float
    """With as many nodes drawn at random."""

    def __str__(self) -> str:
        return (
            f"{self.parts} parts ({self.share:.1%} of all nodes): alone {self.alone:.1%}, all but "
            f"these {self.complement:.1%}, as many at random {self.random:.1%} of the metric"
        )


def strongest_nodes(*means: AverageCircuit) -> dict[Part, float]:
    """Return the parts of mean circuits, strongest first.

    Strength is |attribution| as a share of the circuit's largest; of several circuits the larger.
    """
    found: dict[Part, float] = {}
    for mean in means:
        nodes = mean.nodes
        nodes = nodes.loc[nodes["kind"].isin(["head", "lorsa", "feature", "neuron"])]
        strength = nodes["attribution"].abs() / nodes["attribution"].abs().max()
        columns = [nodes[name].tolist() for name in ("kind", "sublayer", "layer", "index")]
        roles = [text.strip() for text in nodes["token"].tolist()]
        for part, share in zip(zip(*columns, roles, strict=True), strength.tolist(), strict=True):
            found[part] = max(share, found.get(part, 0.0))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def keep(
    asked: Sequence[Asked], mean_over: Sequence[Asked], sets: Sequence[Sequence[Part]]
) -> list[Kept]:
    """Return what is left of the metric with only each set of parts, and without it."""
    rows, shares = [], []
    for number, one in enumerate(asked):
        nodes = nodes_of_run(one.run)
        masks = [_mask(one, nodes, parts) for parts in sets]
        rng = np.random.default_rng(number)
        drawn = [rng.permutation(mask) for mask in masks]
        runs, roles = [other.run for other in mean_over], [other.roles for other in mean_over]
        ablation = ablation_of(one.run, runs, "mean", [one.roles, *roles])
        asked_for = [(np.zeros(len(nodes), dtype=bool), False)]
        asked_for += [(mask, False) for mask in masks] + [(~mask, True) for mask in masks]
        asked_for += [(mask, False) for mask in drawn]
        values = keep_each([one.target], nodes, asked_for, ablation, batch=None, progress=False)
        rows.append([one.target.value, *values])
        shares.append([mask.mean() for mask in masks])
    model, empty, *rest = np.mean(rows, axis=0).tolist()
    alone, complement, random = np.reshape([share_of(v, empty, model) for v in rest], (3, -1))
    return [
        Kept(len(parts), float(share), float(alone[k]), float(complement[k]), float(random[k]))
        for k, (parts, share) in enumerate(zip(sets, np.mean(shares, axis=0), strict=True))
    ]


def smallest(
    order: Sequence[Part],
    asked: Sequence[Asked],
    mean_over: Sequence[Asked],
    *,
    alone: int | float = 0.93,
    complement: int | float = 0.3,
) -> list[Part]:
    """Return the first parts of an order that keep the metric, fewest of 10, 20, 40, 80, …

    All of them where no smaller set does: the circuit was not found.
    """
    sizes = [10 * 2**power for power in range(12) if 10 * 2**power < len(order)]
    sizes = sorted({*sizes, *(size * 3 // 2 for size in sizes if size * 3 // 2 < len(order))})
    sets = [list(order[:size]) for size in [*sizes, len(order)]]
    for parts, kept in zip(sets, keep(asked, mean_over, sets), strict=True):
        if kept.alone >= alone and kept.complement <= complement:
            return parts
    return sets[-1]


def _mask(one: Asked, nodes: RunNodes, parts: Sequence[Part]) -> Bool[np.ndarray, " node"]:
    mask, where = np.zeros(len(nodes), dtype=bool), one.where
    for kind, sublayer, layer, index, role in parts:
        for pos in where.get(role, ()):
            number = nodes.number(one.run, Node(kind, layer, sublayer, pos, index))
            if number >= 0:
                mask[number] = True
    return mask
