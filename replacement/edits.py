"""Zero-ablation of nodes: a batch of knock-outs, with everything held or with the model free.

`held_knock_outs` is a forward pass through the held run, written without any code of the backward
sweep, so that the two check each other. `free_knock_outs` takes the same vectors out of the real
model and lets patterns, norms, gates and later layers react.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import einops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.held import Sublayer, held_sublayers
from replacement.run import Run
from replacement.target import Target, Term

SOURCES = ("token", "position")


class Removal(NamedTuple):
    """One node to knock out: a row of the node table."""

    kind: str
    layer: int
    sublayer: str
    pos: int
    index: int


@dataclass(frozen=True)
class _Knocked:
    """The knock-outs that concern one sublayer: which row of the batch loses which node."""

    batch: Int[Tensor, " removed"]
    node: Int[Tensor, " removed"]
    error_batch: Int[Tensor, " lost"]
    error_pos: Int[Tensor, " lost"]


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
    sublayers = held_sublayers(run)
    stream = _entering(run, removals)
    values = torch.full_like(stream[:, 0, 0], target.bias) + _read(target, 0, stream)
    for layer, kept in zip(sublayers, keep, strict=True):
        knocked = _knocked(layer, removals)
        forward = _attention_forward if layer.name == "attn" else _mlp_forward
        error = layer.error.repeat(len(removals), 1, 1)
        error[knocked.error_batch, knocked.error_pos] = 0
        stream = stream + forward(run, layer, stream, kept, knocked) + error
        values = values + _read(target, layer.writes_at, stream)
    return values


def _read(
    target: Target, stage: int, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, " batch"]:
    total = torch.zeros_like(stream[:, 0, 0])
    for seed in target.seeds:
        if seed.stage == stage:
            total = total + stream[:, seed.pos] @ seed.vector
    return total


def _entering(run: Run, removals: Sequence[Removal]) -> Float[Tensor, "batch pos d_model"]:
    stream = (run.token_writes + run.position_writes).repeat(len(removals), 1, 1)
    for row, removal in enumerate(removals):
        if removal.kind in SOURCES:
            stream[row, removal.pos] -= _source_vector(run, removal)
    return stream


def _source_vector(run: Run, removal: Removal) -> Float[Tensor, " d_model"]:
    writes = run.token_writes if removal.kind == "token" else run.position_writes
    return writes[removal.pos]


def _knocked(layer: Sublayer, removals: Sequence[Removal]) -> _Knocked:
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
    return _Knocked(pairs[0], pairs[1], places[0], places[1])


def number_of(layer: Sublayer, removal: Removal) -> int:
    """Return the number of a node among those of its sublayer; ValueError if the run lacks it."""
    number = layer.find(removal.kind, removal.pos, removal.index)
    if number < 0:
        raise ValueError(
            f"{removal.kind} {removal.index} of layer {removal.layer} is not active at position "
            f"{removal.pos} of this run, so it cannot be knocked out. Another model or prompt?"
        )
    return number


def _attention_forward(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    knocked: _Knocked,
) -> Float[Tensor, "batch pos d_model"]:
    recorded, block = run.layers[layer.layer], run.weights.layers[layer.layer]
    heads = block.heads
    values = block.attention_norm.apply(stream, recorded.attention_scale) @ heads.value
    if heads.value_bias is not None:
        values = values + heads.value_bias
    live = einops.einsum(
        recorded.pattern,
        einops.rearrange(
            values, "batch key (head d_head) -> batch key head d_head", head=heads.n_heads
        ),
        "head query key, batch key head d_head -> batch query head d_head",
    )
    mixed = torch.where(kept.view(*recorded.mixed.shape[:2], 1), live, recorded.mixed)
    mixed[knocked.batch, knocked.node // heads.n_heads, knocked.node % heads.n_heads] = 0
    output = einops.rearrange(mixed, "batch pos head d_head -> batch pos (head d_head)")
    written = output @ heads.output
    return written if heads.output_bias is None else written + heads.output_bias


def _mlp_forward(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    knocked: _Knocked,
) -> Float[Tensor, "batch pos d_model"]:
    recorded, block = run.layers[layer.layer], run.weights.layers[layer.layer]
    active, features = recorded.active, block.mlp
    y = block.mlp_norm.apply(stream, recorded.mlp_scale)
    is_feature = knocked.node < len(active)
    features_out = knocked.node[is_feature]
    touched = kept[: len(active)].clone()
    touched[features_out] = True
    written = active.combine(features.write, active.activation * ~touched).repeat(len(y), 1, 1)
    moving = touched.nonzero(as_tuple=True)[0]
    pos, index = active.pos[moving], active.index[moving]
    pre = (y[:, pos] * features.read[index]).sum(-1) + features.read_bias[index]
    live = torch.where(kept[moving], active.gate[moving] * pre, active.activation[moving])
    live[knocked.batch[is_feature], torch.searchsorted(moving, features_out)] = 0
    written.index_add_(1, pos, live[..., None] * features.write[index])
    if features.skip is not None:
        around = y @ features.skip.T
        around[knocked.batch[~is_feature], knocked.node[~is_feature] - len(active)] = 0
        written = written + around
    return written + features.write_bias


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
        {_stage(term) for term in target.terms},
    )
    values = run.logits.new_zeros(len(removals))
    for term in target.terms:
        values += term.weight * _measured(run, term, streams[_stage(term)][:, term.pos])
    return values


def _subtractions(
    run: Run, removals: Sequence[Removal]
) -> dict[tuple[int, str], Float[Tensor, "batch pos d_model"]]:
    additions: dict[tuple[int, str], Tensor] = {}
    sublayers = {(layer.layer, layer.name): layer for layer in held_sublayers(run)}
    shape = (len(removals), *run.token_writes.shape)
    for row, removal in enumerate(removals):
        place = (removal.layer, removal.sublayer)
        if removal.kind in SOURCES:
            place = (-1, "")
            vector = _source_vector(run, removal)
        elif removal.kind == "error":
            vector = sublayers[place].error[removal.pos]
        else:
            number = number_of(sublayers[place], removal)
            vector = sublayers[place].writes(torch.tensor([number], device=run.logits.device))[0]
        if place not in additions:
            additions[place] = run.token_writes.new_zeros(shape)
        additions[place][row, removal.pos] -= vector
    return additions


def _stage(term: Term) -> int:
    """The stage whose residual stream a term is measured on, with the real norm on top."""
    return 2 * term.layer + (term.kind == "feature")


def _measured(
    run: Run, term: Term, stream: Float[Tensor, "batch d_model"]
) -> Float[Tensor, " batch"]:
    weights = run.weights
    if term.vector is not None:
        return stream @ term.vector
    norm = weights.final_norm if "logit" in term.kind else weights.layers[term.layer].mlp_norm
    y = norm.apply(stream, norm.scale(stream))
    if term.kind == "feature":
        return weights.layers[term.layer].mlp.pre_activation(y, term.index)
    row, bias = weights.unembedding[term.index], weights.unembedding_bias
    constant = 0.0 if bias is None else bias[term.index]
    if term.kind == "centered_logit":
        row = row - weights.mean_unembedding
        constant = constant - (0.0 if bias is None else bias.mean())
    return y @ row + constant
