"""What nodes were in a recorded run, and whether there is such a node at all."""

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.edits.node import SOURCES, Node
from replacement.held import NAMES
from replacement.layer_run import AttentionRun, MLPRun, StreamRun
from replacement.run import Run
from replacement.weights import ModelWeights

KINDS = (*SOURCES, "feature", "neuron", "lorsa", "head", "skip", "error")


def part_of(run: Run, layer: int, sublayer: str) -> AttentionRun | MLPRun | StreamRun:
    """Return what was recorded of a sublayer."""
    if sublayer in NAMES:
        return run.streams[2 * layer + NAMES.index(sublayer)]
    return run.layers[layer].attention if sublayer == "attn" else run.layers[layer].mlp


def recorded(run: Run, node: Node) -> Float[Tensor, "*width"]:
    """Return what a node was in a run: an activation, or a vector as `Set` takes it."""
    pos = node.pos
    assert pos is not None
    if node.kind in SOURCES:
        return (run.token_writes if node.kind == "token" else run.position_writes)[pos]
    part = part_of(run, node.layer, node.sublayer)
    if node.kind == "error":
        return raw_error(part)[pos]
    if node.kind == "skip":
        assert isinstance(part, MLPRun) and part.skip_output is not None
        return part.skip_output[pos]
    if node.kind == "head":
        assert isinstance(part, AttentionRun) and part.mixed is not None
        return part.mixed[pos, node.index]
    assert part.active is not None
    start, end = part.active.offsets[pos : pos + 2].tolist()
    found = (part.active.index[start:end] == node.index).nonzero()
    zero = part.active.activation.new_zeros(())
    return part.active.activation[start + int(found[0])] if len(found) else zero


def raw_error(part: AttentionRun | MLPRun | StreamRun) -> Float[Tensor, "pos d_model"]:
    """Return what a layer misses, in front of a norm after the sublayer where it writes there."""
    if isinstance(part, StreamRun) or part.raw is None:
        return part.error
    assert part.raw_output is not None
    return part.raw - part.raw_output


def width_of(weights: ModelWeights, node: Node) -> tuple[int, ...]:
    """Return the shape of what a node is; ValueError, saying what fits, if there is no such node.

    Its position is not looked at.
    """
    kind, layer, sublayer, index = node.kind, node.layer, node.sublayer, node.index
    vector = (weights.d_model,)
    if kind in SOURCES:
        return vector
    if kind not in KINDS:
        raise ValueError(f"{node}: kinds that can be edited are {', '.join(KINDS)}.")
    last = weights.n_layers - (sublayer != NAMES[0])
    if not 0 <= layer <= last:
        raise ValueError(f"{node}: layers are numbered 0 to {last} here.")
    count, own = _nodes_there(weights, layer, sublayer)
    if kind == "error":
        if not own:
            raise ValueError(
                f"{node}: errors are of attention, MLPs and replaced streams; there is none here."
            )
        return vector
    if kind == "skip" and sublayer == "mlp":
        if weights.layers[layer].mlp.skip is None:
            raise ValueError(f"{node}: the transcoder of this layer has no skip.")
        return vector
    if kind != own:
        there = f"{own}s numbered 0 to {count - 1}" if own else "no nodes"
        raise ValueError(f"{node}: there are {there} in sublayer {sublayer!r} of layer {layer}.")
    if not 0 <= index < count:
        raise ValueError(f"{node}: layer {layer} has {count} {kind}s, numbered from 0.")
    if kind == "head":
        return (weights.layers[layer].heads.output.shape[0] // count,)
    return ()


def _nodes_there(weights: ModelWeights, layer: int, sublayer: str) -> tuple[int, str]:
    """How many nodes a sublayer has at a position, and their kind."""
    if sublayer in NAMES:
        sae = weights.streams.get(2 * layer + NAMES.index(sublayer))
        return (0, "") if sae is None else (sae.n_features, sae.kind)
    if sublayer not in ("attn", "mlp"):
        return 0, ""
    block = weights.layers[layer]
    reading = block.mlp if sublayer == "mlp" else block.attention
    return (block.heads.n_heads, "head") if reading is None else (reading.n_features, reading.kind)


def mean_recorded(runs: list[Run], node: Node) -> Float[Tensor, "*width"]:
    """Return the mean of what a node was, over runs; over all positions where it has none."""
    everywhere = [
        recorded(run, node if node.pos is not None else node.placed(pos))
        for run in runs
        for pos in (range(1) if node.pos is not None else range(len(run.tokens)))
    ]
    return torch.stack(everywhere).mean(0)
