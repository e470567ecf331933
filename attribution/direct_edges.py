"""Edges of a traced circuit as numbers: flows, direct effects, or both (DESIGN 4).

"flow": heads are nodes, flows run along the residual stream. "direct": heads and skips are passed
and are no nodes; `effect` is the direct effect and `flow = u · gate · effect`, which is conserved
too. "both": the nodes and flows of the first, and the effects between all nodes that are scalars;
an edge that has no flow of its own has flow 0, one of a head has no effect (NaN).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from attribution.direct_effects import direct_effects
from attribution.flow import Flow
from attribution.sweep import Sweep
from replacement.held import HeldFeatures, Sublayer
from replacement.target import Target

INFLOWS = ("in_bias", "in_error", "in_pruned", "in_switch")
EdgeKind = Literal["flow", "direct", "both"]


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges, and what else goes into nodes: tokens, positions, nodes, the target."""

    source: np.ndarray
    target: np.ndarray
    flow: np.ndarray
    effect: np.ndarray | None
    in_bias: np.ndarray
    in_error: np.ndarray
    in_pruned: np.ndarray
    in_switch: np.ndarray
    via: str | np.ndarray = "residual"


def scalars_of(
    sublayers: Sequence[Sublayer], kept: Sequence[Int[Tensor, " _"]]
) -> list[Int[Tensor, " _"]]:
    """Return those of the kept nodes that direct effects stop at: all but heads and skips."""
    return [
        nodes[nodes < layer.n_active] if isinstance(layer, HeldFeatures) else nodes[:0]
        for layer, nodes in zip(sublayers, kept, strict=True)
    ]


def of_flow(flow: Flow) -> Edges:
    """Return flow edges as they are."""
    names = ("source", "target", "amount", *INFLOWS)
    source, target, amount, *inflow = (getattr(flow, name).cpu().numpy() for name in names)
    return Edges(source, target, amount, None, *inflow, via=flow.via)


def of_effects(target: Target, swept: Sweep) -> Edges:
    """Return direct edges among the scalar nodes a contracted sweep kept, conserved as flows are.

    `in_pruned` is what active nodes that were not kept write into the readers.
    """
    run, sublayers = target.run, target.run.sublayers
    kept = scalars_of(sublayers, swept.kept())
    effects = direct_effects(run, [*kept, target])
    matrix = effects.matrix()
    weights = [
        layer.coefficients(gradients, nodes)
        for layer, nodes, gradients in zip(sublayers, kept, swept.gradients, strict=True)
        if isinstance(layer, HeldFeatures)
    ]
    weight = torch.cat([*weights, run.token_writes.new_ones(1)]).cpu().numpy()
    number = _numbers(effects.sources, len(run.tokens))
    first = 2 * len(run.tokens)
    for columns, nodes in zip(effects.nodes, kept, strict=True):
        number[columns[nodes.cpu()].numpy()] = np.arange(first, first + len(nodes))
        first += len(nodes)
    found = matrix.tocoo()
    row, column = found.coords
    is_edge = number[column] >= 0
    row, column, effect = row[is_edge], column[is_edge], found.data[is_edge]
    kind = effects.sources["kind"]
    leaf = {name: kind.eq(name).to_numpy() for name in ("bias", "error")}
    leaf["pruned"] = (number < 0) & ~leaf["bias"] & ~leaf["error"]
    none = np.zeros(2 * len(run.tokens))
    inflow = {
        f"in_{name}": np.concatenate([none, weight * (matrix @ mask.astype(weight.dtype))])
        for name, mask in leaf.items()
    }
    nothing = np.zeros_like(inflow["in_bias"])
    parts = (inflow["in_bias"], inflow["in_error"], inflow["in_pruned"], nothing)
    reader = 2 * len(run.tokens) + row
    return Edges(number[column], reader, weight[row] * effect, effect, *parts)


def with_effects(flow: Edges, target: Target, swept: Sweep) -> Edges:
    """Return flow edges and, besides, the direct effects between their scalar nodes."""
    run, sublayers, kept = target.run, target.run.sublayers, swept.kept()
    scalars = scalars_of(sublayers, kept)
    effects = direct_effects(run, [*scalars, target], scalars)
    found = effects.matrix().tocoo()
    number = _numbers(effects.sources, len(run.tokens))
    first, readers = 2 * len(run.tokens), []
    for columns, nodes, some in zip(effects.nodes, kept, scalars, strict=True):
        places = first + np.arange(len(some))  # scalars come first among a sublayer's nodes
        number[columns.numpy()] = places
        readers.append(places)
        first += len(nodes)
    row, column = found.coords
    is_edge = number[column] >= 0
    reader = np.concatenate([*readers, [first]])
    direct = pd.DataFrame(
        {
            "source": number[column[is_edge]],
            "target": reader[row[is_edge]],
            "effect": found.data[is_edge],
        }
    )
    flows = pd.DataFrame({"source": flow.source, "target": flow.target, "flow": flow.flow})
    joined = flows.merge(direct, how="outer", on=["source", "target"]).sort_values(
        ["target", "source"], ignore_index=True
    )
    return replace(
        flow,
        source=joined["source"].to_numpy(),
        target=joined["target"].to_numpy(),
        flow=joined["flow"].fillna(0.0).to_numpy(),
        effect=joined["effect"].to_numpy(),
        via="residual",
    )


def _numbers(sources: pd.DataFrame, n_pos: int) -> np.ndarray:
    """The node number of every source column: tokens, then positions; -1 for all others."""
    number = np.full(len(sources), -1)
    pos = sources["pos"].to_numpy()
    for kind, first in (("token", 0), ("position", n_pos)):
        here = sources["kind"].eq(kind).to_numpy()
        number[here] = first + pos[here]
    return number
