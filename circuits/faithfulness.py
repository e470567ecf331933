"""Does the circuit do it alone? All other nodes ablated in the real model, and the complement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attribution.sweep import sweep
from circuits.references import Ablation, ablation_of, reference_of
from circuits.removal import Removed, completeness_table, minimality_table, roles_of
from circuits.testing import as_nodes, batches, names_of, rows_at_once, tested_nodes
from graphs.files.charts import write_chart
from graphs.graph import Graph
from graphs.view.charts import chart
from replacement.edits.keeping import RunNodes, Values, kept_values, nodes_of_run
from replacement.held import FeatureNodes
from replacement.run import Run
from replacement.target import Target

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of all nodes of the run: the points at which MIB (2504.13151) measures."""


@dataclass(frozen=True)
class Faithfulness:
    """What of a target is left with only the circuit, and what without it."""

    model: float
    """The target with everything: m(M)."""
    circuit: float
    """With only the circuit: m(C)."""
    complement: float
    """With everything but the circuit."""
    empty: float
    """With every node ablated: m(∅)."""
    n_nodes: int
    """Nodes of the circuit, errors included; tokens and positions, which always stay, are not."""
    n_all: int
    """Active nodes and errors of the run."""
    curve: pd.DataFrame
    """share, nodes, edges, value, faithfulness: with only the strongest nodes, at rising numbers.
    edges: those of the circuit between nodes kept (tokens and the target stay); none where nodes
    that the circuit lacks are kept, of which no edges are known."""
    completeness: pd.DataFrame
    """kind, name, removed, circuit, model, gap: sets K taken out of the circuit and of the model;
    gap = |m(C without K) - m(M without K)| as a share of m(M) - m(∅). kind: "random" halves of the
    circuit, "role", and one "greedy" K that was searched for."""
    minimality: pd.DataFrame
    """Indexed by node, strongest first: name; alone: |m(C without v) - m(C)| likewise; gap:
    |m(C without K and v) - m(C without K)| with the K found that makes it largest, of `removed`
    nodes; without: what K is."""

    @property
    def faithfulness(self) -> float:
        """(m(C) - m(∅)) / (m(M) - m(∅)); NaN where ablating everything changes nothing."""
        return self._share(self.circuit)

    @property
    def complement_share(self) -> float:
        """The same of everything but the circuit."""
        return self._share(self.complement)

    @property
    def cpr(self) -> float:
        """MIB's circuit performance ratio: ∫ f dk over the share k of nodes; it can pass 1."""
        return self._area(self._faithful)

    @property
    def cmd(self) -> float:
        """MIB's circuit-model distance: ∫ |1 - f| dk. 0 is best."""
        return self._area(np.abs(1 - self._faithful))

    def picture(self) -> str:
        """Return what is recovered against the number of nodes as an SVG."""
        return recovered(
            self.curve["nodes"],
            self._faithful,
            {
                "the circuit": (self.n_nodes, self.faithfulness),
                "all but it": (max(self.n_all - self.n_nodes, 1), self.complement_share),
            },
        )

    def save(self, path: str | Path) -> Path:
        """Write the picture, .svg or .png (needs cairosvg), and return where."""
        return write_chart(self.picture(), path)

    @property
    def _faithful(self) -> np.ndarray:
        return np.asarray(self.curve["faithfulness"], dtype=float)

    def _area(self, height: np.ndarray) -> float:
        return float(np.trapezoid(height, np.asarray(self.curve["share"], dtype=float)))

    def _share(self, value: float) -> float:
        return share_of(value, self.empty, self.model)

    def __repr__(self) -> str:
        kinds, gaps = self.completeness["kind"], self.completeness["gap"]
        worst = ", ".join(f"{kind} {gaps[kinds.eq(kind)].max():.1%}" for kind in kinds.unique())
        return "\n".join(
            [
                f"{self.n_nodes} of {self.n_all} nodes kept, the others ablated in the real model",
                f"  everything   {self.model:10.4f}",
                f"  circuit      {self.circuit:10.4f}  {self.faithfulness:8.1%}",
                f"  complement   {self.complement:10.4f}  {self.complement_share:8.1%}",
                f"  nothing      {self.empty:10.4f}",
                f"strongest nodes first: CPR {self.cpr:.3f}, CMD {self.cmd:.3f}",
                f"complete? without the same nodes it differs from the model by at most: {worst}",
                *self._minimal(),
            ]
        )

    def _minimal(self) -> list[str]:
        if self.minimality.empty:
            return []
        gaps = self.minimality["gap"]
        least = f"{self.minimality['name'].loc[gaps.idxmin()]} ({gaps.min():.1%})"
        return [f"minimal? of the {len(gaps)} strongest nodes least of all matters {least}"]


def recovered(nodes: Any, faithful: Any, points: Mapping[str, tuple[int | float, float]]) -> str:
    """Return a curve of faithfulness over numbers of nodes, and single points by name, as SVG."""
    heights = [0.0, 1.0, *np.asarray(faithful)[np.isfinite(faithful)].tolist()]
    return chart(
        "What is left with so many nodes, all others ablated",
        ("nodes kept", "share of the target"),
        lines={"strongest first": list(zip(nodes, faithful, strict=True))},
        dots={name: [point] for name, point in points.items()},
        low=min(heights),
        high=max(heights),
        logarithmic=True,
    )


def share_of(value: Any, empty: float, model: float) -> Any:
    """Return (value - empty) / (model - empty), NaN where that is no number.

    >>> share_of(3.0, 1.0, 5.0)
    0.5
    """
    return (value - empty) / (model - empty) if model != empty else np.nan * value


def check_measure(
    shares: Any, random: Any, greedy: Any, strongest: Any, batch: Any, on: Any, ablate: Any
) -> None:
    """Raise TypeError or ValueError for what `Circuit.faithfulness` cannot measure."""
    call = "circuit.faithfulness"
    check_shares(call, shares)
    counts = (("random", random, 1), ("greedy", greedy, 0), ("strongest", strongest, 0))
    for name, count, least in counts:
        if not isinstance(count, int) or count < least:
            raise ValueError(f"{call}({name}={count!r}): a whole number, {least} or more.")
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"{call}(batch={batch!r}): how many at once, 1 or more.")
    if on is None:
        return
    if not isinstance(on, Sequence) or not on or not all(isinstance(one, Target) for one in on):
        raise TypeError(
            f"{call}(on={on!r:.60}): a list of targets, such as [run.logit(5), other.logit(5)]."
        )
    if ablate == "resample":
        raise ValueError(
            f'{call}(on=..., ablate="resample"): another run would be needed for each target. Use '
            '"mean", or a circuit for each run.'
        )


def check_shares(call: str, shares: Any) -> None:
    """Raise ValueError for what are no rising shares of all nodes."""
    rising = isinstance(shares, Sequence) and len(shares) > 1 and sorted(set(shares)) == [*shares]
    if not rising or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(
            f"{call}(shares={shares!r:.60}): rising shares of all nodes, two or more, above 0 and "
            "at most 1."
        )


def faithfulness_of(
    graph: Graph,
    run: Run,
    prompts: Any,
    *,
    ablate: str | None,
    on: Sequence[Target] | None,
    roles: Any,
    groups: Any,
    shares: Any,
    random: int,
    greedy: int,
    strongest: int,
    seed: int,
    batch: int | None,
    progress: bool,
) -> Faithfulness:
    """Return how much of a target a circuit keeps alone; see `Circuit.faithfulness`."""
    if "against" in graph.meta:
        raise ValueError(
            "circuit.faithfulness(...): a contrast is of two runs. Trace one of them without "
            'against=, and give the other as prompts= with ablate="resample".'
        )
    shares = SHARES if shares is None else shares
    check_measure(shares, random, greedy, strongest, batch, on, ablate)
    own = run.target(graph.meta["target"]["terms"])
    nodes, rows = nodes_of_run(run), tested_nodes(graph)
    found = [nodes.number(run, node) for node in as_nodes(rows)]
    members = {
        number: label for number, label in zip(found, rows.index, strict=True) if number >= 0
    }
    plays = roles_of(graph, groups, members)
    ablation = ablation_of(run, prompts, ablate, roles)
    circuit = np.zeros(len(nodes), dtype=bool)
    circuit[list(members)] = True
    if graph.meta.get("edges") == "direct":
        circuit |= _passing(nodes, run)
    order = _order(graph, own, nodes, members)
    tops = [np.isin(np.arange(len(nodes)), order[: _count(share, len(nodes))]) for share in shares]
    source = np.random.default_rng(seed)
    halves = [
        frozenset(np.flatnonzero(circuit & (source.random(len(nodes)) < 0.5)).tolist())
        for _ in range(random)
    ]
    by_strength = [number for number in order.tolist() if number in members][:strongest]
    names = names_of(graph, [members[number] for number in by_strength])
    candidates = dict(zip(by_strength, names, strict=True))
    targets = [own] if on is None else on
    measure = partial(keep_each, targets, nodes, ablation=ablation, batch=batch, progress=progress)
    sets = [(circuit, False), (~circuit, True), (np.zeros_like(circuit), False)]
    values = measure([*sets, *((top, bool(top.all())) for top in tops)])
    model = float(np.mean([target.value for target in targets]))
    alone, complement, empty = values[:3].tolist()
    removed, scale = Removed(measure, circuit), abs(model - empty) or np.nan
    minimal = minimality_table(removed, plays, candidates, greedy=greedy, scale=scale)
    return Faithfulness(
        model=model,
        circuit=alone,
        complement=complement,
        empty=empty,
        n_nodes=int(circuit.sum()),
        n_all=len(nodes),
        curve=pd.DataFrame(
            {
                "share": shares,
                "nodes": [int(top.sum()) for top in tops],
                "edges": pd.array([_edges_within(graph, top, members) for top in tops], "Int64"),
                "value": values[3:],
                "faithfulness": share_of(values[3:], empty, model),
            }
        ),
        completeness=completeness_table(
            removed, halves, plays, candidates, greedy=greedy, scale=scale
        ),
        minimality=minimal.set_axis(
            pd.Index([members[number] for number in by_strength], name="node")
        ),
    )


def keep_each(
    targets: Sequence[Target],
    nodes: RunNodes,
    sets: Sequence[tuple[np.ndarray, bool]],
    ablation: Ablation,
    *,
    batch: int | None,
    progress: bool,
) -> np.ndarray:
    """Return the mean of targets with only each set of nodes kept.

    A set is a mask of `nodes`, and whether what is not among them (inactive features) is kept too.
    """
    total = np.zeros(len(sets))
    for target in targets:
        reference: Values = reference_of(target.run, ablation)
        found: list[float] = []
        size = batch or rows_at_once(target.run)
        for some in batches(sets, size, "kept nodes", progress=progress):
            device = target.run.next_logits.device
            kept = torch.from_numpy(np.stack([mask for mask, _ in some])).to(device)
            others = torch.tensor([rest for _, rest in some], device=device)
            found += kept_values(target, nodes, kept, others, reference).tolist()
        total += np.asarray(found)
    return total / len(targets)


def _passing(nodes: RunNodes, run: Run) -> np.ndarray:
    """Heads and skips, which are no nodes of a circuit of direct effects and all pass."""
    passes = [
        part[2] == "skip" or (part[2] == "nodes" and run.sublayer(*part[:2]).node_kind == "head")
        for part in nodes.parts
    ]
    return np.asarray(passes)[nodes.part.numpy(force=True)]


def _order(graph: Graph, target: Target, nodes: RunNodes, members: Mapping[int, int]) -> np.ndarray:
    """All nodes, the circuit's first by |attribution|, then the others by |ungated attribution|."""
    run: Run = target.run
    with torch.no_grad():
        swept = sweep(target, run.sublayers)
    parts: list[Tensor] = []
    for number, one in enumerate(run.sublayers):
        parts.append(swept.attribution[number])
        if isinstance(one, FeatureNodes) and not one.features.exact and run.errors:
            parts.append(swept.leaves.error[number])
    strength = torch.cat(parts).abs().numpy(force=True)
    attribution = graph.nodes["attribution"].abs().to_dict()
    inside = np.zeros(len(nodes), dtype=bool)
    for number, label in members.items():
        strength[number], inside[number] = attribution[label], True
    return np.lexsort((-strength, ~inside))


def _count(share: float, n_nodes: int) -> int:
    return max(1, round(share * n_nodes))


def _edges_within(graph: Graph, kept: np.ndarray, members: Mapping[int, int]) -> int | None:
    """How many edges of the circuit have both ends kept; None where other nodes are kept too."""
    numbers = np.flatnonzero(kept).tolist()
    if not members.keys() >= set(numbers):
        return None
    stays = graph.nodes.index[graph.is_kind("token", "position", "target")].tolist()
    ends = [*stays, *(members[number] for number in numbers)]
    edges = graph.edges
    inside = edges["source"].isin(ends) & edges["target"].isin(ends)
    return int(np.count_nonzero(inside))
