"""What a trace will cost, said before it starts: nodes, passes and bytes."""

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.benchmark import Timer

from replacement.held import Sublayer
from replacement.notebook import lines_as_html
from replacement.run import Run
from replacement.secant import RunPair
from replacement.target import Target

DENSE_MAX_NODES = 500
"""How many nodes are kept unless told otherwise where every neuron is active everywhere."""
EDGE_BYTES = 192
"""One edge at its dearest: tensors, columns of the edge table, and the table's own checks."""


@dataclass(frozen=True, repr=False)
class Plan:
    """What tracing one target takes."""

    target: str
    n_tokens: int
    nodes: dict[str, int]
    """Active nodes by kind: features (or neurons), heads, skips."""
    max_nodes: int | None
    """At most so many are kept; None: as many as reach the threshold."""
    passes: dict[str, int]
    """Forward passes already made by the run (or both), backward sweeps and flow passes to come."""
    edges: int
    """Upper bound of flow edges."""
    bytes: int
    """Upper bound of what the trace allocates beyond the run."""
    free_bytes: int
    device: str

    def __repr__(self) -> str:
        nodes = ", ".join(f"{count:,} {kind}s" for kind, count in self.nodes.items())
        kept = "as many as reach the threshold"
        if self.max_nodes is not None:
            kept = f"at most {self.max_nodes:,}"
        passes = ", ".join(
            f"{count} {name} pass{'es' if count > 1 else ''}" for name, count in self.passes.items()
        )
        return "\n".join(
            [
                f"nodes    {nodes} on {self.n_tokens} tokens; kept: {kept}",
                f"passes   {passes}",
                f"memory   at most {size_text(self.bytes)} for {self.edges:,} edges; "
                f"{size_text(self.free_bytes)} free on {self.device}",
            ]
        )

    def _repr_html_(self) -> str:
        return lines_as_html(repr(self))


@dataclass(frozen=True, repr=False)
class EffectsPlan:
    """What direct effects take (`attribution.direct_effects.plan_effects`)."""

    rows: int
    effects: int
    """Entries of all blocks."""
    bytes: int
    """What the blocks take."""
    batch_rows: int
    """So many vectors are carried at once."""
    batches: int
    working_bytes: int
    """About what is taken besides, in memory."""
    on_disk: bool
    free_bytes: int
    place: str
    """Where the blocks go: a device, or a folder."""
    seconds: float | None = None
    """A lower bound: the operations at the rate of this machine's matrix products."""

    def __repr__(self) -> str:
        seconds = "" if self.seconds is None else f"; at least {self.seconds:.2g} s"
        return "\n".join(
            [
                f"effects  {self.effects:,} on {self.rows:,} targets, in {self.batches:,} batches"
                f"{seconds}",
                f"memory   {size_text(self.bytes)} for the effects; {size_text(self.free_bytes)} "
                f"free on {self.place}; at work {size_text(self.working_bytes)}",
            ]
        )


def plan(target: Target, max_nodes: int | None = None) -> Plan:
    """Return what `trace(target, max_nodes=max_nodes)` costs at most, without doing any of it.

    How many nodes a threshold leaves is known only after the sweep, so the bounds are for
    `max_nodes`, or for all active nodes.

    >>> from circuits import load, plan
    >>> run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    >>> plan(run.logit(" Mary")).passes
    {'forward': 1, 'sweep': 2, 'flow': 1}
    """
    check_request(target, max_nodes)
    run, sublayers = target.run, target.run.sublayers
    nodes: dict[str, int] = {}
    for layer in sublayers:
        skips = 0 if layer.always is None else int(layer.always.sum())
        nodes[layer.node_kind] = nodes.get(layer.node_kind, 0) + layer.n_nodes - skips
        if skips:
            nodes["skip"] = nodes.get("skip", 0) + skips
    limit, total = node_limit(run, max_nodes), sum(nodes.values())
    skips = nodes.get("skip", 0)
    if limit is None or limit >= total - skips:
        kept, edges = total, edges_among(sublayers, [layer.positions() for layer in sublayers])
    else:
        kept = limit + skips
        edges = kept * (kept + 1) // 2 + (kept + 1) * 2 * len(run.tokens)
        edges *= 3 if any(layer.looks for layer in sublayers) else 1
    return Plan(
        target=target.label,
        n_tokens=len(run.tokens),
        nodes=nodes,
        max_nodes=limit,
        passes={
            "forward": 2 if isinstance(run, RunPair) else 1,
            "sweep": 2 if kept == total else 3,
            "flow": 1,
        },
        edges=edges,
        bytes=_bytes(run, kept, edges),
        free_bytes=free_bytes(run.token_writes.device),
        device=str(run.token_writes.device),
    )


def check_request(target: Any, max_nodes: Any) -> None:
    """Raise TypeError for what is no target, ValueError for a bound that makes no sense."""
    if not isinstance(target, Target):
        raise TypeError(
            f"a target is what can be explained, got {type(target).__name__}: {target!r:.60}. Make "
            'one from run = model.run(prompt): run.logit(" Mary"), run.feature(...), '
            "run.attention_score(...) or run.direction(...)."
        )
    check_bound(max_nodes)


def check_bound(max_nodes: Any) -> None:
    """Raise ValueError for a bound on nodes that makes no sense."""
    is_number = isinstance(max_nodes, int) and not isinstance(max_nodes, bool)
    if max_nodes is not None and (not is_number or max_nodes < 1):
        raise ValueError(f"max_nodes={max_nodes!r}: a whole number from 1 up, or None.")


def node_limit(run: Run | RunPair, max_nodes: int | None) -> int | None:
    """Return how many nodes may be kept: what was asked, or a bound for neurons, all active."""
    if max_nodes is None and any(layer.dense for layer in run.sublayers):
        return DENSE_MAX_NODES
    return max_nodes


def edges_among(
    sublayers: Sequence[Sublayer], places: Sequence[Int[Tensor, " _"]], *, direct: bool = False
) -> int:
    """Return how many edges there can be among nodes, given their positions by sublayer.

    Flow edges stay at their position except into heads; direct ones reach all before it.
    """
    n_pos = sublayers[0].error.shape[0]
    writers = torch.full((n_pos,), 2, dtype=torch.long)  # the token and the position embedding
    edges = 0
    for layer, pos in zip(sublayers, places, strict=True):
        readers = torch.bincount(pos.cpu(), minlength=n_pos)
        reached = writers if layer.local and not direct else writers.cumsum(0)
        edges += int(readers @ reached)
        if layer.looks:  # by values and by keys from anywhere, by queries from where it stands
            edges += int(readers @ (reached + writers))
        writers = writers + readers
    return edges + int(writers.sum())


def refuse_too_many(
    sublayers: Sequence[Sublayer],
    kept: Sequence[Int[Tensor, " _"]],
    run: Run | RunPair,
    *,
    direct: bool = False,
) -> None:
    """Raise MemoryError, before anything is allocated, if the edges among `kept` do not fit."""
    places = [layer.positions()[nodes] for layer, nodes in zip(sublayers, kept, strict=True)]
    count, edges = sum(map(len, kept)), edges_among(sublayers, places, direct=direct)
    needed, free = _bytes(run, count, edges), free_bytes(run.token_writes.device)
    if needed > free:
        fixed = _bytes(run, 0, 0)
        room = max(free - fixed, 0) / (needed - fixed)
        fits = max(1, int(0.9 * count * min(room, room**0.5)))  # between linear and quadratic
        raise MemoryError(
            f"trace(...): {count:,} nodes are kept, up to {edges:,} edges: about "
            f"{size_text(needed)}, {size_text(free)} are free. Fits: max_nodes={fits}, or a higher "
            "threshold."
        )


def _bytes(run: Run | RunPair, kept: int, edges: int) -> int:
    """Bytes of a trace that keeps so many nodes: gradients, vectors, one product, the edges."""
    stream = run.token_writes
    rows = kept + 2 * stream.shape[0]
    gradients = (len(run.sublayers) + 1) * stream.numel()
    vectors = 2 * rows * stream.shape[1]
    widest = max(layer.n_nodes for layer in run.sublayers)
    ways = 3 if any(layer.looks for layer in run.sublayers) else 1
    product = (2 * ways + 1) * min(kept, widest) * rows
    return (gradients + vectors + product) * stream.element_size() + edges * EDGE_BYTES


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def disk_bytes(folder: Path) -> int:
    """Return what is free on the disk of a folder, which need not be there yet."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def matmul_rate(like: Tensor) -> float:
    """Return the operations a second of matrix products as wide as `like`, measured in 0.1 s."""
    width = like.shape[-1]
    timer = Timer(
        "torch.mm(rows, weight, out=into)",
        globals={
            "torch": torch,
            "rows": like.new_ones(1024, width),
            "weight": like.new_ones(width, width),
            "into": like.new_empty(1024, width),
        },
        num_threads=torch.get_num_threads(),
    )
    return 2 * 1024 * width**2 / timer.blocked_autorange(min_run_time=0.05).median


UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def bytes_of(call: str, memory: Any) -> int:
    """Return a budget as a number of bytes; ValueError, naming the call, for what is none.

    >>> bytes_of("direct_effects", "1.5 GB")
    1500000000
    """
    is_number = isinstance(memory, int | float) and not isinstance(memory, bool)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?B)\s*", str(memory))
    count = memory if is_number else float(found[1]) * UNITS[found[2]] if found else 0
    if not 1 <= count < math.inf:
        raise ValueError(
            f'{call}(memory={memory!r}): a number of bytes, or text such as "4 GB" (units: '
            f"{', '.join(UNITS)})."
        )
    return int(count)


def size_text(count: int) -> str:
    """Return a number of bytes as people write it.

    >>> size_text(3_200_000)
    '3.2 MB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
