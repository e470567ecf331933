"""A forward pass through one held sublayer, for a batch of edited residual streams.

Scales, patterns and gates are those of the run. Kept nodes react linearly, the others write what
they wrote in the run, and each row of the batch loses the node knocked out in it. Written without
any code of the backward sweep, so that the two check each other.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.held import Sublayer
from replacement.layers import Active, FeatureLayer, HalvedActive, HalvedNeurons, Lorsa
from replacement.run import Run


class Knocked(NamedTuple):
    """The knock-outs of one sublayer: which row of the batch loses which node."""

    batch: Int[Tensor, " removed"]
    node: Int[Tensor, " removed"]


def held_forward(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    knocked: Knocked,
) -> Float[Tensor, "batch pos target d_model"]:
    """Return what a sublayer writes on edited streams, to its own output and later ones.

    Its write bias is in the first, its error in none; `joined` is what the stream gets of it.
    """
    write = _of_mlp if layer.name == "mlp" else _of_attention
    if layer.replaces:
        write = _of_stream
    return write(run, layer, stream, kept, knocked).unflatten(-1, (-1, stream.shape[-1]))


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


def _of_attention(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    knocked: Knocked,
) -> Float[Tensor, "batch pos d_model"]:
    block, recorded = run.weights.layers[layer.layer], run.layers[layer.layer].attention
    y = block.attention_norm.apply(stream, recorded.scale)
    if isinstance(block.attention, Lorsa):
        assert recorded.active is not None
        active, moving = recorded.active, _moving(kept, knocked)
        live = active.gate[moving] * _lorsa_pre_activations(
            block.attention, recorded.pattern, y, active, moving
        )
        return _of_features(block.attention, active, live, moving, kept, knocked)
    heads = block.heads
    mixed = heads.mix(recorded.pattern, y)
    if block.attention is None:
        assert recorded.mixed is not None
        mixed = torch.where(kept.view(*recorded.mixed.shape[:2], 1), mixed, recorded.mixed)
        mixed[knocked.batch, knocked.node // heads.n_heads, knocked.node % heads.n_heads] = 0
        return heads.write(mixed)
    assert recorded.active is not None
    moving = _moving(kept, knocked)
    live = _live(block.attention, heads.write(mixed), recorded.active, moving)
    return _of_features(block.attention, recorded.active, live, moving, kept, knocked)


def _of_mlp(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    knocked: Knocked,
) -> Float[Tensor, "batch pos target_times_d_model"]:
    block, recorded = run.weights.layers[layer.layer], run.layers[layer.layer].mlp
    active, features = recorded.active, block.mlp
    y = block.mlp_reads_through.apply(stream, recorded.scale)
    is_feature = knocked.node < len(active)
    of_features = Knocked(knocked.batch[is_feature], knocked.node[is_feature])
    kept = kept[: len(active)]
    moving = _moving(kept, of_features)
    live = _live(features, y, active, moving)
    written = _of_features(features, active, live, moving, kept, of_features)
    if features.skip is None:
        return written
    around = y @ features.skip.T
    around[knocked.batch[~is_feature], knocked.node[~is_feature] - len(active)] = 0
    written[..., : around.shape[-1]] += around
    return written


def _of_stream(
    run: Run,
    layer: Sublayer,
    stream: Float[Tensor, "batch pos d_model"],
    kept: Bool[Tensor, " node"],
    knocked: Knocked,
) -> Float[Tensor, "batch pos d_model"]:
    sae, active = run.weights.streams[layer.reads_at], run.streams[layer.reads_at].active
    moving = _moving(kept, knocked)
    live = _live(sae, stream, active, moving)
    return _of_features(sae, active, live, moving, kept, knocked)


def _moving(kept: Bool[Tensor, " node"], knocked: Knocked) -> Int[Tensor, " moving"]:
    """The nodes whose activation is not that of the run in every row of the batch."""
    touched = kept.clone()
    touched[knocked.node] = True
    return touched.nonzero(as_tuple=True)[0]


def _live(
    features: FeatureLayer,
    y: Float[Tensor, "batch pos d_model"],
    active: Active,
    moving: Int[Tensor, " moving"],
) -> Float[Tensor, "batch moving"]:
    """Activations on edited inputs, gates held."""
    pos, index = active.pos[moving], active.index[moving]
    pre = (y[:, pos] * features.read[index]).sum(-1) + features.read_bias[index]
    live = active.gate[moving] * pre
    if isinstance(active, HalvedActive) and isinstance(features, HalvedNeurons):
        other = (y[:, pos] * features.gate_read[index]).sum(-1) + features.gate_bias[index]
        live = live + active.other_gate[moving] * other
    return live


def _lorsa_pre_activations(
    lorsa: Lorsa,
    pattern: Float[Tensor, "head query key"],
    y: Float[Tensor, "batch pos d_model"],
    active: Active,
    moving: Int[Tensor, " moving"],
) -> Float[Tensor, "batch moving"]:
    """Mixed head by head, position by position: slow, and nothing like the sweep."""
    pos, index = active.pos[moving], active.index[moving]
    values = y @ lorsa.read[index].T  # batch key moving
    weights = pattern[index // lorsa.group, pos]  # moving key
    return (values * weights.T).sum(1) + lorsa.read_bias[index]


def _of_features(
    features: FeatureLayer,
    active: Active,
    live: Float[Tensor, "batch moving"],
    moving: Int[Tensor, " moving"],
    kept: Bool[Tensor, " node"],
    knocked: Knocked,
) -> Float[Tensor, "batch pos target_times_d_model"]:
    """What all features write, given the live activations of those that move."""
    still = torch.ones_like(active.activation, dtype=torch.bool)
    still[moving] = False
    written = active.combine(features.write, active.activation * still).repeat(len(live), 1, 1)
    live = torch.where(kept[moving], live, active.activation[moving])
    live[knocked.batch, torch.searchsorted(moving, knocked.node)] = 0
    rows = features.write[active.index[moving]]
    written.index_add_(1, active.pos[moving], live[..., None] * rows)
    written[..., : len(features.write_bias)] += features.write_bias
    return written
