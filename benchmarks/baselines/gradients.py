"""Gradient methods: an edge's score is Σ (difference its writer made) · (gradient at its reader).

* EAP (Syed et al. 2023, 2310.10348): the gradient of the clean run.
* EAP-IG, inputs (Hanna et al. 2024, 2403.17806): its mean over runs from embeddings on the line
  from corrupted to clean, at k/m for k = 0 … m−1 as in the authors' code (their paper sums 1 … m).
* EAP-IG, activations (MIB's and the authors' code): every writing sublayer in turn is set to a
  point on the line between its two outputs, k/m for k = 1 … m, the rest of the run being clean; the
  gradients at all readers are averaged over sublayers and points.
* RelP (Rezaei Jafari et al. 2025, 2508.21258): EAP with LRP's coefficients for the gradient: the
  LN-rule, identity rule and (in gated MLPs) half rule that the authors' code begins with; with
  `hold_patterns` also their AH-rule, which leaves nothing to q and k edges.
* gradient × activation: the clean run's gradient times what the writer wrote there, no
  counterfactual: how the metric would fall, to first order, if the edge carried nothing.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.edges import EdgeGraph, EdgeModel, Pairs, Patching, Rules
from benchmarks.edges.model import Parts, Passed

BATCH = 50
"""Pairs at a time: a probe per reader is kept for each."""

Probed = tuple[Passed, list[Float[Tensor, "batch _ pos d_model"]]]


def eap(model: EdgeModel, pairs: Pairs) -> Float[Tensor, " edge"]:
    """Return EAP's score of every edge."""
    return _mean(pairs, lambda part: _eap(model, part, Rules()))


def relp(model: EdgeModel, pairs: Pairs, *, hold_patterns: bool = False) -> Float[Tensor, " edge"]:
    """Return RelP's score of every edge."""
    rules = Rules(norms=True, gates=True, patterns=hold_patterns)
    return _mean(pairs, lambda part: _eap(model, part, rules))


def eap_ig_inputs(model: EdgeModel, pairs: Pairs, steps: int = 5) -> Float[Tensor, " edge"]:
    """Return the score of every edge by EAP-IG on inputs. Raises ValueError for no steps."""
    _check_steps(steps)

    def scores(part: Pairs) -> Float[Tensor, "batch edge"]:
        runs = Patching(model, part)
        clean, corrupt = runs.clean.parts[0][:, 0], runs.corrupt.parts[0][:, 0]
        total = _nothing(model, part)
        for step in range(steps):
            between = corrupt + (step / steps) * (clean - corrupt)
            total = _summed(total, reader_gradients(model, part, between)[1])
        return _products(model.graph, _difference(runs), total) / steps

    return _mean(pairs, scores)


def eap_ig_activations(model: EdgeModel, pairs: Pairs, steps: int = 5) -> Float[Tensor, " edge"]:
    """Return the score of every edge by EAP-IG on activations. Raises ValueError for no steps."""
    _check_steps(steps)

    def scores(part: Pairs) -> Float[Tensor, "batch edge"]:
        runs = Patching(model, part)
        sublayers = len(runs.clean.parts)
        total = _nothing(model, part)
        for number in range(sublayers):
            clean, corrupt = runs.clean.parts[number], runs.corrupt.parts[number]
            for step in range(1, steps + 1):
                between = corrupt + (step / steps) * (clean - corrupt)
                after = [*runs.clean.parts[:number], between]
                total = _summed(total, reader_gradients(model, part, after=after)[1])
        return _products(model.graph, _difference(runs), total) / (steps * sublayers)

    return _mean(pairs, scores)


def gradient_activation(model: EdgeModel, pairs: Pairs) -> Float[Tensor, " edge"]:
    """Return gradient × activation of every edge; the corrupted prompts are not used."""

    def scores(part: Pairs) -> Float[Tensor, "batch edge"]:
        passed, gradients = reader_gradients(model, part, model.entering(part.clean))
        return _products(model.graph, passed.written.detach(), gradients)

    return _mean(pairs, scores)


def node_scores(graph: EdgeGraph, scores: Float[Tensor, " edge"]) -> Float[Tensor, " writer"]:
    """Return the score of every writer: the sum over its outgoing edges.

    Of a gradient method, whose edges share the writer's difference, that is attribution patching of
    the node (the gradient at its output is the sum of those at its readers).
    """
    return scores.new_zeros(graph.n_writers).index_add_(0, graph.writer, scores)


def reader_gradients(
    model: EdgeModel,
    pairs: Pairs,
    entering: Float[Tensor, "batch pos d_model"] | None = None,
    *,
    rules: Rules | None = None,
    after: Parts | None = None,
) -> Probed:
    """Return a run and the gradient of the metric at what each reader got, group by group.

    `after`: what the first sublayers wrote, given instead of computed; no gradient goes through it,
    and their readers get none.
    """
    graph, rules = model.graph, rules or Rules()
    first = 0 if after is None else len(after) - 1
    if entering is None:
        assert after is not None
        entering = after[0][:, 0]
    n_batch, n_pos, width = entering.shape
    probes = [
        entering.new_zeros(n_batch, graph.n_readers(group), n_pos, width).requires_grad_(
            group >= first
        )
        for group in range(graph.n_groups)
    ]

    def reads(group: int, parts: Parts) -> Float[Tensor, "batch reader pos d_model"]:
        return model.stream(group, parts) + probes[group]

    passed = model.run(entering, reads, rules=rules, after=after)
    total = pairs.metric(model.logits(passed.final, pairs.end, rules)).sum()
    found = torch.autograd.grad(total, probes[first:])
    return passed, [*(probe.detach() for probe in probes[:first]), *found]


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"EAP-IG: steps={steps}; the mean needs at least 1 point.")


def _mean(
    pairs: Pairs, scores: Callable[[Pairs], Float[Tensor, "batch edge"]]
) -> Float[Tensor, " edge"]:
    """The mean over all pairs, a batch of similar length at a time."""
    return torch.cat([scores(part) for part in pairs.by_length().parts(BATCH)]).mean(0)


def _eap(model: EdgeModel, pairs: Pairs, rules: Rules) -> Float[Tensor, "batch edge"]:
    runs = Patching(model, pairs)
    gradients = reader_gradients(model, pairs, runs.clean.parts[0][:, 0], rules=rules)[1]
    return _products(model.graph, _difference(runs), gradients)


def _difference(runs: Patching) -> Float[Tensor, "batch writer pos d_model"]:
    return runs.clean.written - runs.corrupt.written


def _nothing(model: EdgeModel, pairs: Pairs) -> list[Tensor]:
    zeros = model.weights.unembedding.new_zeros
    n_batch, n_pos = pairs.clean.shape
    readers = [model.graph.n_readers(group) for group in range(model.graph.n_groups)]
    return [zeros(n_batch, count, n_pos, model.weights.d_model) for count in readers]


def _summed(total: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    return [one + other for one, other in zip(total, gradients, strict=True)]


def _products(
    graph: EdgeGraph,
    written: Float[Tensor, "batch writer pos d_model"],
    gradients: list[Float[Tensor, "batch _ pos d_model"]],
) -> Float[Tensor, "batch edge"]:
    """Σ over positions of written · gradient, for every writer a reader sees."""
    by_group = [
        (gradient.flatten(2) @ written[:, : graph.n_visible(group)].flatten(2).transpose(1, 2))
        for group, gradient in enumerate(gradients)
    ]
    return torch.cat([table.flatten(1) for table in by_group], 1)
