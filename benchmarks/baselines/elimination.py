"""Greedy backward elimination: what the best circuits keep, nearly, by measurement alone.

For small graphs: rounds of one pass for every edge still there.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.edges import EdgeModel, Pairs, Patching


@torch.no_grad()
def eliminated(model: EdgeModel, pairs: Pairs, share: int | float = 0.1) -> Float[Tensor, " edge"]:
    """Return when each edge is removed, from 0 for the first to 1 for the last.

    From the whole model on, in every round each edge still there is taken out alone; the `share` of
    them (one at least) without which the metric stays nearest the whole model's goes for good, the
    nearest first. Near is the mean over pairs of |difference|. Raises ValueError for a share that
    is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"eliminated(share={share}): above 0 and at most 1, what a round removes.")
    graph, runs = model.graph, Patching(model, pairs)
    whole = pairs.metric(model.logits(runs.clean.final, pairs.end))
    mask = torch.ones(graph.n_edges, dtype=model.source.dtype)
    order: list[int] = []
    while len(order) < graph.n_edges:
        there = mask.nonzero().flatten().tolist()
        harm = []
        for edge in there:
            mask[edge] = 0
            harm.append(float((runs.metric(mask) - whole).abs().mean()))
            mask[edge] = 1
        least = torch.tensor(harm).argsort(stable=True)[: max(1, round(share * len(there)))]
        gone = [there[number] for number in least.tolist()]
        mask[gone] = 0
        order += gone
    when = torch.empty_like(mask)
    when[order] = torch.linspace(0, 1, graph.n_edges, dtype=mask.dtype)
    return when
