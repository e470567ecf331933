"""The strongest global neighbours of one feature, by weights alone or as runs make use of them."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from attribution.coactivation import WEIGHTINGS, Coactivation, Weighting
from attribution.global_weights import Way, check_neighbours, parts_in, parts_out, ways_of
from attribution.places import Feature, Place, Places
from replacement.run import Run

Parts = dict[int, Tensor]


def connections(
    model: Any,
    feature: Any,
    k: int = 10,
    *,
    runs: Iterable[Run] | None = None,
    weighting: Weighting = "active",
) -> pd.DataFrame:
    """Return the strongest global in- and out-neighbours of a feature, neuron or Lorsa head.

    One row a neighbour: direction ("in" writes to the feature, "out" reads it), via ("residual", or
    the head of the model between them), kind, layer, sublayer, index, name, weight. In each
    direction the k strongest along the residual stream and, where attention is read as heads, the k
    strongest through one head; `weight` as in `attribution.global_weights.virtual_weights`.

    `feature`: (layer, index) of an MLP, (layer, sublayer, index), a row of `circuit.nodes`, or a
    name ("L1.f512", "L1.lorsa 3"). With `runs` a column `expected` is added and ranks instead: the
    mean over their tokens of what the writer gave to the reader's pre-activation along this way
    where the reader was active; with `weighting="activation"` the mean over the reader's activity.
    Runs are taken one at a time and may be made on the way.

    Raises ValueError, TypeError or IndexError for a feature the model does not have, a `k` that is
    no whole number from 1, an unknown weighting, runs of another model, or none at all.

    >>> from circuits import load
    >>> connections(load("four-tasks"), "L1.f18", k=1)[["direction", "via", "name"]].values.tolist()
    [['in', 'residual', 'L0.f752'], ['out', 'residual', 'L3.lorsa 120']]
    """
    check_neighbours(k, "in")
    if weighting not in WEIGHTINGS:
        raise ValueError(
            f'weighting={weighting!r}: "active" counts tokens where the reader is active, '
            '"activation" weighs them by how much it is.'
        )
    places = Places(model.weights)
    found = places.feature(feature)
    with torch.no_grad():
        seen = None if runs is None else _seen(model, places, found, runs, weighting)
        tables = [
            _table(direction, way, other, parts, seen, k)
            for direction, way, other, parts in _neighbours(places, found)
        ]
    rank = "weight" if seen is None else "expected"
    whole: Any = pd.concat(tables, ignore_index=True)
    order = whole[rank].abs().sort_values(ascending=False, kind="stable").index
    best = whole.loc[order].groupby(["direction", "_through"], sort=True).head(k)
    best = best.sort_values(by=["direction", "_through"], kind="stable")
    return best.drop(columns="_through").reset_index(drop=True)


def _neighbours(places: Places, feature: Feature) -> Iterator[tuple[str, Way, Place, Parts]]:
    """Every way and place, with the weights from or to all its features, write by write."""
    own = places.named(feature.layer, feature.sublayer)
    index = torch.tensor([feature.index], device=places.weights.unembedding.device)
    for way in ways_of(places, own):
        for writer in places.every:
            yield "in", way, writer, parts_in(places, own, way, index, writer)
    for reader in places.every:
        for way in ways_of(places, reader):
            yield "out", way, reader, parts_out(places, own, index, reader, way)


def _table(
    direction: str, way: Way, other: Place, parts: Parts, seen: Coactivation | None, k: int
) -> pd.DataFrame:
    """The k strongest of one place by one way."""
    like = torch.zeros(other.n_features)
    weight = sum((part[0].cpu().double() for part in parts.values()), like.double())
    rank = weight
    if seen is not None:
        rank = sum(
            (
                (part[0] * seen.factor(direction, way, other, number)).cpu().double()
                for number, part in parts.items()
            ),
            like.double(),
        )
    at = rank.abs().topk(min(k, len(rank))).indices
    at = at[rank[at] != 0]
    table = other.rows(at.numpy()).assign(weight=weight[at].numpy())
    if seen is not None:
        table["expected"] = rank[at].numpy()
    table.insert(0, "direction", direction)
    table.insert(1, "via", way.via)
    return table.assign(_through=way.head is not None)


def _seen(
    model: Any, places: Places, feature: Feature, runs: Iterable[Run], weighting: Weighting
) -> Coactivation:
    seen = Coactivation(places, feature, weighting)
    for run in runs:
        if getattr(run, "model", None) is not model:
            raise ValueError(
                f"connections(runs=...): {run!r:.80} is no run of this model. Give "
                "[model.run(prompt) for prompt in prompts], or a generator of them."
            )
        seen.add(run)
    if not seen.n_tokens:
        raise ValueError("connections(runs=...): there are none. Give one run or more.")
    return seen
