"""Is a circuit complete, and does every node of it matter? As Wang et al. 2022 ask (2211.00593).

Complete: without any set K of its nodes the circuit does what the model does without K. Minimal:
for every node v there is a K without which v matters. Which K is the worst is searched for among
random halves, roles and, node by node, greedily.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.groups import grouped
from graphs.graph import Graph

Nodes = frozenset[int]
"""Numbers among all nodes of a run."""
Measure = Callable[[Sequence[tuple[np.ndarray, bool]]], np.ndarray]
"""The target with only each set kept: a mask of nodes, and whether inactive ones are kept too."""


class Removed:
    """What a target is without sets of nodes, of a circuit or the model, each measured once."""

    def __init__(self, measure: Measure, circuit: np.ndarray) -> None:
        self._measure, self._circuit = measure, circuit
        self._known: dict[tuple[Nodes, bool], float] = {}

    def values(self, sets: Sequence[Nodes], *, of_model: bool = False) -> np.ndarray:
        """Return the target without each set of nodes."""
        new = [one for one in dict.fromkeys(sets) if (one, of_model) not in self._known]
        if new:
            found = self._measure([(self._left(one, of_model), of_model) for one in new])
            keys = [(one, of_model) for one in new]
            self._known |= dict(zip(keys, found.tolist(), strict=True))
        return np.array([self._known[one, of_model] for one in sets])

    def _left(self, nodes: Nodes, of_model: bool) -> np.ndarray:
        left = np.ones_like(self._circuit) if of_model else self._circuit.copy()
        left[list(nodes)] = False
        return left


def roles_of(graph: Graph, groups: Any, members: Mapping[int, int]) -> dict[str, Nodes]:
    """Return the sets of nodes that play one role, by name.

    `groups` as in `Circuit.test`; by default those of `Circuit.group`, and in a circuit without
    any the nodes of each position. `members`: number in the graph of each node of the circuit.
    Raises ValueError for a group of tokens and positions alone.
    """
    numbers = {label: number for number, label in members.items()}
    if groups is None:
        groups = {one["label"]: one["nodes"] for one in graph.meta.get("groups", [])}
        if not groups:
            inside = graph.nodes.loc[list(numbers)]
            for (pos, token), rows in inside.groupby(["pos", "token"], sort=True):
                groups[f'"{token}"@{pos}'] = rows.index.tolist()
    found = {
        name: frozenset(numbers[label] for label in labels if label in numbers)
        for name, labels in grouped(graph, groups).items()
    }
    empty = [name for name, nodes in found.items() if not nodes]
    if empty:
        raise ValueError(
            f"circuit.faithfulness(groups=...): {empty[0]!r} has no node that can be ablated. "
            "Tokens and positions are the prompt and stay; name heads, features or errors."
        )
    return found


def completeness_table(
    removed: Removed,
    halves: Sequence[Nodes],
    roles: Mapping[str, Nodes],
    candidates: Mapping[int, str],
    *,
    greedy: int,
    scale: float,
) -> pd.DataFrame:
    """Return |m(C without K) - m(M without K)| of sets K: random halves, roles, a greedy one."""

    def gaps(sets: Sequence[Nodes]) -> np.ndarray:
        return np.abs(removed.values(sets) - removed.values(sets, of_model=True))

    taken, worst = [], 0.0
    for _ in range(greedy):
        rest = [one for one in candidates if one not in taken]
        found = gaps([frozenset([*taken, one]) for one in rest])
        if not len(found) or found.max() <= worst:
            break
        taken, worst = [*taken, rest[int(found.argmax())]], float(found.max())
    sets = [("random", f"half {number}", one) for number, one in enumerate(halves)]
    sets += [("role", name, one) for name, one in roles.items()]
    if taken:
        sets.append(("greedy", ", ".join(candidates[one] for one in taken), frozenset(taken)))
    nodes = [one for *_, one in sets]
    return pd.DataFrame(
        {
            "kind": [kind for kind, *_ in sets],
            "name": [name for _, name, _ in sets],
            "removed": [len(one) for one in nodes],
            "circuit": removed.values(nodes),
            "model": removed.values(nodes, of_model=True),
            "gap": gaps(nodes) / scale,
        }
    )


def minimality_table(
    removed: Removed,
    roles: Mapping[str, Nodes],
    candidates: Mapping[int, str],
    *,
    greedy: int,
    scale: float,
) -> pd.DataFrame:
    """Return |m(C without K and v) - m(C without K)| of nodes v, with no K and with the best found.

    K begins as nothing or as the rest of v's role, whichever makes v matter more, and grows by the
    candidate that makes it matter most, `greedy` times at most.
    """

    def gaps(asked: Sequence[tuple[int, Nodes]]) -> np.ndarray:
        without = removed.values([nodes for _, nodes in asked])
        return np.abs(removed.values([nodes | {one} for one, nodes in asked]) - without)

    nothing: Nodes = frozenset()
    alone = gaps([(one, nothing) for one in candidates])
    best = {one: (float(gap), nothing, "") for one, gap in zip(candidates, alone, strict=True)}
    asked = [
        (one, role - {one}, f"rest of {name}")
        for one in candidates
        for name, role in roles.items()
        if one in role and len(role) > 1
    ]
    for step in range(greedy + 1):
        found = gaps([(one, nodes) for one, nodes, _ in asked])
        better = set()
        for (one, nodes, name), gap in zip(asked, found, strict=True):
            if gap > best[one][0]:
                best[one] = (float(gap), nodes, name)
                better.add(one)
        growing = candidates if step == 0 else better
        asked = [
            (one, nodes | {other}, f"{name}, {candidates[other]}" if name else candidates[other])
            for one, (_, nodes, name) in best.items()
            if one in growing
            for other in candidates
            if other != one and other not in nodes
        ]
    return pd.DataFrame(
        {
            "name": list(candidates.values()),
            "alone": alone / scale,
            "gap": np.array([gap for gap, *_ in best.values()]) / scale,
            "removed": [len(nodes) for _, nodes, _ in best.values()],
            "without": [name for *_, name in best.values()],
        },
        index=pd.Index(candidates, name="node"),
    )
