"""Single nodes: what patching each does, and the derivatives by which methods estimate it.

A node is what writes at one position: a token, a head, an MLP, a neuron, a feature. A method's
estimate is what the node wrote more than in the counterfactual run times a derivative of the metric
there; methods differ in the derivative alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.sweep import sweep
from benchmarks.baselines.gradients import reader_gradients
from benchmarks.edges import EdgeModel, Pairs, Patching, Rules
from replacement.edits.keeping import values_of
from replacement.held import FeatureNodes
from replacement.run import Run
from replacement.target import Target

BATCH = 256
Derivatives = list[Float[Tensor, "pos d_model"]]
"""At what the input writes, then at what each sublayer does."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes of one kind in one sublayer of two runs."""

    kind: str
    part: int
    """0 for the input, n + 1 for the sublayer n."""
    pos: Int[Tensor, " node"]
    clean: Float[Tensor, "node d_model"]
    """What each wrote in the clean run."""
    change: Float[Tensor, "node d_model"]
    """How much more than in the other."""

    def strongest(self, count: int) -> "Nodes":
        """Return the nodes that wrote something else, at most so many: of largest |change|."""
        size = self.change.norm(dim=-1)
        order = size.argsort(descending=True, stable=True)[: min(count, int((size > 0).sum()))]
        return Nodes(self.kind, self.part, self.pos[order], self.clean[order], self.change[order])


@torch.no_grad()
def component_nodes(model: EdgeModel, one: Pairs) -> list[Nodes]:
    """Return the tokens, heads and MLP outputs of a pair (a batch of one)."""
    runs, found = Patching(model, one), []
    for part, (clean, other) in enumerate(zip(runs.clean.parts, runs.corrupt.parts, strict=True)):
        kind = "tokens" if part == 0 else "heads" if part % 2 else "MLP outputs"
        n_parts, n_pos = clean.shape[1:3]
        pos = torch.arange(n_pos).repeat(n_parts)
        found.append(
            Nodes(kind, part, pos, clean[0].flatten(0, 1), (clean - other)[0].flatten(0, 1))
        )
    return found


@torch.no_grad()
def feature_nodes(run: Run, other: Run) -> list[Nodes]:
    """Return the neurons, features and Lorsa heads of two runs, and the errors of their layers."""
    ours, theirs, found = values_of(run), values_of(other), []
    for (layer, name, part), value in ours.items():
        number = run.place(layer, name)
        own, change = run.sublayers[number], value - theirs[layer, name, part]
        if not isinstance(own, FeatureNodes) or part == "skip":
            continue
        pos = torch.arange(len(value))
        if part == "error":
            found.append(Nodes("errors", number + 1, pos, value[:, 0], change[:, 0]))
            continue
        pos, index = change.nonzero(as_tuple=True)
        write = own.features.write[index]
        by = value[pos, index, None], change[pos, index, None]
        kind = {"neuron": "neurons", "feature": "features", "lorsa": "Lorsa heads"}[own.node_kind]
        found.append(Nodes(kind, number + 1, pos, by[0] * write, by[1] * write))
    return found


@torch.no_grad()
def patched_each(model: EdgeModel, one: Pairs, nodes: Nodes) -> Float[Tensor, " node"]:
    """Return by how much the metric of a pair falls when each node writes what it did in the other
    run, the real model free to react."""
    runs, part = Patching(model, one), nodes.part
    parts = [made.sum(1, keepdim=True) for made in runs.clean.parts[: part + 1]]
    clean, fallen = one.metric(model.logits(runs.clean.final, one.end)), [nodes.change.new_zeros(0)]
    for pos, change in zip(nodes.pos.split(BATCH), nodes.change.split(BATCH), strict=True):
        after = [made.expand(len(pos), -1, -1, -1) for made in parts]
        after[part] = after[part].clone()
        after[part][torch.arange(len(pos)), 0, pos] -= change
        final = model.run(after[0][:, 0], after=after).final
        fallen.append(clean - one.metric(model.logits(final, one.end.expand(len(pos)))))
    return torch.cat(fallen)


def swept(target: Target) -> Derivatives:
    """Return the derivatives of our own: of a held run's target, or of a contrast's."""
    with torch.no_grad():
        found = sweep(target, target.run.sublayers)
    return [found.entering, *(gradients[0] for gradients in found.gradients)]


def differentiated(
    model: EdgeModel,
    one: Pairs,
    entering: Float[Tensor, "batch pos d_model"] | None = None,
    rules: Rules | None = None,
) -> Derivatives:
    """Return the gradients of a pair's metric at what is written in the clean run (or from another
    embedding); with `rules` by LRP's coefficients."""
    entering = model.entering(one.clean) if entering is None else entering
    at_readers = [
        gradient[0].sum(0) for gradient in reader_gradients(model, one, entering, rules=rules)[1]
    ]
    graph = model.graph
    return [
        sum(at_readers[g] for g in range(graph.n_groups) if graph.n_parts(g) > part)
        + torch.zeros_like(at_readers[0])
        for part in range(2 * graph.n_layers + 1)
    ]


def integrated(model: EdgeModel, one: Pairs, steps: int = 5) -> Derivatives:
    """Return EAP-IG's mean gradients on the line between both embeddings."""
    clean, other = model.entering(one.clean), model.entering(one.corrupt)
    found = [
        differentiated(model, one, other + (step / steps) * (clean - other))
        for step in range(steps)
    ]
    return [torch.stack(at).mean(0) for at in zip(*found, strict=True)]


PUBLISHED: Final[Mapping[str, Callable[[EdgeModel, Pairs], Derivatives]]] = MappingProxyType(
    {
        "RelP": partial(differentiated, rules=Rules(norms=True, gates=True)),
        "EAP": differentiated,
        "EAP-IG-5": integrated,
    }
)
"""Derivatives that others use; EAP's of a node is attribution patching."""
