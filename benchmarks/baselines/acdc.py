"""ACDC (Conmy et al. 2023, 2304.14997): greedy removal of edges, from the output to the input."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.edges import EdgeModel, Pairs, Patching
from benchmarks.scores import kl_divergence


@torch.no_grad()
def acdc(
    model: EdgeModel, pairs: Pairs, threshold: float, *, by_metric: bool = False
) -> Bool[Tensor, " edge"]:
    """Return the circuit that ACDC keeps at a threshold.

    Readers are visited from the output down, the edges into each from the latest writer to the
    earliest. An edge goes for good where the loss, with all edges removed before it, rises by less
    than the threshold: KL(model ‖ circuit) at the answer, or with `by_metric` the mean metric's
    fall. Edges into nodes that nothing reads any more are removed without a pass, which changes
    nothing. Raises ValueError for a negative threshold.
    """
    if threshold < 0:
        raise ValueError(f"acdc(threshold={threshold}): a number >= 0, what an edge may cost.")
    graph, runs = model.graph, Patching(model, pairs)
    whole = model.logits(runs.clean.final, pairs.end)

    def loss(mask: Float[Tensor, " edge"]) -> float:
        logits = runs.logits(mask)
        if by_metric:
            return float((pairs.metric(whole) - pairs.metric(logits)).mean())
        return kl_divergence(whole, logits)

    mask = torch.ones(graph.n_edges, dtype=model.source.dtype)
    now = 0.0
    for edge in reversed(range(graph.n_edges)):
        reader = int(graph.reader[edge])
        read = reader == graph.n_writers or bool(mask[graph.writer == reader].any())
        mask[edge] = 0
        if not read:
            continue
        then = loss(mask)
        if then - now < threshold:
            now = then
        else:
            mask[edge] = 1
    return mask.bool()
