"""Does the circuit do it alone? All other nodes ablated in the real model, and the complement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from attribution.sweep import sweep
from circuits.references import Ablation, reference_of
from circuits.testing import as_nodes, batches, names_of, rows_at_once, tested_nodes
from graphs.graph import Graph
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
    """share, nodes, value, faithfulness: with only the strongest nodes, at rising numbers."""
    completeness: pd.DataFrame
    """removed, circuit, model, gap: random halves K of the circuit taken out of it and of the
    model; gap = |m(C without K) - m(M without K)| as a share of m(M) - m(∅)."""
    minimality: pd.DataFrame
    """Indexed by node: name, value, gap: |m(C without v) - m(C)| likewise, strongest first."""

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

    @property
    def _faithful(self) -> np.ndarray:
        return np.asarray(self.curve["faithfulness"], dtype=float)

    def _area(self, height: np.ndarray) -> float:
        return float(np.trapezoid(height, np.asarray(self.curve["share"], dtype=float)))

    def _share(self, value: float) -> float:
        return share_of(value, self.empty, self.model)

    def __repr__(self) -> str:
        gaps = self.completeness["gap"]
        return "\n".join(
            [
                f"{self.n_nodes} of {self.n_all} nodes kept, the others ablated in the real model",
                f"  everything   {self.model:10.4f}",
                f"  circuit      {self.circuit:10.4f}  {self.faithfulness:8.1%}",
                f"  complement   {self.complement:10.4f}  {self.complement_share:8.1%}",
                f"  nothing      {self.empty:10.4f}",
                f"strongest nodes first: CPR {self.cpr:.3f}, CMD {self.cmd:.3f}",
                f"half of the circuit taken out: differs from the model without it by "
                f"{gaps.mean():.1%} on average, {gaps.max():.1%} at most",
            ]
        )


def share_of(value: Any, empty: float, model: float) -> Any:
    """Return (value - empty) / (model - empty), NaN where that is no number.

    >>> share_of(3.0, 1.0, 5.0)
    0.5
    """
    return (value - empty) / (model - empty) if model != empty else np.nan * value


def check_measure(
    shares: Any, random: Any, strongest: Any, batch: Any, on: Any, ablate: Any
) -> None:
    """Raise TypeError or ValueError for what `Circuit.faithfulness` cannot measure."""
    call = "circuit.faithfulness"
    rising = isinstance(shares, Sequence) and len(shares) > 1 and sorted(set(shares)) == [*shares]
    if not rising or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(
            f"{call}(shares={shares!r:.60}): rising shares of all nodes, two or more, above 0 and "
            "at most 1."
        )
    for name, count, least in (("random", random, 1), ("strongest", strongest, 0)):
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


def faithfulness_of(
    graph: Graph,
    run: Run,
    ablation: Ablation,
    *,
    on: Sequence[Target] | None,
    shares: Sequence[float],
    random: int,
    strongest: int,
    seed: int,
    batch: int | None,
    progress: bool,
) -> Faithfulness:
    """Return how much of a target a circuit keeps alone; see `Circuit.faithfulness`."""
    own = run.target(graph.meta["target"]["terms"])
    nodes, rows = nodes_of_run(run), tested_nodes(graph)
    found = [nodes.number(run, node) for node in as_nodes(rows)]
    members = {
        number: label for number, label in zip(found, rows.index, strict=True) if number >= 0
    }
    circuit = np.zeros(len(nodes), dtype=bool)
    circuit[list(members)] = True
    if graph.meta.get("edges") == "direct":
        circuit |= _passing(nodes, run)
    order = _order(graph, own, nodes, members)
    tops = [np.isin(np.arange(len(nodes)), order[: _count(share, len(nodes))]) for share in shares]
    source = np.random.default_rng(seed)
    halves = [circuit & (source.random(len(nodes)) < 0.5) for _ in range(random)]
    by_strength = [number for number in order.tolist() if number in members][:strongest]
    singles = [_without(circuit, number) for number in by_strength]
    sets = [(circuit, False), (~circuit, True), (np.zeros_like(circuit), False)]
    sets += [(top, bool(top.all())) for top in tops]
    sets += [(circuit & ~half, False) for half in halves] + [(~half, True) for half in halves]
    sets += [(single, False) for single in singles]
    targets = [own] if on is None else on
    values = keep_each(targets, nodes, sets, ablation, batch=batch, progress=progress)
    model = float(np.mean([target.value for target in targets]))
    alone, complement, empty = values[:3].tolist()
    ends = np.cumsum([3, len(tops), len(halves), len(halves), len(singles)])
    of_tops, of_rest, of_model, of_singles = np.split(values, ends[:-1])[1:]
    scale = abs(model - empty) or np.nan
    labels = [members[number] for number in by_strength]
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
                "value": of_tops,
                "faithfulness": share_of(of_tops, empty, model),
            }
        ),
        completeness=pd.DataFrame(
            {
                "removed": [int(half.sum()) for half in halves],
                "circuit": of_rest,
                "model": of_model,
                "gap": np.abs(of_rest - of_model) / scale,
            }
        ),
        minimality=pd.DataFrame(
            {
                "name": names_of(graph, labels),
                "value": of_singles,
                "gap": np.abs(of_singles - alone) / scale,
            },
            index=pd.Index(labels, name="node"),
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
            device = target.run.logits.device
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


def _without(circuit: Bool[np.ndarray, " node"], number: int) -> np.ndarray:
    left = circuit.copy()
    left[number] = False
    return left
