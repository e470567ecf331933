"""Direct effects as attribution graphs use them: what to expand by influence, and their scores.

The peers' order (circuit-tracer; Ameisen et al. 2025): starting from the target, expand the node
that influences it most through the rows known so far, and so on until there are enough. Every row
is taken in absolute shares, so that a node can be chosen whose paths cancel.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from attribution.direct_effects import DirectEffects, direct_effects
from graphs.influence import completeness_score, influence, replacement_score
from replacement.target import Target

AT_ONCE = 16
"""Into so many steps the expansion is cut: rows of a step are chosen without each other's."""
LEAST = 32
"""Rows that a step has at least."""


@dataclass(frozen=True)
class InfluenceScores:
    """How much of a graph is accounted for, as attribution graphs are scored."""

    replacement: float
    """The share of tokens in the influence of tokens and errors."""
    completeness: float
    """The share of what nodes get that is no error, nodes weighted by influence."""
    influence: pd.Series
    """Of every source, in the order of `effects.sources`."""


def influence_scores(
    effects: DirectEffects, probabilities: np.ndarray | None = None
) -> InfluenceScores:
    """Return replacement and completeness score, and the influence of every source.

    `effects`: of all nodes that are to be in the graph, then of the targets (`direct_effects(run,
    [*nodes, *targets])`), with all sources. Every row of |effects| is divided by its sum, constants
    left out; `probabilities` weigh the targets (by default alike). Sources that have no row pass
    nothing on. Definitions: `graphs.influence`. Raises ValueError for effects without targets.

    >>> from circuits import load
    >>> run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    >>> every = [
    ...     torch.arange(layer.n_active) if hasattr(layer, "n_active") else None
    ...     for layer in run.sublayers
    ... ]
    >>> scores = influence_scores(direct_effects(run, [*every, run.logit(" Mary").centered()]))
    >>> 0.8 < scores.replacement <= 1 and 0.9 < scores.completeness <= 1
    True
    """
    is_target = effects.targets["kind"].eq("target").to_numpy()
    if not is_target.any():
        raise ValueError(
            "influence_scores: no row is a target. Give direct_effects a target after the nodes: "
            "direct_effects(run, [*nodes, run.logit(...)])."
        )
    square, rows, n_sources = _square([effects])
    n_nodes = n_sources + int(is_target.sum())
    weights = np.zeros(n_nodes)
    given = (
        np.full(is_target.sum(), 1 / is_target.sum()) if probabilities is None else probabilities
    )
    weights[rows[0][is_target]] = given
    kind = np.concatenate([effects.sources["kind"].to_numpy(), np.full(is_target.sum(), "target")])
    token, error = np.isin(kind, ("token", "position")), kind == "error"
    return InfluenceScores(
        replacement_score(square, weights, token, error),
        completeness_score(square, weights, error),
        pd.Series(influence(square, weights)[:n_sources], effects.sources.index),
    )


def chosen_nodes(
    select: str, target: Target, n_nodes: int | None
) -> list[Bool[Tensor, " _"]] | None:
    """Return masks of the nodes of a trace that selects by influence; None for another."""
    if select != "influence" or n_nodes is None:
        return None
    return nodes_by_influence(target, n_nodes)


def nodes_by_influence(target: Target, n_nodes: int) -> list[Bool[Tensor, " _"]]:
    """Return masks of the `n_nodes` nodes that the peers' greedy order would expand."""
    run, sublayers = target.run, target.run.sublayers
    masks = [
        torch.zeros(layer.n_nodes, dtype=torch.bool, device=layer.error.device)
        for layer in sublayers
    ]
    known = [direct_effects(run, target)]
    step = max(LEAST, -(-n_nodes // AT_ONCE))
    place = {
        int(column): (number, node)
        for number, columns in enumerate(known[0].nodes)
        for node, column in enumerate(columns.tolist())
    }
    nodes, n_chosen = np.array(sorted(place)), 0
    expanded = np.zeros(len(known[0].sources), dtype=bool)
    while n_chosen < n_nodes:
        square, rows, n_sources = _square(known)
        weights = np.zeros(n_sources + 1)
        weights[rows[0]] = 1.0
        reached = influence(square, weights)[:n_sources]
        left = nodes[~expanded[nodes] & (reached[nodes] > 0)]
        best = left[np.argsort(-reached[left], kind="stable")][: min(step, n_nodes - n_chosen)]
        if not len(best):
            break
        fresh = [torch.zeros_like(mask) for mask in masks]
        for column in best.tolist():
            number, node = place[column]
            fresh[number][node] = True
        expanded[best] = True
        n_chosen += len(best)
        masks = [mask | new for mask, new in zip(masks, fresh, strict=True)]
        if n_chosen < n_nodes:
            known.append(direct_effects(run, fresh))
    return masks


def _square(parts: list[DirectEffects]) -> tuple[csr_array, list[np.ndarray], int]:
    """Effects of the same sources as one matrix [node, node], targets after the sources, without
    constants; and at which of its rows the rows of each part are."""
    sources = parts[0].sources
    n_sources = len(sources)
    number = pd.Series(np.arange(n_sources), _keys(sources))
    count, places, found = n_sources, [], []
    constant = sources["kind"].eq("bias").to_numpy()
    for part in parts:
        is_target = part.targets["kind"].eq("target").to_numpy()
        rows = np.empty(len(part.targets), dtype=np.int64)
        rows[~is_target] = number.loc[_keys(part.targets)[~is_target]].to_numpy()
        rows[is_target] = count + np.arange(is_target.sum())
        count += int(is_target.sum())
        places.append(rows)
        entries = part.matrix().tocoo()
        row, column = entries.coords
        keep = ~constant[column]
        found.append((rows[row[keep]], column[keep], entries.data[keep]))
    row, column, values = (np.concatenate(each) for each in zip(*found, strict=True))
    return csr_array(coo_array((values, (row, column)), shape=(count, count))), places, n_sources


def _keys(table: pd.DataFrame) -> pd.MultiIndex:
    names = ("kind", "layer", "sublayer", "pos", "index")
    return pd.MultiIndex.from_arrays([table[name] for name in names])
