"""The graph: two tables and the facts of the run they came from."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from graphs.nodes import INTERIOR, SOURCES, rows_of
from graphs.validating import checked_meta, checked_tables

TOLERANCE = 1e-4
"""What sums that must close are held to: float32 rounding (docs/design.md, Precision)."""


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Graph:
    """Nodes and signed edges that explain one number of one run.

    A graph never changes: functions return new ones, and the tables handed out are copies.

    ``nodes`` and ``edges`` are described in ``graphs.nodes``. ``meta`` says where they came from
    and is what JSON can hold; required are ``tokens`` (texts), ``n_layers``, and ``target`` with
    ``label`` and ``value``.

    Raises ValueError where a column is missing or of another type, a number is not finite, a node
    number occurs twice, an edge ends nowhere, the edges run in a circle, or there is not exactly
    one target.

    >>> from graphs.example import worked_example
    >>> graph = worked_example()
    >>> graph
    Graph(6 nodes, 13 edges: y = 16)
    >>> graph.edges[["source", "target", "flow"]].head(2)
       source  target  flow
    0       0       1   4.0
    1       0       2   8.0
    """

    _nodes: pd.DataFrame
    _edges: pd.DataFrame
    _meta: dict[str, Any]

    def __init__(self, nodes: pd.DataFrame, edges: pd.DataFrame, meta: Mapping[str, Any]) -> None:
        checked = checked_meta(meta)
        own_nodes, own_edges = checked_tables(nodes, edges, checked)
        object.__setattr__(self, "_nodes", own_nodes)
        object.__setattr__(self, "_edges", own_edges)
        object.__setattr__(self, "_meta", checked)

    @property
    def nodes(self) -> pd.DataFrame:
        """A copy of the node table, indexed by node number."""
        return self._nodes.copy(deep=False)

    @property
    def edges(self) -> pd.DataFrame:
        """A copy of the edge table."""
        return self._edges.copy(deep=False)

    @property
    def meta(self) -> dict[str, Any]:
        """A copy of the facts about the run."""
        return copy.deepcopy(self._meta)

    def noted(self, **facts: Any) -> "Graph":
        """The same graph with these facts added to its meta; the tables are shared."""
        other = copy.copy(self)
        object.__setattr__(other, "_meta", checked_meta({**self._meta, **facts}))
        return other

    @property
    def value(self) -> float:
        """The value of the target: the number that is explained."""
        return float(self._meta["target"]["value"])

    @property
    def kept_in(self) -> str:
        """What the weights were kept in: float32, float64 or bfloat16."""
        return str(self._meta.get("weights", self._meta.get("dtype", "float32")))

    @property
    def target(self) -> int:
        """The number of the node that is explained."""
        return int(np.asarray(self._nodes.index)[self.is_kind("target")][0])

    def column(self, name: str) -> np.ndarray:
        """One column of the node table as an array, row by row."""
        return np.asarray(self._nodes[name])

    def is_kind(self, *kinds: str) -> np.ndarray:
        """For every row of the node table, whether it is of one of these kinds."""
        return np.array(self._nodes["kind"].isin(kinds), dtype=bool)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """For every edge, the row of its writer and the row of its reader in the node table."""
        source, target = (np.asarray(self._edges[end]) for end in ("source", "target"))
        return rows_of(self._nodes, source), rows_of(self._nodes, target)

    def conservation(self) -> float:
        """The largest share by which a node breaks one of the conservation laws; 0 is exact.

        The laws stand in ``graphs.nodes``. At each node and law it is |sum of terms - attribution|
        / max(sum of |terms|, |target's value|), the terms being flows, in_bias, in_error, in_pruned
        and in_switch, or flows and out_pruned; what is returned is the maximum. Where attribution
        is the only number that is not 0 the share is 1.

        >>> from graphs.example import worked_example
        >>> worked_example().conservation()
        0.0
        """
        reads = self.is_kind(*INTERIOR, "target")
        writes = self.is_kind(*SOURCES, *INTERIOR)
        writer, reader = self.ends()
        return max(
            self._deviation(reader, ("in_bias", "in_error", "in_pruned", "in_switch"), reads),
            self._deviation(writer, ("out_pruned",), writes),
        )

    def explained(self) -> pd.Series:
        """What the target's value is made of: token, position, error, bias, pruned; they sum to it.

        In a contrast of two runs also switch.

        token and position: sum of attribution - out_pruned of those rows; error, bias: sums of
        in_error and in_bias over interior nodes and the target; pruned: sum of in_pruned over the
        same less sum of out_pruned over interior nodes; switch: sum of in_switch. Why they add up:
        sum law 1 over interior and target, law 2 over interior and sources. Both contain the sum of
        all flows and the interior attributions once; subtracting leaves value = these sums.

        >>> from graphs.example import worked_example
        >>> worked_example().explained().to_dict()
        {'token': 16.0, 'position': 0.0, 'error': 0.0, 'bias': 0.0, 'pruned': 0.0}
        """
        left = self.column("attribution") - self.column("out_pruned")
        readers = self.is_kind(*INTERIOR, "target")
        cut = self.column("in_pruned")[readers].sum()
        parts = {
            "token": left[self.is_kind("token")].sum(),
            "position": left[self.is_kind("position")].sum(),
            "error": self.column("in_error")[readers].sum(),
            "bias": self.column("in_bias")[readers].sum(),
            "pruned": cut - self.column("out_pruned")[self.is_kind(*INTERIOR)].sum(),
        }
        switched = self.column("in_switch")
        if switched.any():
            parts["switch"] = switched[readers].sum()
        return pd.Series(parts, dtype=float, name="explained")

    def _deviation(self, at: np.ndarray, columns: tuple[str, ...], rows: np.ndarray) -> float:
        """The largest deviation at these rows, where edge i is counted at row ``at[i]``."""
        flow = np.asarray(self._edges["flow"])
        terms = np.stack([self.column(name) for name in columns])
        total = np.bincount(at, flow, rows.size) + terms.sum(axis=0)
        size = np.bincount(at, np.abs(flow), rows.size) + np.abs(terms).sum(axis=0)
        off = np.abs(total - self.column("attribution"))[rows]
        scale = np.maximum(size, abs(self.value))[rows]
        # Where no term and no value gives a scale, the attribution itself is all there is.
        scale = np.where(scale > 0, scale, np.where(off > 0, off, 1.0))
        return float((off / scale).max(initial=0.0))

    def __repr__(self) -> str:
        label = self._meta["target"]["label"]
        return (
            f"Graph({len(self._nodes)} nodes, {len(self._edges)} edges: {label} = {self.value:.4g})"
        )
