"""Edited runs with everything held: patterns, norm denominators and gates are those of the run."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from replacement.edits.changes import Change, Changes
from replacement.edits.held_forward import Edited, changed, held_forward, joined
from replacement.edits.recorded import part_of
from replacement.held import Sublayer
from replacement.run import Run
from replacement.target import Target
from replacement.weights import LayerWeights

Keep = Sequence[Bool[Tensor, " _"]]
"""Which nodes react, one mask a sublayer."""


@dataclass(frozen=True, eq=False)
class HeldStreams:
    """The residual stream of a batch of held runs: a stage, and in front of what replaces it."""

    at: Mapping[int, Float[Tensor, "batch pos d_model"]]
    front: Mapping[int, Float[Tensor, "batch pos d_model"]]

    def value(self, target: Target) -> Float[Tensor, " batch"]:
        """Return what a target is in every row: what it reads is linear."""
        any_stream = next(iter({**self.at, **self.front}.values()))
        total = torch.full_like(any_stream[:, 0, 0], target.bias)
        for seed in target.seeds:
            stream = (self.front if seed.front else self.at)[seed.stage]
            total = total + stream[:, seed.pos] @ seed.vector
        return total


def held_streams(
    run: Run, changes: Changes, stages: Set[int], keep: Keep | None = None
) -> HeldStreams:
    """Return the residual stream of a run under changes, at some stages, one row an edited run.

    Nodes outside `keep` keep writing what they wrote in the run; by default all react, linearly.
    """
    stream = _entering(run, changes)
    at, front, kept_at = {0: stream}, {}, dict[int, Tensor]()
    arriving: dict[int, Tensor] = {}
    masks = keep or [
        torch.ones(layer.n_nodes, dtype=torch.bool, device=stream.device) for layer in run.sublayers
    ]
    for layer, kept in zip(run.sublayers, masks, strict=True):
        parts = changes.of(layer.layer, layer.name)
        read = at[layer.reads_at]  # of a parallel block: what attention read
        edited = _edited(layer, parts, changes)
        for stage, part in zip(
            layer.write_stages, held_forward(run, layer, read, kept, edited).unbind(2), strict=True
        ):
            arriving[stage] = arriving[stage] + part if stage in arriving else part
        made = joined(run, layer, arriving.pop(layer.writes_at))
        made = made + _error(run, layer, parts.get("error"), changes.n_rows)
        if layer.replaces:
            front[layer.reads_at], stream = stream, made
        else:
            stream = stream + made
        kept_at |= {stage: one for stage, one in at.items() if stage in stages}
        at = {layer.before: at[layer.before], layer.writes_at: stream}
    kept_at |= {stage: one for stage, one in at.items() if stage in stages}
    return HeldStreams(kept_at, front)


@torch.no_grad()
def held_logits(run: Run, streams: HeldStreams) -> Float[Tensor, "batch pos d_vocab"]:
    """Return the logits of held runs, before any soft-cap, the final norm's denominator held."""
    weights = run.weights
    logits = weights.final_norm.apply(streams.at[2 * weights.n_layers], run.final_scale)
    logits = logits @ weights.unembedding.T
    return logits if weights.unembedding_bias is None else logits + weights.unembedding_bias


def _entering(run: Run, changes: Changes) -> Float[Tensor, "batch pos d_model"]:
    stream = torch.zeros_like(run.token_writes)
    for name, writes in (("token", run.token_writes), ("position", run.position_writes)):
        stream = stream + changed(writes, changes.parts.get((-1, "", name)), changes.n_rows)
    return stream


def _edited(layer: Sublayer, parts: Mapping[str, Change], changes: Changes) -> Edited:
    """The changes of a sublayer, with the nodes that were active told from those that were not."""
    none = torch.zeros(0, dtype=torch.long, device=layer.error.device)
    pattern = changes.patterns.get(layer.layer) if layer.name == "attn" else None
    skip, nodes = parts.get("skip"), parts.get("nodes")
    if nodes is None:
        width = () if layer.node_kind != "head" else (layer.mixed.shape[-1],)  # pyright: ignore
        value = layer.error.new_zeros(0, *width)
        return Edited(none, none, layer.error.new_zeros(0), value, None, skip, pattern)
    numbers = torch.tensor(
        [
            layer.find(layer.node_kind, pos, index)
            for pos, index in zip(nodes.pos.tolist(), nodes.index.tolist(), strict=True)
        ],
        device=none.device,
    )
    active = numbers >= 0
    idle = None if bool(active.all()) else _some(nodes, ~active)
    found = _some(nodes, active)
    return Edited(found.row, numbers[active], found.factor, found.value, idle, skip, pattern)


def _some(change: Change, chosen: Bool[Tensor, " change"]) -> Change:
    return Change(
        change.row[chosen],
        change.pos[chosen],
        change.index[chosen],
        change.factor[chosen],
        change.value[chosen],
    )


def _error(
    run: Run, layer: Sublayer, change: Change | None, n_rows: int
) -> Float[Tensor, "batch pos d_model"]:
    """What a sublayer's error adds to the stream, some of it changed in front of a norm."""
    if change is None:
        return layer.error.expand(n_rows, *layer.error.shape)
    error = layer.error.expand(n_rows, *layer.error.shape).clone()
    value, where = change.value, (change.row, change.pos)
    scale = getattr(part_of(run, layer.layer, layer.name), "post_scale", None)
    post = None if layer.replaces else norm_after(run.weights.layers[layer.layer], layer.name)
    if post is not None and scale is not None:
        value = post.held(value, scale[change.pos])
    error[where] = change.factor[:, None] * error[where] + value
    return error


def norm_after(block: LayerWeights, sublayer: str):
    """Return the norm that a sublayer writes through, None where there is none."""
    return block.attention_writes_through if sublayer == "attn" else block.mlp_writes_through
