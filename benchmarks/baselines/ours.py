"""Our own attributions as scores of component edges: the contrast, and the held map of one run.

The score of writer → reader is Σ over positions of what the writer wrote (in a contrast: wrote
more in the clean run than in the corrupted one) times what the reader makes of it, taken from the
sweep alone: the per-neuron edges are never built.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from attribution.sweep import Sweep, sweep
from benchmarks.edges import EdgeModel, Pairs
from replacement.held import Sublayer
from replacement.run import Run
from replacement.secant import RunPair, SecantRule
from replacement.secant.norms import secant_norm
from replacement.secant.slopes import secant_softmax
from replacement.target import Seed, Target

Recorded = list[tuple[Run, Run]]


@torch.no_grad()
def recorded(model: EdgeModel, pairs: Pairs, *, progress: bool = False) -> Recorded:
    """Return the recorded clean and corrupted run of every pair."""
    found = []
    for row in tqdm(range(len(pairs)), disable=not progress, desc="runs"):
        stop = int(pairs.end[row]) + 1
        ids = pairs.clean[row, :stop], pairs.corrupt[row, :stop]
        found.append((model.source.run(ids[0].tolist()), model.source.run(ids[1].tolist())))
    return found


@torch.no_grad()
def contrast(
    model: EdgeModel, pairs: Pairs, runs: Recorded, rule: SecantRule | None = None
) -> Float[Tensor, "pair edge"]:
    """Return the flow of every edge in the contrast of each pair.

    A pair's scores into the output add up to the difference of its metric, exactly.
    """
    flows = []
    for row, (clean, other) in enumerate(runs):
        pair = RunPair(clean, other, rule or SecantRule())
        flows.append(_flows(model, metric_difference(pair, pairs.part(slice(row, row + 1)))))
    return torch.stack(flows)


@torch.no_grad()
def held(model: EdgeModel, pairs: Pairs, runs: Recorded) -> Float[Tensor, "pair edge"]:
    """Return the flow of every edge in the held map of each clean run.

    Patterns are held, so q and k edges carry nothing. A probability is not linear in the logits:
    there the weights read the logits themselves.
    """
    norm, last = model.weights.final_norm, 2 * model.weights.n_layers
    flows = []
    for row, (clean, _) in enumerate(runs):
        end = int(pairs.end[row])
        reads = pairs.weights[row].to(model.source.dtype) @ model.weights.unembedding
        seed = Seed(last, end, norm.pull(reads) / clean.final_scale[end])
        flows.append(_flows(model, Target(clean, "metric", 0.0, 0.0, end, (seed,), ())))
    return torch.stack(flows)


def metric_difference(pair: RunPair, one: Pairs) -> Target:
    """Return by how much the metric of one pair differs between its runs, as a target of both."""
    end, weights = int(one.end[0]), pair.weights
    logits = pair.clean.logits_at(end), pair.other.logits_at(end)
    metric = one.weights[0].to(logits[0].dtype)
    if one.probability:
        visible = torch.ones(1, len(metric), dtype=torch.bool)
        metric = secant_softmax(logits[0][None], logits[1][None], visible).back(metric[None])[0]
    at_output = torch.zeros_like(pair.token_writes)
    at_output[end] = metric @ weights.unembedding
    last = 2 * weights.n_layers
    norm = secant_norm(weights.final_norm, *pair.stream(last), pair.rule.norm)
    values = one.metric(logits[0][None]) - one.metric(logits[1][None])
    seed = Seed(last, end, norm.back(at_output)[end])
    return Target(pair, "Δ metric", float(values), 0.0, end, (seed,), ())


def _flows(model: EdgeModel, target: Target) -> Float[Tensor, " edge"]:
    """The flow of every component edge of a target, summed over positions."""
    return torch.cat([table.sum((1, 3)).flatten() for table in flow_tables(model, target)])


def flow_tables(
    model: EdgeModel, target: Target
) -> list[Float[Tensor, "reader read_at writer written_at"]]:
    """Return the flow of every component edge of a target by position, a table a group.

    Summed over both positions and put in a row they are the flows of `EdgeGraph`'s edges.
    """
    run, graph = target.run, model.graph
    swept = sweep(target, run.sublayers)
    n_pos = len(run.tokens)
    written = (run.token_writes + run.position_writes)[None]
    stages = {0: written}
    tables: list[Tensor] = []
    for number, layer in enumerate(run.sublayers):
        seen = stages[layer.reads_at]
        tables.append(_read(layer, swept, number, seen))
        written = torch.cat([written, _writes(layer, n_pos)])
        stages[layer.writes_at] = written
    (seed,) = target.seeds
    into_output = written.new_zeros(1, n_pos, len(written), n_pos)
    into_output[0, seed.pos, :, seed.pos] = written[:, seed.pos] @ seed.vector
    tables.append(into_output)
    assert [len(table) for table in tables] == [graph.n_readers(g) for g in range(graph.n_groups)]
    return tables


def _writes(layer: Sublayer, n_pos: int) -> Float[Tensor, "writer pos d_model"]:
    """What the heads of a layer, or all neurons of an MLP together, write."""
    if layer.name == "mlp":
        return layer.output[None]
    every = torch.arange(layer.n_nodes)
    return layer.writes(every, layer.writes_at).unflatten(0, (n_pos, -1)).transpose(0, 1)


def _read(
    layer: Sublayer, swept: Sweep, number: int, seen: Float[Tensor, "writer pos d_model"]
) -> Float[Tensor, "reader read_at writer written_at"]:
    """What the readers of a sublayer make of everything written before it.

    An MLP is read as a whole: the vector its step carries back. A head's nodes, one a position,
    are read way by way.
    """
    gradients = swept.gradients[number]
    if layer.name == "mlp":
        carried = layer.step(gradients, _all_kept).gradient
        return torch.diag_embed((seen * carried).sum(-1)).transpose(0, 1)[None]
    n_writers, n_pos = seen.shape[:2]
    reader: Any = layer.reads(gradients, torch.arange(layer.n_nodes))
    flows = reader.products(seen.flatten(0, 1), _places(n_writers, n_pos))
    by_way = [flows.get(way) for way in "qkv"]
    if by_way[2] is None:  # held patterns: values alone, under one name
        (values,) = flows.values()
        by_way = [torch.zeros_like(values), torch.zeros_like(values), values]
    tables = [
        one.unflatten(0, (n_pos, -1)).unflatten(-1, (n_writers, n_pos)).transpose(0, 1)
        for one in by_way
        if one is not None
    ]
    return torch.cat(tables)


def _all_kept(attribution: Float[Tensor, " node"]) -> Bool[Tensor, " node"]:
    return torch.ones_like(attribution, dtype=torch.bool)


def _places(n_writers: int, n_pos: int) -> Int[Tensor, " row"]:
    return torch.arange(n_pos).repeat(n_writers)
