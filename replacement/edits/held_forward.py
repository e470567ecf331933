"""A forward pass through one held sublayer, for a batch of edited residual streams.

Scales, patterns and gates are those of the run. Kept nodes react linearly, the others write what
they wrote in the run, and each row of the batch has changes of its own. Written without any code of
the backward sweep, so that the two check each other.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.edits.changes import Change, PatternChange
from replacement.held import Sublayer
from replacement.layers import Active, FeatureLayer, HalvedActive, HalvedNeurons, Lorsa
from replacement.run import Run


class Edited(NamedTuple):
    """The changes of one sublayer: which row of the batch changes which node, and to what."""

    batch: Int[Tensor, " change"]
    node: Int[Tensor, " change"]
    """Number among the nodes of the run."""
    factor: Float[Tensor, " change"]
    value: Float[Tensor, "change *width"]
    idle: Change | None
    """Features that were not active in the run."""
    skip: Change | None
    pattern: PatternChange | None


def held_forward(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    edited: Edited,
) -> Float[Tensor, "batch pos target d_model"]:
    """Return what a sublayer writes on edited streams, to its own output and later ones.

    Its write bias is in the first, its error in none; `joined` is what the stream gets of it.
    """
    write = _of_mlp if layer.name == "mlp" else _of_attention
    if layer.replaces:
        write = _of_stream
    return write(run, layer, stream, kept, edited).unflatten(-1, (-1, stream.shape[-1]))


def joined(
    run: Run, layer: Sublayer, written: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """Return what is added to the stream: through the norm after the sublayer, if one is there."""
    if layer.replaces:
        return written
    block, recorded = run.weights.layers[layer.layer], run.layers[layer.layer]
    post, scale = block.attention_writes_through, recorded.attention.post_scale
    if layer.name == "mlp":
        post, scale = block.mlp_writes_through, recorded.mlp.post_scale
    return written if post is None or scale is None else post.apply(written, scale)


def changed(
    what: Float[Tensor, "*batch pos d_model"], change: Change | None, n_rows: int
) -> Float[Tensor, "batch pos d_model"]:
    """Return a vector at every position, in a batch of which some rows are changed."""
    what = what.expand(n_rows, *what.shape[-2:]).clone()
    if change is not None:
        where = (change.row, change.pos)
        what[where] = change.factor[:, None] * what[where] + change.value
    return what


def _of_attention(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    edited: Edited,
) -> Float[Tensor, "batch pos d_model"]:
    block, recorded = run.weights.layers[layer.layer], run.layers[layer.layer].attention
    y, pattern = block.attention_norm.apply(stream, recorded.scale), recorded.pattern
    if edited.pattern is not None:
        pattern = edited.pattern.applied(pattern, len(stream))
    if isinstance(block.attention, Lorsa):
        assert recorded.active is not None
        active, moving = recorded.active, _moving(kept, edited)
        pre = _lorsa_pre_activations(block.attention, pattern, y, active, moving)
        return _written(block.attention, active, active.gate[moving] * pre, moving, kept, edited)
    heads = block.heads
    mixed = heads.mix(pattern, y)
    if block.attention is not None:
        assert recorded.active is not None
        return _of_features(block.attention, heads.write(mixed), recorded.active, kept, edited)
    assert recorded.mixed is not None
    mixed = torch.where(kept.view(*recorded.mixed.shape[:2], 1), mixed, recorded.mixed)
    where = (edited.batch, edited.node // heads.n_heads, edited.node % heads.n_heads)
    mixed[where] = edited.factor[:, None] * mixed[where] + edited.value
    return heads.write(mixed)


def _of_mlp(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    edited: Edited,
) -> Float[Tensor, "batch pos target_times_d_model"]:
    block, recorded = run.weights.layers[layer.layer], run.layers[layer.layer].mlp
    active, features = recorded.active, block.mlp
    y = block.mlp_reads_through.apply(stream, recorded.scale)
    written = _of_features(features, y, active, kept[: len(active)], edited)
    if features.skip is None:
        return written
    around = changed(y @ features.skip.T, edited.skip, len(y))
    written[..., : around.shape[-1]] += around
    return written


def _of_stream(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    edited: Edited,
) -> Float[Tensor, "batch pos d_model"]:
    sae, active = run.weights.streams[layer.reads_at], run.streams[layer.reads_at].active
    return _of_features(sae, stream, active, kept, edited)


def _of_features(
    features: FeatureLayer,
    y: Float[Tensor, "batch pos d_model"],
    active: Active,
    kept: Bool[Tensor, " node"],
    edited: Edited,
) -> Float[Tensor, "batch pos target_times_d_model"]:
    """What features write that read a position alone, gates held."""
    moving = _moving(kept, edited)
    pos, index = active.pos[moving], active.index[moving]
    pre = (y[:, pos] * features.read[index]).sum(-1) + features.read_bias[index]
    live = active.gate[moving] * pre
    if isinstance(active, HalvedActive) and isinstance(features, HalvedNeurons):
        other = (y[:, pos] * features.gate_read[index]).sum(-1) + features.gate_bias[index]
        live = live + active.other_gate[moving] * other
    return _written(features, active, live, moving, kept, edited)


def _moving(kept: Bool[Tensor, " node"], edited: Edited) -> Int[Tensor, " moving"]:
    """The nodes whose activation is not that of the run in every row of the batch."""
    touched = kept.clone()
    touched[edited.node] = True
    return touched.nonzero(as_tuple=True)[0]


def _lorsa_pre_activations(
    lorsa: Lorsa,
    pattern: Float[Tensor, "*batch head query key"],
    y: Float[Tensor, "batch pos d_model"],
    active: Active,
    moving: Int[Tensor, " moving"],
) -> Float[Tensor, "batch moving"]:
    """Mixed head by head, position by position: slow, and nothing like the sweep."""
    pos, index = active.pos[moving], active.index[moving]
    values = y @ lorsa.read[index].T  # batch key moving
    weights = pattern[..., index // lorsa.group, pos, :]  # (batch) moving key
    return (values * weights.transpose(-1, -2)).sum(1) + lorsa.read_bias[index]


def _written(
    features: FeatureLayer,
    active: Active,
    live: Float[Tensor, "batch moving"],
    moving: Int[Tensor, " moving"],
    kept: Bool[Tensor, " node"],
    edited: Edited,
) -> Float[Tensor, "batch pos target_times_d_model"]:
    """What all features write, given the live activations of those that move."""
    still = torch.ones_like(active.activation, dtype=torch.bool)
    still[moving] = False
    written = active.combine(features.write, active.activation * still).repeat(len(live), 1, 1)
    live = torch.where(kept[moving], live, active.activation[moving])
    where = (edited.batch, torch.searchsorted(moving, edited.node))
    live[where] = edited.factor * live[where] + edited.value
    rows = features.write[active.index[moving]]
    written.index_add_(1, active.pos[moving], live[..., None] * rows)
    if edited.idle is not None:
        idle = edited.idle
        extra = idle.value[:, None] * features.write[idle.index]
        written.index_put_((idle.row, idle.pos), extra, accumulate=True)
    written[..., : len(features.write_bias)] += features.write_bias
    return written
