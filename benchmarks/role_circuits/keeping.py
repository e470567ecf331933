"""From mean circuits to an order of nodes, and what the model does with only the first of them.

Every other node of the real model, active or not, is set to its mean over prompts at its role;
tokens and positions stay. Shares are (m − m(∅)) / (m(M) − m(∅)), means over prompts taken first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.role_circuits.asking import REST, Asked
from circuits import AverageCircuit
from circuits.faithfulness import keep_each, share_of
from circuits.references import Ablation
from replacement.edits import Node
from replacement.edits.keeping import Part as ModelPart
from replacement.edits.keeping import RunNodes, mean_values, nodes_of_run

Part = tuple[str, str, int, int, str]
"""kind, sublayer, layer, index and role of a node of a mean circuit."""


@dataclass(frozen=True, eq=False)
class Means:
    """What nodes are on average over prompts, by role."""

    names: list[str]
    """Of the roles; the rest of the positions is the last."""
    values: dict[ModelPart, Float[Tensor, "role _ ..."]]

    def slots(self, one: Asked) -> Int[Tensor, " pos"]:
        """Return the number of the role of every position; of a role unknown here, the rest's."""
        return _slots(one, self.names)

    def ablation(self, one: Asked) -> Ablation:
        """Return how nodes of a prompt are set to the means."""
        return Ablation("mean", self.values, self.slots(one))


def means_over(asked: Sequence[Asked]) -> Means:
    """Return the means over the runs of prompts, every node real."""
    names = [*dict.fromkeys(name for one in asked for name in one.where if name != REST), REST]
    with torch.no_grad():
        values, _ = mean_values(((one.run, _slots(one, names)) for one in asked), len(names))
    return Means(names, values)


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


def keep(asked: Sequence[Asked], means: Means, sets: Sequence[Sequence[Part]]) -> list[Kept]:
    """Return what is left of the metric with only each set of parts, and without it."""
    rows, shares = [], []
    for number, one in enumerate(asked):
        nodes = nodes_of_run(one.run)
        masks = [_mask(one, nodes, parts) for parts in sets]
        rng = np.random.default_rng(number)
        drawn = [rng.permutation(mask) for mask in masks]
        asked_for = [(np.zeros(len(nodes), dtype=bool), False)]
        asked_for += [(mask, False) for mask in masks] + [(~mask, True) for mask in masks]
        asked_for += [(mask, False) for mask in drawn]
        how = means.ablation(one)
        values = keep_each([one.target], nodes, asked_for, how, batch=None, progress=False)
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
    means: Means,
    *,
    alone: int | float = 0.93,
    complement: int | float = 0.3,
) -> list[Part]:
    """Return the first parts of an order that keep the metric, the fewest of 10, 13, 17, 22, …

    All of them where no smaller set does: the circuit was not found.
    """
    size = 10
    while size < len(order):
        (kept,) = keep(asked, means, [order[:size]])
        if kept.alone >= alone and kept.complement <= complement:
            break
        size = size * 4 // 3
    return list(order[:size])


def _slots(one: Asked, names: Sequence[str]) -> Int[Tensor, " pos"]:
    slots = torch.full((len(one.run.tokens),), len(names) - 1, device=one.run.next_logits.device)
    for name, places in one.where.items():
        if name in names:
            slots[list(places)] = names.index(name)
    return slots


def _mask(one: Asked, nodes: RunNodes, parts: Sequence[Part]) -> Bool[np.ndarray, " node"]:
    mask, where = np.zeros(len(nodes), dtype=bool), one.where
    for kind, sublayer, layer, index, role in parts:
        for pos in where.get(role, ()):
            number = nodes.number(one.run, Node(kind, layer, sublayer, pos, index))
            if number >= 0:
                mask[number] = True
    return mask
