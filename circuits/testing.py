"""Is the claim true? Every node knocked out, its predicted effect beside the measured one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from attribution.sweep import Sweep, kept_anyway, sweep
from graphs.graph import Graph
from graphs.names import node_names
from graphs.nodes import INTERIOR
from replacement.edits import Removal, free_knock_outs, held_knock_outs, number_of
from replacement.held import Sublayer
from replacement.run import Run
from replacement.secant import RunPair

ROW_BUDGET = 2**22
"""Numbers of the residual stream that one batch of knock-outs may hold."""


@dataclass(frozen=True)
class KnockOuts:
    """Predicted against measured, for every node of a circuit."""

    table: pd.DataFrame
    """Indexed by node: name, predicted, held, ungated, free: changes of the target."""
    value: float
    """The target's value with nothing knocked out."""

    @property
    def deviation(self) -> float:
        """The largest |predicted - held|, as a share of the largest effect, of either.

        Of a thousandth of the value where all effects are smaller: behind a replaced stream tokens
        may do nothing at all, and what is left is rounding.
        """
        predicted, held = self._column("predicted"), self._column("held")
        scale = np.abs([predicted, held]).max(initial=1e-3 * abs(self.value))
        return float(np.abs(predicted - held).max(initial=0.0) / scale) if scale else 0.0

    @property
    def correlation(self) -> float:
        """Pearson correlation of predicted and free changes; NaN where one is constant."""
        return _correlation(self._column("predicted"), self._column("free"))

    def _column(self, name: str) -> np.ndarray:
        return np.asarray(self.table[name], dtype=float)

    def __repr__(self) -> str:
        order = np.argsort(-np.abs(self._column("predicted")), kind="stable")[:8]
        strongest = self.table.iloc[order].set_index("name")
        lines = strongest.to_string(float_format=lambda number: f"{number:.4f}").splitlines()
        return "\n".join(
            [
                f"knocked out one at a time: {len(self.table)} nodes; change of the target",
                *lines,
                f"held: predicted = measured to {self.deviation:.1e} of the largest effect",
                f"free: the real model's reaction correlates {self.correlation:.2f} with predicted",
            ]
        )


def _correlation(predicted: Any, measured: Any) -> float:
    one, two = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    if len(one) < 2 or not one.std() or not two.std():
        return float("nan")
    return float(np.corrcoef(one, two)[0, 1])


def knock_out_each(graph: Graph, run: Run, *, batch: int | None, progress: bool) -> KnockOuts:
    """Return the effect on the target of knocking out each node, predicted and measured.

    *predicted*: minus the node's attribution. *held*: a forward pass that shares no code with the
    sweep, with scales, patterns, gates and the outputs of all nodes outside the circuit at their
    recorded values; must equal the prediction. *ungated*: the prediction if nodes outside the
    circuit could react too. *free*: the real model with the node's vector taken out and nothing
    held; reported, not expected to agree.

    Nodes: all interior nodes, tokens and positions of the circuit, and errors as strong as its
    cutoff. The predictions are minus the table's own attributions; after `prune`, where nodes that
    are gone no longer react, minus those of a new sweep through the nodes that are left (with all
    edges among them: the run cannot cut an edge and keep both its ends).
    """
    target = run.target(graph.meta["target"]["terms"])
    sublayers = run.sublayers
    nodes = tested_nodes(graph)
    removals = removals_of(nodes)
    batch = batch or max(1, min(64, ROW_BUDGET // run.token_writes.numel()))
    with torch.no_grad():
        keep = _masks(removals, sublayers, contract=graph.meta.get("edges") == "direct")
        predicted = -np.asarray(nodes["attribution"])
        if "pruned" in graph.meta:
            again = sweep(target, sublayers, only=keep)
            predicted = -np.asarray(attributions_of(again, sublayers, removals))
        held, free = [], []
        starts = range(0, len(removals), batch)
        for start in tqdm(starts, desc="knock-outs", delay=1.0, disable=not progress, leave=False):
            some = removals[start : start + batch]
            held += (held_knock_outs(target, keep, some) - target.value).tolist()
            free += (free_knock_outs(target, some) - target.value).tolist()
    names = dict(zip(graph.nodes.index, node_names(graph), strict=True))
    table = pd.DataFrame(
        {
            "name": [names[node] for node in nodes.index],
            "predicted": predicted,
            "held": np.asarray(held, dtype=float),
            "ungated": -nodes["ungated"],
            "free": np.asarray(free, dtype=float),
        },
        index=nodes.index,
    )
    return KnockOuts(table, target.value)


@dataclass(frozen=True)
class Patches:
    """Predicted against measured: every node of a contrast set to what it was in the other run."""

    table: pd.DataFrame
    """Indexed by node: name, predicted, free: changes of the target in the clean run."""
    value: float
    """The target's difference between the runs."""

    @property
    def correlation(self) -> float:
        """Pearson correlation of predicted and measured changes; NaN where one is constant."""
        return _correlation(self.table["predicted"], self.table["free"])

    def __repr__(self) -> str:
        order = np.argsort(-np.abs(self.table["predicted"].to_numpy()), kind="stable")[:8]
        strongest = self.table.iloc[order].set_index("name")
        return "\n".join(
            [
                f"patched one at a time: {len(self.table)} nodes; change of the target",
                strongest.to_string(float_format=lambda number: f"{number:.4f}"),
                f"the real model's reaction correlates {self.correlation:.2f} with predicted",
            ]
        )


def patch_each(graph: Graph, pair: RunPair, *, batch: int | None, progress: bool) -> Patches:
    """Return the effect on the target of patching each node, predicted and measured.

    A node's vector in the clean run is replaced by that in the other run, and the real model
    computes the rest, nothing held. *predicted*: minus the node's attribution.
    """
    target = pair.target(graph.meta["target"]["terms"])
    clean = pair.clean.target(graph.meta["target"]["terms"]).value
    nodes = tested_nodes(graph)
    removals = removals_of(nodes)
    batch = batch or max(1, min(64, ROW_BUDGET // pair.token_writes.numel()))
    free: list[float] = []
    with torch.no_grad():
        starts = range(0, len(removals), batch)
        for start in tqdm(starts, desc="patches", delay=1.0, disable=not progress, leave=False):
            some = removals[start : start + batch]
            free += (free_knock_outs(target, some) - clean).tolist()
    names = dict(zip(graph.nodes.index, node_names(graph), strict=True))
    table = pd.DataFrame(
        {
            "name": [names[node] for node in nodes.index],
            "predicted": -nodes["attribution"],
            "free": np.asarray(free, dtype=float),
        },
        index=nodes.index,
    )
    return Patches(table, target.value)


def tested_nodes(graph: Graph) -> pd.DataFrame:
    """Return the rows of the nodes that a test knocks out."""
    nodes = graph.nodes
    strong = nodes["attribution"].abs() >= max(graph.meta.get("cutoff", 0.0), 1e-12)
    connected = nodes["kind"].isin([*INTERIOR, "token", "position"])
    return nodes.loc[connected | (nodes["kind"].eq("error") & strong)]


def removals_of(nodes: pd.DataFrame) -> list[Removal]:
    """Return the rows of a node table as what knocks them out."""
    return [Removal(*row) for row in nodes[list(Removal._fields)].itertuples(index=False)]


def _places(sublayers: Sequence[Sublayer]) -> dict[tuple[int, str], int]:
    return {(layer.layer, layer.name): number for number, layer in enumerate(sublayers)}


def _masks(
    removals: Sequence[Removal], sublayers: Sequence[Sublayer], *, contract: bool
) -> list[Bool[Tensor, " _"]]:
    """Return which nodes of the held run are in the circuit, found by their rows.

    With `contract` heads and skips are no nodes of it, but all of them pass.
    """
    places = _places(sublayers)
    chosen: list[list[int]] = [[] for _ in sublayers]
    for removal in removals:
        if removal.kind in INTERIOR:
            number = places[removal.layer, removal.sublayer]
            chosen[number].append(number_of(sublayers[number], removal))
    masks = []
    for layer, nodes in zip(sublayers, chosen, strict=True):
        mask = torch.zeros(layer.n_nodes, dtype=torch.bool, device=layer.error.device)
        mask[nodes] = True
        always = kept_anyway(layer, contract=True) if contract else None
        masks.append(mask if always is None else mask | always)
    return masks


def attributions_of(
    swept: Sweep, sublayers: Sequence[Sublayer], removals: Sequence[Removal]
) -> list[float]:
    """Return the attributions of nodes in a sweep; ValueError for a node the run does not have."""
    places, attributions = _places(sublayers), []
    for removal in removals:
        number = places.get((removal.layer, removal.sublayer), -1)
        if removal.kind == "error":
            attribution = swept.leaves.error[number, removal.pos]
        elif removal.kind in INTERIOR:
            attribution = swept.attribution[number][number_of(sublayers[number], removal)]
        else:
            attribution = getattr(swept.leaves, removal.kind)[removal.pos]
        attributions.append(float(attribution))
    return attributions
