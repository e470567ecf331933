"""Two graphs side by side: what both have, what only one has, and how much they overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from graphs.graph import Graph
from graphs.names import row_names
from graphs.nodes import INTERIOR, SOURCES

POOLED = "pooled"
_NODE = ["kind", "layer", "sublayer", "place", "index"]
_EDGE = ["source", "target", "via"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What two graphs share, and what only one of them has."""

    nodes: pd.DataFrame
    """kind, layer, sublayer, place (position or role), index, name, where ("both", "a", "b"), and
    the attribution in a and in b, 0 where there is none."""
    edges: pd.DataFrame
    """source, target (names), via, where, and the flow in a and in b."""
    scores: pd.DataFrame
    """Rows nodes (heads, features, …) and edges; columns both, only_a, only_b, jaccard, weighted
    and cosine. See `compare`."""

    @property
    def shared(self) -> pd.DataFrame:
        """The nodes that both have, strongest first."""
        return self._nodes_in("both")

    @property
    def only_a(self) -> pd.DataFrame:
        """The nodes that only the first has, strongest first."""
        return self._nodes_in("a")

    @property
    def only_b(self) -> pd.DataFrame:
        """The nodes that only the second has, strongest first."""
        return self._nodes_in("b")

    def _nodes_in(self, where: str) -> pd.DataFrame:
        here: Any = self.nodes[self.nodes["where"].eq(where)]
        strength = here[["a", "b"]].abs().max(axis=1)
        order = strength.sort_values(ascending=False, kind="stable").index
        return here.loc[order].reset_index(drop=True)

    def __repr__(self) -> str:
        lines = [self.scores.round(4).to_string()]
        for title, part in (
            ("both", self.shared),
            ("only a", self.only_a),
            ("only b", self.only_b),
        ):
            inner: Any = part[part["kind"].isin(INTERIOR)].head(3)
            if len(inner):
                shown = inner[["name", "a", "b"]].round(4).to_string(index=False, header=False)
                lines += [f"strongest, {title} (name, in a, in b):", shown]
        return "\n".join(lines)


def compare(a: Graph, b: Graph, *, roles: Any = None) -> Comparison:
    """The comparison of two graphs of one model, nodes laid together by where they are.

    ``roles``: how positions meet. None: by the names of roles where both graphs are means over
    prompts, else by position, for prompts of one length. Two mappings ``(of_a, of_b)`` from names
    to positions (or lists of them): by name, the positions of one name added up and all without a
    name together. "pooled": not at all, every part of the model once.

    Scores, for heads, features, neurons and Lorsa heads, and for edges (of the rows with a number
    that is not 0): ``jaccard`` is shared / all; ``weighted`` the sum of min over the sum of max of
    both sides' shares of their own sum of |number|, numbers of opposite sign sharing nothing;
    ``cosine`` that of the signed numbers. NaN where there is nothing on either side. Tokens,
    positions, leaves and the target have rows, but do not count in the scores of nodes.

    Raises TypeError or ValueError for what is no graph, other models or layers, prompts that differ
    in length, and names that make no sense.

    >>> from graphs.example import worked_example
    >>> compare(worked_example(), worked_example()).scores.loc["nodes", "jaccard"].item()
    1.0
    """
    for name, graph in (("a", a), ("b", b)):
        if not isinstance(graph, Graph):
            raise TypeError(f"compare: {name} is a {type(graph).__name__}; a circuit is needed.")
    _check_same_model(a, b)
    tables = [
        _laid(graph, places) for graph, places in zip((a, b), _places(a, b, roles), strict=True)
    ]
    nodes = _joined([nodes for nodes, _ in tables], [*_NODE, "name"], "attribution")
    edges = _joined([edges for _, edges in tables], _EDGE, "flow")
    interior: Any = nodes[nodes["kind"].isin(INTERIOR)]
    scores = {"nodes": _scores(interior), "edges": _scores(edges)}
    return Comparison(nodes, edges, pd.DataFrame(scores).T)


def _check_same_model(a: Graph, b: Graph) -> None:
    for name in ("model", "layers"):
        one, other = a.meta.get(name), b.meta.get(name)
        if one != other:
            raise ValueError(
                f"compare: {name} is {one!r:.120} in a and {other!r:.120} in b. Circuits of one "
                "model, read through the same layers, have nodes in common; trace both so."
            )


def _places(a: Graph, b: Graph, roles: Any) -> list[list[Any]]:
    """What every position of either is called."""
    sizes = [len(graph.meta["tokens"]) for graph in (a, b)]
    if roles == POOLED:
        return [[""] * size for size in sizes]
    if roles is None:
        named: list[Any] = [graph.meta.get("roles") for graph in (a, b)]
        if all(isinstance(names, list) for names in named):
            return [list(names) for names in named]
        if any(isinstance(names, list) for names in named) or sizes[0] != sizes[1]:
            what = [
                f"{len(n)} roles" if isinstance(n, list) else f"{size} tokens"
                for n, size in zip(named, sizes, strict=True)
            ]
            raise ValueError(
                f"compare: {what[0]} in a and {what[1]} in b, so positions do not meet. Give "
                'roles=({"END": -1}, {"END": -1}), positions by name in a and in b, or '
                f'roles="{POOLED}".'
            )
        return [list(range(size)) for size in sizes]
    if not isinstance(roles, Sequence) or isinstance(roles, str) or len(roles) != 2:
        raise TypeError(
            f'compare(roles={roles!r:.80}): two mappings from names to positions, "{POOLED}", or '
            "None."
        )
    return [_named(one, size, side) for one, size, side in zip(roles, sizes, "ab", strict=True)]


def _named(given: Any, size: int, side: str) -> list[str]:
    if not isinstance(given, Mapping):
        raise TypeError(f"compare: the roles of {side} are {given!r:.60}; give positions by name.")
    found = [""] * size
    for name, places in given.items():
        for place in places if isinstance(places, list | tuple) else [places]:
            if not isinstance(place, int) or not -size <= place < size:
                raise ValueError(
                    f"compare: role {name!r} of {side} is at position {place!r}, and there are "
                    f"{size}: 0 to {size - 1}, or -1 for the last."
                )
            found[place] = str(name)
    return found


def _laid(graph: Graph, places: list[Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attributions and flows by what nodes are and where; those of one place added up."""
    nodes = graph.nodes
    named = np.array([*places, -1], dtype=object)[nodes["pos"].to_numpy()]
    where = np.where(nodes["kind"].eq("target"), "", named)
    index = nodes["index"].where(~nodes["kind"].isin(SOURCES), -1)
    rows = nodes[["kind", "layer", "sublayer"]].assign(place=where, index=index)
    rows["name"] = _names(rows)
    rows["attribution"] = nodes["attribution"]
    edges = graph.edges
    for end in ("source", "target"):
        edges[end] = rows["name"].loc[edges[end]].to_numpy()
    both: Any = rows.groupby([*_NODE, "name"], sort=False)["attribution"].sum()
    flows: Any = edges.groupby(_EDGE, sort=False)["flow"].sum()
    return both.reset_index(), flows.reset_index()


def _names(rows: pd.DataFrame) -> list[str]:
    """Names with the place behind them; of what reads nothing besides, the kind alone."""
    plain = rows[["kind", "layer", "sublayer", "index"]].assign(pos=-1, token="")
    named = row_names(plain)
    kinds = rows["kind"].tolist()
    texts = [
        kind if kind in (*SOURCES, "target") else name
        for kind, name in zip(kinds, named, strict=True)
    ]
    places = rows["place"].tolist()
    return [
        f"{text}@{place}" if place not in ("", -1) else text
        for text, place in zip(texts, places, strict=True)
    ]


def _joined(tables: list[pd.DataFrame], keys: list[str], column: str) -> pd.DataFrame:
    a, b = (table.rename(columns={column: side}) for table, side in zip(tables, "ab", strict=True))
    both: Any = a.merge(b, on=keys, how="outer", indicator="where", sort=False)
    names = {"both": "both", "left_only": "a", "right_only": "b"}
    both["where"] = both["where"].astype(str).map(names)
    both[["a", "b"]] = both[["a", "b"]].fillna(0.0)
    return both[[*keys, "where", "a", "b"]]


def _scores(rows: pd.DataFrame) -> dict[str, int | float]:
    a, b = rows["a"].to_numpy(), rows["b"].to_numpy()
    both = int(((a != 0) & (b != 0)).sum())
    every = int(((a != 0) | (b != 0)).sum())
    one, other = (part / max(np.abs(part).sum(), 1e-300) for part in (a, b))
    least = np.where(one * other > 0, np.minimum(np.abs(one), np.abs(other)), 0.0)
    largest = np.where(
        one * other < 0, np.abs(one) + np.abs(other), np.maximum(np.abs(one), np.abs(other))
    )
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return {
        "both": both,
        "only_a": int(((a != 0) & (b == 0)).sum()),
        "only_b": int(((a == 0) & (b != 0)).sum()),
        "jaccard": both / every if every else float("nan"),
        "weighted": float(least.sum() / largest.sum()) if every else float("nan"),
        "cosine": float(one @ other / lengths) if lengths else float("nan"),
    }
