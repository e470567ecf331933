"""Zero-ablation of nodes: a batch of knock-outs, with everything held or with the model free.

`held_knock_outs` is a forward pass through the held run (held_forward.py), written without any code
of the backward sweep, so that the two check each other. `free_knock_outs` takes the same vectors
out of the real model and lets patterns, norms, gates and later layers react.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.held import Sublayer
from replacement.held_forward import Knocked, held_forward, joined
from replacement.layers import Lorsa
from replacement.run import Run
from replacement.scores import score_values
from replacement.secant import RunPair
from replacement.target import Seed, Target, Term
from replacement.weights import LayerWeights

SOURCES = ("token", "position")


class Removal(NamedTuple):
    """One node to knock out: a row of the node table."""

    kind: str
    layer: int
    sublayer: str
    pos: int
    index: int


def held_knock_outs(
    target: Target, keep: Sequence[Bool[Tensor, " _"]], removals: Sequence[Removal]
) -> Float[Tensor, " batch"]:
    """Return the target's value with each node of `removals` taken out, one at a time.

    Scales, patterns and gates are those of the run; nodes outside `keep` (one mask a sublayer) keep
    writing what they wrote in the run; kept ones react linearly. Raises ValueError for a node that
    the run does not have.
    """
    run = target.run
    if not removals:
        return run.logits.new_zeros(0)
    stream = _entering(run, removals)
    streams = {0: stream}
    values = torch.full_like(stream[:, 0, 0], target.bias)
    arriving: dict[int, Tensor] = {}
    for layer, kept in zip(run.sublayers, keep, strict=True):
        values = values + _read(target.seeds_at(layer.before, front=layer.replaces), stream)
        knocked, error_batch, error_pos = _knocked(layer, removals)
        error = layer.error.repeat(len(removals), 1, 1)
        error[error_batch, error_pos] = 0
        read = streams[layer.reads_at]  # of a parallel block: what attention read
        written = held_forward(run, layer, read, kept, knocked).unbind(2)
        for stage, part in zip(layer.write_stages, written, strict=True):
            arriving[stage] = arriving[stage] + part if stage in arriving else part
        made = joined(run, layer, arriving.pop(layer.writes_at)) + error
        before, stream = stream, made if layer.replaces else stream + made
        streams = {layer.before: before, layer.writes_at: stream}
    return values + _read(target.seeds_at(run.sublayers[-1].writes_at), stream)


def _read(
    seeds: Sequence[Seed], stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, " batch"]:
    total = torch.zeros_like(stream[:, 0, 0])
    for seed in seeds:
        total = total + stream[:, seed.pos] @ seed.vector
    return total


def _entering(run: Run, removals: Sequence[Removal]) -> Float[Tensor, "batch pos d_model"]:
    stream = (run.token_writes + run.position_writes).repeat(len(removals), 1, 1)
    for row, removal in enumerate(removals):
        if removal.kind in SOURCES:
            stream[row, removal.pos] -= _source_vector(run, removal)
    return stream


def _source_vector(run: Run | RunPair, removal: Removal) -> Float[Tensor, " d_model"]:
    writes = run.token_writes if removal.kind == "token" else run.position_writes
    return writes[removal.pos]


def _knocked(
    layer: Sublayer, removals: Sequence[Removal]
) -> tuple[Knocked, Int[Tensor, " lost"], Int[Tensor, " lost"]]:
    """Which row of the batch loses which node of a sublayer; and the error of which position."""
    nodes, errors = [], []
    for row, removal in enumerate(removals):
        if (removal.layer, removal.sublayer) != (layer.layer, layer.name):
            continue
        if removal.kind == "error":
            errors.append((row, removal.pos))
        else:
            nodes.append((row, number_of(layer, removal)))
    device = layer.error.device
    pairs = torch.tensor(nodes, dtype=torch.long, device=device).reshape(-1, 2).T
    places = torch.tensor(errors, dtype=torch.long, device=device).reshape(-1, 2).T
    return Knocked(pairs[0], pairs[1].contiguous()), places[0], places[1]


def number_of(layer: Sublayer, removal: Removal) -> int:
    """Return the number of a node among those of its sublayer; ValueError if the run lacks it."""
    number = layer.find(removal.kind, removal.pos, removal.index)
    if number < 0:
        raise ValueError(
            f"{removal.kind} {removal.index} of layer {removal.layer} is not active at position "
            f"{removal.pos} of this run, so it cannot be knocked out. Another model or prompt?"
        )
    return number


def free_knock_outs(target: Target, removals: Sequence[Removal]) -> Float[Tensor, " batch"]:
    """Return the target as the real model gives it with each node's write vector taken out.

    Nothing is held: the vector is subtracted from the sublayer's output (or the embedding) and the
    original model computes the rest.
    """
    run = target.run
    if not removals:
        return run.logits.new_zeros(0)
    streams = run.model.tracer.run_edited(
        run.token_ids.to(run.logits.device),
        _subtractions(run, removals),
        {_stage(run, term) for term in target.terms},
        {} if run.errors else run.model.substitutes(),
    )
    values = run.logits.new_zeros(len(removals))
    for term in target.terms:
        values += term.weight * _measured(run, term, streams[_stage(run, term)])
    return values


def _subtractions(
    run: Run | RunPair, removals: Sequence[Removal]
) -> dict[tuple[int, str], Float[Tensor, "batch pos d_model"]]:
    additions: dict[tuple[int, str], Tensor] = {}
    shape = (len(removals), *run.token_writes.shape)
    for row, removal in enumerate(removals):
        for place, vector in _vectors(run, removal).items():
            if place not in additions:
                additions[place] = run.token_writes.new_zeros(shape)
            additions[place][row, removal.pos] -= vector
    return additions


def _vectors(
    run: Run | RunPair, removal: Removal
) -> dict[tuple[int, str], Float[Tensor, " d_model"]]:
    """What a node wrote, by the sublayer whose output it joined."""
    if removal.kind in SOURCES:
        return {(-1, ""): _source_vector(run, removal)}
    own = run.sublayer(removal.layer, removal.sublayer)
    places = {
        layer.writes_at: (layer.layer, layer.name)
        for layer in run.sublayers
        if layer.replaces == own.replaces
    }
    if removal.kind == "error":
        return {places[own.writes_at]: own.error[removal.pos]}
    node = torch.tensor([number_of(own, removal)], device=run.logits.device)
    return {places[stage]: own.writes(node, stage)[0] for stage in own.write_stages}


def _stage(run: Run | RunPair, term: Term) -> int | tuple[int, str]:
    """The stage whose residual stream a term is measured on, with the real norm on top."""
    if term.kind != "feature":
        return 2 * term.layer
    held = run.sublayer(term.layer, term.sublayer)
    return (held.layer, held.name) if held.replaces else held.reads_at


def _measured(
    run: Run | RunPair, term: Term, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, " batch"]:
    weights, here = run.weights, stream[:, term.pos]
    if term.vector is not None:
        return here @ term.vector
    if term.kind == "attention_score":
        return _measured_score(run, term, stream)
    if term.kind == "feature":
        held = run.sublayer(term.layer, term.sublayer)
        if held.replaces:
            return weights.streams[held.reads_at].pre_activation(here, term.index)
        return _measured_feature(weights.layers[term.layer], term, stream)
    y = weights.final_norm.apply(here, weights.final_norm.scale(here))
    row, bias = weights.unembedding[term.index], weights.unembedding_bias
    constant = 0.0 if bias is None else bias[term.index]
    if term.kind == "centered_logit":
        row = row - weights.mean_unembedding
        constant = constant - (0.0 if bias is None else bias.mean())
    return y @ row + constant


def _measured_feature(
    block: LayerWeights, term: Term, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, " batch"]:
    if term.sublayer == "mlp":
        here = stream[:, term.pos]
        y = block.mlp_reads_through.apply(here, block.mlp_reads_through.scale(here))
        return block.mlp.pre_activation(y, term.index)
    y = block.attention_norm.apply(stream, block.attention_norm.scale(stream))
    if isinstance(block.attention, Lorsa):
        return block.attention.mixed(y)[:, term.pos, term.index]
    assert block.attention is not None
    written = torch.stack(
        [block.heads.write(block.heads.mix(block.heads.query_key.pattern(one), one)) for one in y]
    )
    return block.attention.pre_activation(written[:, term.pos], term.index)


def _measured_score(
    run: Run | RunPair, term: Term, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, " batch"]:
    """The score of the changed run; from one side, with the other as it was recorded."""
    recorded = run.residuals[2 * term.layer]
    sides = {
        "query": stream[:, term.pos],
        "key": stream[:, term.key],
    }
    for name, pos in (("query", term.pos), ("key", term.key)):
        if term.side not in (name, "both"):
            sides[name] = recorded[pos].expand_as(sides[name])
    return score_values(
        run, term.layer, term.index, sides["query"], sides["key"], (term.pos, term.key)
    )
