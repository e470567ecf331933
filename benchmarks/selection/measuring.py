"""One cell of the table: a task, a way to read attention and MLPs, every rule, every size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from attribution.sweep import GateRule
from benchmarks.selection.keeping import Average, reference_values, values_alone
from benchmarks.selection.prompts import ROLES, Asked, asked, prompts
from benchmarks.selection.rules import (
    default_scores,
    gated_scores,
    gradient_scores,
    influence_of_nodes,
    ungated_scores,
)
from circuits import load
from circuits.by_role import (
    Masks,
    Scores,
    active_nodes,
    placed,
    ratio_interval,
    size_of,
    strongest_nodes,
)
from replacement.edits.keeping import Part, Values, values_of

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Of the active nodes and errors of each prompt."""
AIM = 0.1
"""The share at which the complement is measured."""
RANDOM = ("random", 0.0)
GATES: Mapping[str, GateRule] = {"gate, absolute": "absolute", "gate, signed": "signed"}


@dataclass(frozen=True)
class Settings:
    """What one measurement depends on."""

    pairs: int = 200
    """Held-out prompts of each task."""
    training: int = 100
    """Training prompts over which a rule's scores are averaged."""
    reference: int = 200
    """Training prompts over which the means are taken that ablated nodes are set to."""


class Learned:
    """What training prompts say: means to ablate to, and every rule's scores, by role."""

    def __init__(self, model: Any, task: str, settings: Settings, *, influence: bool) -> None:
        self.n_slots = len(ROLES[task])
        wanted = prompts(task, "train", max(settings.training, settings.reference))
        train = [asked(model, task, one) for one in wanted]
        self.reference = reference_values(train[: settings.reference], self.n_slots)
        self.averages: dict[tuple[str, float], Average] = {}
        self.kept_in: dict[Part, torch.Tensor] = {}
        """In how many prompts `trace` kept a node by default."""
        self.training = settings.training
        for one in train[: settings.training]:
            self._add(one, influence=influence)
        self.scores = {key: average.mean() for key, average in self.averages.items()}
        generator = torch.Generator().manual_seed(0)
        self.scores[RANDOM] = {  # of nodes that were active at all, however often
            part: torch.rand(ever.shape, generator=generator) * ever
            for part, ever in self.scores[RANDOM].items()
        }

    def _add(self, one: Asked, *, influence: bool) -> None:
        active = active_nodes(values_of(one.run))
        n_nodes = sum(int(mask.sum()) for mask in active.values())
        for rule, gate in GATES.items():
            counts = [max(1, round(share * n_nodes)) for share in SHARES]
            for share, scores in zip(SHARES, gated_scores(one, gate, counts), strict=True):
                self._book(rule, share, one, scores)
        every = {"ungated": ungated_scores(one), "gradient × activation": gradient_scores(one)}
        if influence:
            every["influence"] = influence_of_nodes(one)
        every[RANDOM[0]] = {part: mask.float() for part, mask in active.items()}
        for rule, scores in every.items():
            self._book(rule, 0.0, one, scores)
        for part, score in default_scores(one).items():
            kept = score.new_zeros(self.n_slots, score.shape[1])
            kept.index_add_(0, one.slots, (score > 0).float())
            self.kept_in[part] = self.kept_in.get(part, 0) + (kept > 0).float()

    def _book(self, rule: str, share: float, one: Asked, scores: Scores) -> None:
        self.averages.setdefault((rule, share), Average(self.n_slots)).add(one, scores)

    @property
    def rules(self) -> list[str]:
        """Names of the rules, in the order of the table."""
        return list(dict.fromkeys(rule for rule, _ in self.averages))

    def chosen(self, rule: str, share: float, one: Asked, active: Masks, n_nodes: int) -> Masks:
        """Return a rule's strongest nodes in a prompt, as many as a share of its active ones."""
        scores = self.scores.get((rule, share), self.scores.get((rule, 0.0)))
        assert scores is not None
        return strongest_nodes(placed(scores, one.slots), active, max(1, round(share * n_nodes)))

    def default(self, one: Asked, min_share: float) -> Masks:
        """Return what `trace` kept in a prompt at least, and in that share of training prompts."""
        least = max(1.0, min_share * self.training)
        return {part: count[one.slots] >= least for part, count in self.kept_in.items()}


def measure(task: str, attention: str, mlp: str, settings: Settings) -> dict[str, Any]:
    """Return the figures of every rule on one task, read one way."""
    model = load("four-tasks", attention=attention, mlp=mlp)
    influence = attention == "lorsa" and mlp == "transcoders"
    with torch.no_grad():
        learned = Learned(model, task, settings, influence=influence)
        rows, sizes, whole = [], [], []
        wanted = prompts(task, "held_out", settings.pairs)
        for prompt in tqdm(wanted, desc=f"{task}, {attention}, {mlp}", delay=1.0):
            one = asked(model, task, prompt)
            named = sets_of(learned, one)
            active = active_nodes(values_of(one.run))
            sizes.append([size_of(kept, active) for kept in named.values()])
            rows.append(values_alone(one, list(named.values()), _here(learned, one)))
            whole.append(float(one.metric(one.run.next_logits)))
    return figures(list(named), np.array(rows), np.array(sizes), np.array(whole))


def _here(learned: Learned, one: Asked) -> Values:
    return placed(learned.reference, one.slots)


def sets_of(learned: Learned, one: Asked) -> dict[tuple[str, str], Masks]:
    """Return every set of nodes that is kept in a prompt, by what it is and how large.

    Complements keep what is not active too.
    """
    active = active_nodes(values_of(one.run))
    n_nodes = sum(int(mask.sum()) for mask in active.values())
    nothing = {part: torch.zeros_like(mask) for part, mask in active.items()}
    found: dict[tuple[str, str], Masks] = {
        ("nothing", ""): nothing,
        ("every active node", ""): active,
    }
    for rule in learned.rules:
        for share in SHARES:
            found[rule, f"{share:g}"] = learned.chosen(rule, share, one, active, n_nodes)
        found[rule, "complement"] = _complement(found[rule, f"{AIM:g}"])
    for name, min_share in (("default, union", 0.0), ("default, in 5 %", 0.05)):
        found[name, "own size"] = learned.default(one, min_share)
        found[name, "complement"] = _complement(found[name, "own size"])
    return found


def _complement(kept: Masks) -> Masks:
    return {part: ~mask for part, mask in kept.items()}


def figures(
    names: Sequence[tuple[str, str]], rows: np.ndarray, sizes: np.ndarray, whole: np.ndarray
) -> dict[str, Any]:
    """Return faithfulness of every set with its bootstrap interval, and mean numbers of nodes."""
    place = {name: number for number, name in enumerate(names)}
    empty, n_nodes = rows[:, place["nothing", ""]], sizes[:, place["every active node", ""]]
    found: dict[str, Any] = {
        "whole": round(float(whole.mean()), 4),
        "nothing": round(float(empty.mean()), 4),
        "active nodes": round(float(n_nodes.mean()), 1),
        "rules": {},
    }
    for (rule, size), number in place.items():
        if rule != "nothing":
            row = found["rules"].setdefault(rule, {})
            found_here = ratio_interval(rows[:, number], empty, whole)
            row[size or "all"] = [round(one, 4) for one in found_here]
            if size == "own size":
                row["share"] = round(float((sizes[:, number] / n_nodes).mean()), 4)
    return found


def means_of_rules(cells: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return, for every rule, its mean faithfulness over cells at every size.

    Cells that lack the rule are left out of its mean.
    """
    made: dict[str, dict[str, list[float]]] = {}
    for cell in cells.values():
        for rule, row in cell["rules"].items():
            for size, value in row.items():
                if size != "share":
                    made.setdefault(rule, {}).setdefault(size, []).append(value[0])
    return {
        rule: {size: sum(values) / len(values) for size, values in row.items()}
        for rule, row in made.items()
    }
