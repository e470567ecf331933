"""Circuits of single prompts in two bases at equal node count: neurons, and transcoder features.

The question of arXiv 2601.22594. Heads are nodes in both; what transcoders miss are error nodes,
which count like others. A node can be kept if it was something else in the counterfactual run. The
n of largest |score| are kept, all others are set to what they were there; tokens stay.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.baselines.nodes import Derivatives, differentiated, swept
from benchmarks.edges import EdgeModel, Rules
from benchmarks.report.agreement import as_pair
from benchmarks.report.cells import Figures
from benchmarks.report.settings import Settings
from benchmarks.role_circuits import Asked, ask
from benchmarks.selection.rules import active_nodes, products
from circuits import load
from circuits.faithfulness import share_of
from replacement.edits.keeping import RunNodes, kept_values, values_of

BASES = ("neurons", "transcoders")
COUNTS = (5, 10, 20, 50, 100, 200, 500)
ROWS = 16
"""Runs at once."""


def basis_figures(task: str, settings: Settings) -> Figures:
    """Return, by basis and score, what circuits of so many nodes keep of a task's metric.

    Shares of the mean metric between all nodes set to the counterfactual's and none; with the share
    left without the circuit, and how many of its nodes are errors.
    """
    model = EdgeModel(load(settings.model, mlp="neurons", attention="heads"))
    found: Figures = {}
    for basis in BASES:
        source = load(settings.model, mlp=basis, attention="heads")
        of_prompts = [
            _prompt_figures(model, one, seed)
            for seed, one in enumerate(ask(source, task, settings.basis_prompts, seed=2))
        ]
        whole, empty, n_nodes = (
            float(np.mean([one[name] for one in of_prompts]))
            for name in ("whole", "empty", "nodes")
        )
        for method in of_prompts[0]["kept"]:
            kept = np.mean([one["kept"][method] for one in of_prompts], axis=0)
            kept[:, :2] = share_of(kept[:, :2], empty, whole)
            found[f"{basis}, {method}"] = {
                "nodes": n_nodes,
                **{str(size): row for size, row in zip(COUNTS, kept.tolist(), strict=True)},
            }
    return found


def _prompt_figures(model: EdgeModel, one: Asked, seed: int) -> Figures:
    """The metric with each circuit and without it, and its errors, by method and count."""
    nodes, is_error = changed_nodes(one)
    relp = differentiated(model, as_pair(one), rules=Rules(norms=True, gates=True))
    scores = {
        "contrast": strengths(one, nodes, swept(one.difference)),
        "RelP": strengths(one, nodes, relp),
        "random": torch.rand(len(nodes), generator=torch.Generator().manual_seed(seed)),
    }
    orders = {name: one.argsort(descending=True, stable=True) for name, one in scores.items()}
    masks = torch.zeros(len(orders), len(COUNTS), len(nodes), dtype=torch.bool)
    for row, order in enumerate(orders.values()):
        for column, count in enumerate(COUNTS):
            masks[row, column, order[:count]] = True
    every = torch.cat([torch.zeros(1, len(nodes), dtype=torch.bool), masks.flatten(0, 1)])
    reference = values_of(one.other)

    def values(kept: Bool[Tensor, "row node"]) -> Tensor:
        none = torch.zeros(ROWS, dtype=torch.bool)
        parts = [
            kept_values(one.target, nodes, some, none[: len(some)], reference)
            for some in kept.split(ROWS)
        ]
        return torch.cat(parts)

    empty, *alone = values(every).split([1, masks[..., 0].numel()])
    without = values(~masks.flatten(0, 1))
    errors = (masks & is_error).sum(-1).flatten()
    rows = torch.stack([*alone, without, errors], -1).unflatten(0, masks.shape[:2])
    kept = dict(zip(orders, rows.double().numpy(), strict=True))
    return {"whole": one.target.value, "empty": float(empty), "nodes": len(nodes), "kept": kept}


def changed_nodes(one: Asked) -> tuple[RunNodes, Bool[Tensor, " node"]]:
    """Return the nodes that differ between a prompt's runs, and which of them are errors."""
    ours, theirs = values_of(one.run), values_of(one.other)
    parts, number, where, which = [], [], [], []
    for part, value in ours.items():
        change = value - theirs[part]
        moved = change if part[2] == "nodes" and change.dim() == 2 else change.norm(dim=-1)
        pos, index = moved.nonzero(as_tuple=True)
        number.append(torch.full_like(pos, len(parts)))
        parts.append(part)
        where.append(pos)
        which.append(index)
    nodes = RunNodes(parts, torch.cat(number), torch.cat(where), torch.cat(which), {})
    errors = torch.tensor([part[2] == "error" for part in parts])
    return nodes, errors[nodes.part]


def strengths(one: Asked, nodes: RunNodes, derivatives: Derivatives) -> Float[Tensor, " node"]:
    """Return |difference of each node · derivative at what it writes|."""
    ours, theirs = values_of(one.run), values_of(one.other)
    at_outputs = derivatives[1:]
    clean = products(one.run, at_outputs, theirs)
    other, active = products(one.other, at_outputs, ours), active_nodes(ours)
    found = torch.zeros(len(nodes))
    for number, part in enumerate(nodes.parts):
        both = torch.where(active[part], clean[part], other[part]).abs()
        mine = nodes.part == number
        found[mine] = both[nodes.pos[mine], nodes.index[mine]]
    return found
