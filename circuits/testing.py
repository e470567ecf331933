"""Is the claim true? Nodes knocked out, their predicted effect beside the measured one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from scipy.stats import rankdata
from torch import Tensor
from tqdm.auto import tqdm

from attribution.prediction import predicted_changes
from attribution.sweep import Sweep, kept_anyway, sweep
from graphs.files.charts import write_chart
from graphs.graph import Graph
from graphs.names import node_names
from graphs.nodes import INTERIOR
from graphs.view.charts import chart
from replacement.edits import Node, Scale, changes_of, held_values, live_values, number_of, patches
from replacement.held import FeatureNodes, Sublayer
from replacement.run import Run
from replacement.secant import RunPair

ROW_BUDGET = 2**22
"""Numbers of the residual stream, or of features, that one batch of edited runs may hold."""


@dataclass(frozen=True)
class KnockOuts:
    """Predicted against measured, for every node of a circuit, or for sets of them."""

    table: pd.DataFrame
    """Indexed by node: name, predicted, held, ungated, patterns, free: changes of the target."""
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

    @property
    def agreement(self) -> pd.DataFrame:
        """How well the prediction agrees with what was measured, one row a mode.

        pearson and spearman: correlations, NaN where one side is constant. error: the sum of
        squared differences over the sum of squared measured changes. sign: the share of nodes whose
        measured change is not 0 and has the predicted sign.
        """
        modes = [mode for mode in ("held", "patterns", "free") if mode in self.table]
        rows = [agreement(self._column("predicted"), self._column(mode)) for mode in modes]
        return pd.DataFrame(rows, index=pd.Index(modes, name="measured"))

    def picture(self) -> str:
        """Return measured against predicted changes as an SVG, a dot a node or set and mode."""
        return _against_predicted(self.table, "knocked out")

    def save(self, path: str | Path) -> Path:
        """Write the picture, .svg or .png (needs cairosvg), and return where."""
        return write_chart(self.picture(), path)

    def _column(self, name: str) -> np.ndarray:
        return np.asarray(self.table[name], dtype=float)

    def __repr__(self) -> str:
        order = np.argsort(-np.abs(self._column("predicted")), kind="stable")[:8]
        strongest = self.table.iloc[order].set_index("name")
        lines = strongest.to_string(float_format=lambda number: f"{number:.4f}").splitlines()
        sets = self.table.index.name == "set"
        count = len(self.table)
        what = f"{count} {'set' if sets else 'node'}{'' if count == 1 else 's'}"
        what += " of nodes" * sets
        return "\n".join(
            [
                f"knocked out {'together' if sets else 'one at a time'}: {what}; "
                "change of the target",
                *lines,
                f"held: predicted = measured to {self.deviation:.1e} of the largest effect",
                *_correlates(self.correlation, "free: "),
            ]
        )


def _correlates(correlation: float, mode: str = "") -> list[str]:
    """A line on it; none where nothing correlates, as with a single set."""
    if np.isnan(correlation):
        return []
    return [f"{mode}the real model's reaction correlates {correlation:.2f} with predicted"]


def agreement(predicted: Any, measured: Any) -> dict[str, float]:
    """Return pearson, spearman, error and sign of predicted against measured changes.

    >>> agreement([1.0, 2.0, -3.0], [1.0, 2.0, 3.0])["sign"]
    0.6666666666666666
    """
    one, two = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    size, moved = float((two**2).sum()), two != 0
    return {
        "pearson": _correlation(one, two),
        "spearman": _correlation(rankdata(one), rankdata(two)),
        "error": float(((one - two) ** 2).sum() / size) if size else float("nan"),
        "sign": float((np.sign(one) == np.sign(two))[moved].mean()) if moved.any() else np.nan,
    }


def _correlation(predicted: Any, measured: Any) -> float:
    one, two = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    if len(one) < 2 or not one.std() or not two.std():
        return float("nan")
    return float(np.corrcoef(one, two)[0, 1])


def knock_out_each(
    graph: Graph, run: Run, *, scale: int | float, batch: int | None, progress: bool
) -> KnockOuts:
    """Return the effect on the target of knocking out each node, predicted and measured.

    A node is set to `scale` times what it was. *predicted*: its attribution times `scale` - 1.
    *held*: a forward pass that shares no code with the sweep, with scales, patterns, gates and the
    outputs of all nodes outside the circuit at their recorded values; must equal the prediction.
    *ungated*: the prediction if nodes outside the circuit could react too. *patterns*: the real
    model with attention patterns held; *free*: with nothing held; both reported, not expected to
    agree.

    Nodes: all interior nodes, tokens and positions of the circuit, and errors as strong as its
    cutoff. The predictions are the table's own attributions; after `prune`, where nodes that are
    gone no longer react, those of a new sweep through the nodes that are left (with all edges among
    them: the run cannot cut an edge and keep both its ends).
    """
    target = run.target(graph.meta["target"]["terms"])
    nodes, keep = tested_nodes(graph), kept_nodes(graph, run)
    attribution = np.asarray(nodes["attribution"])
    if "pruned" in graph.meta:
        with torch.no_grad():
            again = sweep(target, run.sublayers, only=keep)
        attribution = np.asarray(attributions_of(again, run.sublayers, as_nodes(nodes)))
    columns = {
        "name": names_of(graph, nodes.index),
        "predicted": (scale - 1) * attribution,
        "ungated": (scale - 1) * nodes["ungated"],
    }
    sets = [[node] for node in as_nodes(nodes)]
    columns |= _measured(target, sets, scale, keep, batch=batch, progress=progress)
    return KnockOuts(pd.DataFrame(columns, index=nodes.index).loc[:, COLUMNS], target.value)


COLUMNS = ["name", "predicted", "held", "ungated", "patterns", "free"]


def knock_out_sets(
    graph: Graph,
    run: Run,
    sets: Mapping[str, Sequence[int]],
    *,
    scale: int | float,
    batch: int | None,
    progress: bool,
) -> KnockOuts:
    """Return the effect of knocking out sets of nodes, each set together.

    *predicted* is one sweep a set in which its members are stops: the sum of what changes times the
    derivative of the target. *ungated* is the same if nodes outside the circuit could react; the
    other columns are those of `knock_out_each`.
    """
    target, keep = run.target(graph.meta["target"]["terms"]), kept_nodes(graph, run)
    members = [as_nodes(graph.nodes.loc[list(one)]) for one in sets.values()]
    rows = [[Scale(one, scale)] for one in members]
    columns = {
        "name": list(sets),
        "predicted": predicted_changes(target, rows, keep).tolist(),
        "ungated": predicted_changes(target, rows).tolist(),
        **_measured(target, members, scale, keep, batch=batch, progress=progress),
    }
    index = pd.RangeIndex(len(sets), name="set")
    return KnockOuts(pd.DataFrame(columns, index=index).loc[:, COLUMNS], target.value)


def random_sets(graph: Graph, count: int, seed: int) -> dict[str, list[int]]:
    """Return random sets of a circuit's tested nodes, of 2 to half of them, the same for a seed."""
    numbers, source = tested_nodes(graph).index.to_numpy(), np.random.default_rng(seed)
    most = max(3, len(numbers) // 2 + 1)
    sizes = source.integers(2, most, size=count).clip(max=len(numbers))
    return {
        f"random {number}: {size} nodes": source.choice(numbers, size, replace=False).tolist()
        for number, size in enumerate(sizes)
    }


def _measured(
    target: Any,
    sets: Sequence[Sequence[Node]],
    scale: int | float,
    keep: Sequence[Bool[Tensor, " _"]],
    *,
    batch: int | None,
    progress: bool,
) -> dict[str, list[float]]:
    """What knocking out each set does to the target, in each of the three modes."""
    found: dict[str, list[float]] = {"held": [], "patterns": [], "free": []}
    for some in batches(sets, batch or rows_at_once(target.run), "knock-outs", progress=progress):
        changes = changes_of(target.run, [[Scale(one, scale)] for one in some])
        measured = {
            "held": held_values(target, changes, keep),
            "patterns": live_values(target, changes, patterns=True),
            "free": live_values(target, changes),
        }
        for mode, values in measured.items():
            found[mode] += (values - target.value).tolist()
    return found


def batches(
    rows: Sequence[Any], size: int, what: str, *, progress: bool
) -> Iterator[Sequence[Any]]:
    """Return rows, so many at a time, with a bar where they take longer than a second."""
    starts = range(0, len(rows), size)
    for start in tqdm(starts, desc=what, delay=1.0, disable=not progress, leave=False):
        yield rows[start : start + size]


def rows_at_once(run: Run) -> int:
    """Return how many edited runs of a prompt fit into one batch."""
    widest = max(
        [run.weights.d_model]
        + [part.features.n_features for part in run.sublayers if isinstance(part, FeatureNodes)]
    )
    return max(1, min(64, ROW_BUDGET // (len(run.tokens) * widest)))


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

    def picture(self) -> str:
        """Return measured against predicted changes as an SVG, a dot a node."""
        return _against_predicted(self.table, "patched")

    def save(self, path: str | Path) -> Path:
        """Write the picture, .svg or .png (needs cairosvg), and return where."""
        return write_chart(self.picture(), path)

    def __repr__(self) -> str:
        order = np.argsort(-np.abs(self.table["predicted"].to_numpy()), kind="stable")[:8]
        strongest = self.table.iloc[order].set_index("name")
        return "\n".join(
            [
                f"patched one at a time: {len(self.table)} nodes; change of the target",
                strongest.to_string(float_format=lambda number: f"{number:.4f}"),
                *_correlates(self.correlation),
            ]
        )


def _against_predicted(table: pd.DataFrame, what: str) -> str:
    """A chart of every measured column; dots on the line are what was predicted."""
    predicted = table["predicted"].tolist()
    modes = [mode for mode in ("free", "patterns", "held") if mode in table]
    return chart(
        f"{len(table)} {what}: change of the target",
        ("predicted", "measured"),
        lines={"as predicted": [(one, one) for one in sorted(predicted)]},
        dots={mode: list(zip(predicted, table[mode], strict=True)) for mode in modes},
    )


def patch_each(graph: Graph, pair: RunPair, *, batch: int | None, progress: bool) -> Patches:
    """Return the effect on the target of patching each node, predicted and measured.

    A node in the clean run is set to what it was in the other run, and the real model computes the
    rest, nothing held. *predicted*: minus the node's attribution.
    """
    clean, value = pair.clean.target(graph.meta["target"]["terms"]), graph.value
    nodes = tested_nodes(graph)
    free: list[float] = []
    size = batch or rows_at_once(pair.clean)
    for some in batches(as_nodes(nodes), size, "patches", progress=progress):
        free += (patches(clean, pair.other, some) - clean.value).tolist()
    table = pd.DataFrame(
        {
            "name": names_of(graph, nodes.index),
            "predicted": -nodes["attribution"],
            "free": np.asarray(free, dtype=float),
        },
        index=nodes.index,
    )
    return Patches(table, value)


def tested_nodes(graph: Graph) -> pd.DataFrame:
    """Return the rows of the nodes that a test knocks out."""
    nodes = graph.nodes
    strong = nodes["attribution"].abs() >= max(graph.meta.get("cutoff", 0.0), 1e-12)
    connected = nodes["kind"].isin([*INTERIOR, "token", "position"])
    return nodes.loc[connected | (nodes["kind"].eq("error") & strong)]


def as_nodes(rows: pd.DataFrame) -> list[Node]:
    """Return the rows of a node table as what edits are of."""
    return [Node(*row) for row in rows[list(Node._fields)].itertuples(index=False)]


def names_of(graph: Graph, nodes: Any) -> list[str]:
    """Return the names of nodes, given by number."""
    names = dict(zip(graph.nodes.index, node_names(graph), strict=True))
    return [names[node] for node in nodes]


def kept_nodes(graph: Graph, run: Run) -> list[Bool[Tensor, " _"]]:
    """Return which nodes of the held run are in a circuit, one mask a sublayer."""
    contract = graph.meta.get("edges") == "direct"
    return _masks(as_nodes(tested_nodes(graph)), run.sublayers, contract=contract)


def _places(sublayers: Sequence[Sublayer]) -> dict[tuple[int, str], int]:
    return {(layer.layer, layer.name): number for number, layer in enumerate(sublayers)}


def _masks(
    nodes: Sequence[Node], sublayers: Sequence[Sublayer], *, contract: bool
) -> list[Bool[Tensor, " _"]]:
    """Return which nodes of the held run are in the circuit, found by their rows.

    With `contract` heads and skips are no nodes of it, but all of them pass.
    """
    places = _places(sublayers)
    chosen: list[list[int]] = [[] for _ in sublayers]
    for node in nodes:
        if node.kind in INTERIOR:
            number = places[node.layer, node.sublayer]
            chosen[number].append(number_of(sublayers[number], node))
    masks = []
    for layer, numbers in zip(sublayers, chosen, strict=True):
        mask = torch.zeros(layer.n_nodes, dtype=torch.bool, device=layer.error.device)
        mask[numbers] = True
        always = kept_anyway(layer, contract=True) if contract else None
        masks.append(mask if always is None else mask | always)
    return masks


def attributions_of(
    swept: Sweep, sublayers: Sequence[Sublayer], nodes: Sequence[Node]
) -> list[float]:
    """Return the attributions of nodes in a sweep; ValueError for a node the run does not have."""
    places, attributions = _places(sublayers), []
    for node in nodes:
        number = places.get((node.layer, node.sublayer), -1)
        if node.kind == "error":
            attribution = swept.leaves.error[number, node.pos]
        elif node.kind in INTERIOR:
            attribution = swept.attribution[number][number_of(sublayers[number], node)]
        else:
            attribution = getattr(swept.leaves, node.kind)[node.pos]
        attributions.append(float(attribution))
    return attributions
