"""Flow edges: what every kept node passed to every other, for one target (DESIGN 2.4).

`flow[n, s] = u_n · gate_n · (the part of n's read that s wrote)`. Heads are nodes, so every edge
runs along the residual stream of one position, and all flows into one sublayer are one product
(readers × d_model)(d_model × writers) times a table of factors (pattern entry / norm scale), over
the writers of earlier sublayers. Inflow adds up to the reader's attribution: identity 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.sweep import Sweep
from replacement.held import Reader, Reads, Sublayer
from replacement.run import Run
from replacement.secant import RunPair
from replacement.target import Seed, Target

RESTS: tuple[str, ...] = ("bias", "error", "pruned", "switch")


@dataclass(frozen=True, eq=False)
class Flow:
    """Edges between kept nodes, and what else flows into each of them.

    Nodes are numbered: tokens, positions, kept nodes sublayer by sublayer, the target last.
    """

    source: Int[Tensor, " edge"]
    target: Int[Tensor, " edge"]
    amount: Float[Tensor, " edge"]
    via: np.ndarray
    """What carries an edge: "residual", or in a contrast q, k, v or mlp."""
    in_bias: Float[Tensor, " node"]
    in_error: Float[Tensor, " node"]
    in_pruned: Float[Tensor, " node"]
    in_switch: Float[Tensor, " node"]


class _Stream(NamedTuple):
    """The residual stream at one stage, split by what wrote it."""

    room: Float[Tensor, "every_writer d_model"]
    """Tokens, positions and kept nodes in node order; zeros for those that have not written yet."""
    pos: Int[Tensor, " writer"]
    """Of those that have."""
    rest: Float[Tensor, "rest pos d_model"]
    """Of biases, errors and pruned nodes, in the order of `RESTS`."""

    @property
    def vectors(self) -> Float[Tensor, "writer d_model"]:
        return self.room[: len(self.pos)]


class _Writers(NamedTuple):
    """Kept nodes of a sublayer, and their rows in the stream."""

    layer: Sublayer
    nodes: Int[Tensor, " kept"]
    rows: slice


class _Inflow(NamedTuple):
    """What flows into the readers of one sublayer, or into the target."""

    edges: dict[str, Float[Tensor, "reader writer"]]
    """By what carries them."""
    rest: dict[str, Float[Tensor, " reader"]]
    """From bias, error, pruned and switch."""


class _Block(NamedTuple):
    """The same with edges as (source, target, amount), zeros left out."""

    source: Int[Tensor, " edge"]
    target: Int[Tensor, " edge"]
    amount: Float[Tensor, " edge"]
    via: dict[str, int]
    """How many edges each carries, in their order."""
    rest: dict[str, Float[Tensor, " reader"]]


def flow_edges(
    target: Target,
    sublayers: Sequence[Sublayer],
    swept: Sweep,
    progress: Callable[[Sequence[Sublayer]], Sequence[Sublayer]] = lambda rows: rows,
) -> Flow:
    """Return the flow edges among the nodes a sweep kept, zero flows left out."""
    run = target.run
    blocks: list[_Block] = []
    chosen = swept.kept()
    stream = _entering(run, sum(map(len, chosen)))
    streams = {0: stream}
    writers: list[_Writers] = []
    count = 2 * len(run.tokens)
    target_inflow = _read([], stream)
    kept = zip(chosen, swept.gradients, strict=True)
    for layer, (nodes, gradients) in zip(progress(sublayers), kept, strict=True):
        seeds = target.seeds_at(layer.before, front=layer.replaces)
        target_inflow = _add(target_inflow, _read(seeds, stream))
        reads = layer.reads(gradients, nodes)
        # parallel blocks: the MLP reads the stream that attention read, so it is kept a while
        inflow = _inflow(reads, streams[layer.reads_at], layer.constants_are)
        blocks.append(_sparse(inflow, first=count))
        writers.append(_Writers(layer, nodes, slice(count, count + len(nodes))))
        count += len(nodes)
        before, stream = stream, _after(stream, layer, writers)
        streams = {layer.before: before, layer.writes_at: stream}
    seeds = target.seeds_at(sublayers[-1].writes_at)
    target_inflow = _add(target_inflow, _read(seeds, stream))
    target_inflow.rest["bias"] += target.bias
    blocks.append(_sparse(target_inflow, first=count))
    return _assemble(blocks, n_sources=2 * len(run.tokens))


def _entering(run: Run | RunPair, n_kept: int) -> _Stream:
    places = torch.arange(len(run.tokens), device=run.token_writes.device)
    written = [run.token_writes, run.position_writes]
    room = torch.cat([*written, run.token_writes.new_zeros(n_kept, run.token_writes.shape[1])])
    nothing = torch.zeros_like(run.token_writes).expand(len(RESTS) - 1, -1, -1)
    return _Stream(room, places.repeat(2), nothing)


def _after(stream: _Stream, layer: Sublayer, writers: Sequence[_Writers]) -> _Stream:
    """The stream once `layer` has written: kept nodes as rows, the rest of its output as sums.

    `writers`: its own nodes last; earlier ones where they write across layers.
    """
    own = writers[-1]
    pos = layer.positions()[own.nodes]
    if layer.replaces:  # nothing is left of what was written before
        room, rest, writers = torch.zeros_like(stream.room), torch.zeros_like(stream.rest), [own]
    else:
        room, rest = stream.room, stream.rest.clone()
        writers = [one for one in writers if layer.writes_at in one.layer.write_stages]
        if len(writers) > 1:  # the stream before is still read, and earlier writers add to theirs
            room = room.clone()
    bias, error, pruned = rest
    if layer.write_bias is not None:
        bias += layer.write_bias
        pruned -= layer.write_bias
    error += layer.error
    pruned += layer.output
    for one in writers:
        written = one.layer.writes(one.nodes, layer.writes_at)
        room[one.rows] += written
        pruned.index_add_(0, one.layer.positions()[one.nodes], written, alpha=-1)
    return _Stream(room, torch.cat([stream.pos, pos]), rest)


def _inflow(reads: Reader, stream: _Stream, constants_are: str) -> _Inflow:
    edges = reads.products(stream.vectors, stream.pos)
    count, n_pos, _ = stream.rest.shape
    every = torch.arange(n_pos, device=stream.pos.device).repeat(count)
    found = torch.stack([*reads.products(stream.rest.flatten(0, 1), every).values()]).sum(0)
    rest = dict(zip(RESTS, found.unflatten(1, (count, n_pos)).sum(-1).T, strict=False))
    rest["switch"] = torch.zeros_like(reads.constant)
    rest[constants_are] = rest[constants_are] + reads.constant
    return _Inflow(edges, rest)


def _read(seeds: Sequence[Seed], stream: _Stream) -> _Inflow:
    """What the target reads of the stream at one stage (a logit reads at the last one only)."""
    zero = stream.room.new_zeros
    if not seeds:
        none = {name: zero(1) for name in RESTS}
        return _Inflow({"residual": zero(1, len(stream.pos))}, none)
    factor = zero(len(seeds), 1, stream.rest.shape[1])
    factor[range(len(seeds)), 0, [seed.pos for seed in seeds]] = 1
    reads = Reads(torch.stack([seed.vector for seed in seeds])[:, None], factor, zero(len(seeds)))
    found = _inflow(reads, stream, "bias")
    return _Inflow(*({k: v.sum(0, keepdim=True) for k, v in part.items()} for part in found))


def _add(old: _Inflow, new: _Inflow) -> _Inflow:
    """Sum of two inflows of the target; the newer one may have further writers."""
    edges = new.edges["residual"].clone()
    edges[:, : old.edges["residual"].shape[1]] += old.edges["residual"]
    return _Inflow({"residual": edges}, {name: old.rest[name] + new.rest[name] for name in RESTS})


def _sparse(inflow: _Inflow, *, first: int) -> _Block:
    """The inflow of readers numbered from `first`; the dense table can go."""
    found = {via: edges.nonzero(as_tuple=True) for via, edges in inflow.edges.items()}
    return _Block(
        torch.cat([source for _, source in found.values()]),
        torch.cat([first + row for row, _ in found.values()]),
        torch.cat([inflow.edges[via][places] for via, places in found.items()]),
        {via: len(row) for via, (row, _) in found.items()},
        inflow.rest,
    )


def _assemble(blocks: list[_Block], *, n_sources: int) -> Flow:
    none = blocks[0].amount.new_zeros(n_sources)
    rest = {name: torch.cat([none, *(block.rest[name] for block in blocks)]) for name in RESTS}
    carried = [part for block in blocks for part in block.via.items()]
    names, counts = zip(*carried, strict=True)
    return Flow(
        torch.cat([block.source for block in blocks]),
        torch.cat([block.target for block in blocks]),
        torch.cat([block.amount for block in blocks]),
        np.repeat(np.array(names, dtype=object), counts),
        **{f"in_{name}": amount for name, amount in rest.items()},
    )
