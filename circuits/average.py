"""The circuit of many prompts: means that still add up, their spread, how many have them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd

from circuits.circuit import Circuit
from circuits.parquet import database, quoted, read_table, write_query
from circuits.roles import ordered
from circuits.summing import KEYS, SUMMED
from graphs.graph import Graph
from graphs.nodes import INTERIOR, KINDS, LEAVES, SOURCES, SUBLAYERS, edge_table, node_table
from graphs.pruning import prune

if TYPE_CHECKING:
    from circuits.average_faithfulness import AverageFaithfulness

ORDER = (SOURCES, INTERIOR, ("target",), LEAVES)
"""Rows of the node table, as a trace orders them."""
_NO_RUN = (
    "this circuit is the mean of {count} prompts and belongs to none of them. Trace one of them "
    "for that, or lay the nodes into one by circuit.nodes_in(positions of its roles)."
)


class AverageCircuit(Circuit):
    """The mean of the circuits of many prompts, laid together by the roles of positions.

    A circuit like any other (tables, `prune`, `paths`, `save`, pictures), whose positions are roles
    and whose sums hold as those of every prompt do. Columns besides: `share` of prompts that have a
    node or edge, and `spread`, the standard deviation of attribution or flow over all prompts, 0
    where a prompt lacks it. Made by `trace_many`, or `AverageCircuit.read(folder)`.
    """

    def __init__(
        self, data: Graph, nodes: pd.DataFrame, edges: pd.DataFrame, prompts: pd.DataFrame
    ) -> None:
        super().__init__(data)
        self._of_nodes, self._of_edges, self._prompts = nodes, edges, prompts

    @classmethod
    def read(cls, folder: str | Path, *, min_share: int | float = 0.05) -> "AverageCircuit":
        """Return the average in a folder that `trace_many` filled.

        Nodes and edges of fewer than `min_share` of all prompts are booked as pruned. Raises
        FileNotFoundError or ValueError for a folder that holds none.
        """
        return average_of(Path(folder), min_share)

    @property
    def nodes(self) -> pd.DataFrame:
        """The node table, with share and spread; `pos` counts roles, `token` names them."""
        return self.data.nodes.join(self._of_nodes)

    @property
    def edges(self) -> pd.DataFrame:
        """The edge table, with share and spread."""
        return self.data.edges.merge(self._of_edges, on=["source", "target", "via"], how="left")

    @property
    def prompts(self) -> pd.DataFrame:
        """One row a prompt: label, value, what it is made of, sizes, checks, positions of roles."""
        return self._prompts.copy(deep=False)

    def prune(self, share: int | float = 0.8) -> "AverageCircuit":
        """Return the circuit of its strongest nodes and edges; see `Circuit.prune`."""
        small = prune(self.data, share)
        return AverageCircuit(small, self._of_nodes, self._of_edges, self._prompts)

    def nodes_in(self, roles: Mapping[str, Any]) -> pd.DataFrame:
        """Return its heads, features, … as they would lie in a prompt with roles at positions.

        `roles`: position (or several) by name. Roles that the prompt does not have, and the rest,
        have no rows. Columns: kind, layer, sublayer, pos, index, and `node`, the number here.
        """
        table = self.data.nodes.loc[self.data.is_kind(*INTERIOR)]
        names = self.meta["roles"]
        parts = []
        for name, places in roles.items():
            for pos in places if isinstance(places, list | tuple) else [places]:
                here = table.loc[table["pos"].eq(names.index(name))] if name in names else table[:0]
                parts.append(here.assign(pos=pos))
        columns = ["kind", "layer", "sublayer", "pos", "index"]
        whole = pd.concat(parts) if parts else table[:0]
        return whole[columns].reset_index()

    def faithfulness(
        self,
        prompts: Iterable[Any],
        reference: Iterable[Any] | None = None,
        *,
        model: Any = None,
        roles: Any = None,
        shares: Any = None,
        progress: bool = True,
    ) -> "AverageFaithfulness":
        """Return what of the targets of prompts is left with only this circuit, and without it.

        In each prompt, in the real model, everything that is not a node of the circuit at a
        position of its role is set to its mean over `reference` at that role, errors and features
        that are not active too. Errors are nodes of the circuit where they are as strong as its
        threshold's share of the value; a node of the circuit that is not active stays so.

        `prompts` and `reference`: targets or rows as in `trace_many`, with `model` and `roles` as
        there; best ones that the circuit was not made of. `reference` is `prompts` by default.
        `shares` of the circuit's nodes, strongest first, make the curve.

        Raises TypeError or ValueError for prompts of another model, contrasts, or roles of which
        there is no mean.

        >>> from circuits import load, trace_many
        >>> model = load("four-tasks", attention="heads")
        >>> text = "When {} and {} went to the store, {} gave a drink to"
        >>> def rows(names):
        ...     return [
        ...         {
        ...             "prompt": text.format(a, b, b),
        ...             "explain": f" {a}",
        ...             "minus": f" {b}",
        ...             "roles": {"IO": 2, "S1": 4, "S2": 10, "END": 14},
        ...         }
        ...         for one, other in names
        ...         for a, b in ((one, other), (other, one))
        ...     ]
        >>> seen = rows([("Mary", "John"), ("Alice", "Peter"), ("Lucy", "Kevin")])
        >>> mean = trace_many(seen, model=model, progress=False)
        >>> held_out = rows([("Anna", "Paul"), ("Laura", "Tom")])
        >>> result = mean.faithfulness(held_out, model=model, progress=False)
        >>> result.faithfulness > 0.5 > abs(result.complement_share)
        True
        """
        from circuits.average_faithfulness import average_faithfulness

        return average_faithfulness(
            self,
            prompts,
            reference,
            model=model,
            roles=roles,
            shares=shares,
            progress=progress,
        )

    def attach(self, model: Any) -> NoReturn:
        """Raise ValueError: there is no one run to attach."""
        del model
        raise ValueError(f"circuit.attach: {_NO_RUN.format(count=self.meta['many']['prompts'])}")

    def _attached(self, method: str) -> NoReturn:
        count = self.meta["many"]["prompts"]
        raise ValueError(f"circuit.{method}(...): {_NO_RUN.format(count=count)}")


def merge(folder: Path) -> None:
    """Write `nodes.parquet`, `edges.parquet` and `prompts.parquet`: all blocks of a folder joined.

    Sums are taken in the order of the blocks, by a database that spills to disk: their number
    does not matter, and the same blocks give the same files.
    """
    blocks = folder / "blocks" / "block-*"
    with database(folder) as connection:
        for name, keys, kept in (
            ("nodes", ["id"], KEYS),
            ("edges", ["source", "target", "via"], []),
        ):
            total = [*(SUMMED if name == "nodes" else ["flow"]), "square"]
            columns = [
                *keys,
                *(f'first("{one}") AS "{one}"' for one in kept),
                "sum(n)::BIGINT AS n",
                *(f'sum("{one}") AS "{one}"' for one in total),
            ]
            by = ", ".join(keys)
            _replaced(
                connection,
                f"SELECT {', '.join(columns)} FROM read_parquet("
                f"{quoted(blocks / f'{name}.parquet')}) GROUP BY {by} ORDER BY {by}",
                folder / f"{name}.parquet",
            )
        _replaced(
            connection,
            f"SELECT * FROM read_parquet({quoted(blocks / 'prompts.parquet')}) ORDER BY number",
            folder / "prompts.parquet",
        )


def _replaced(connection: Any, query: str, path: Path) -> None:
    draft = path.with_name(f".{path.name}.part")
    write_query(connection, query, draft)
    draft.replace(path)


def average_of(folder: Path, min_share: int | float) -> AverageCircuit:
    """Return the mean of what `merge` wrote; nodes and edges of too few prompts as pruned."""
    if (
        isinstance(min_share, bool)
        or not isinstance(min_share, int | float)
        or not 0 <= min_share <= 1
    ):
        raise ValueError(
            f"min_share={min_share!r}: the share of prompts that must have a node or edge, 0 (keep "
            "all) to 1. The default is 0.05."
        )
    asked = folder / "asked.json"
    if not asked.is_file() or not (folder / "prompts.parquet").is_file():
        raise FileNotFoundError(
            f"{folder}: holds no average of circuits. Give a folder that trace_many(folder=...) "
            "wrote to the end."
        )
    facts = json.loads(asked.read_text(encoding="utf-8"))
    prompts = read_table(folder / "prompts.parquet")
    count, least = len(prompts), min_share * len(prompts)
    roles = _roles(prompts, facts["rest"])
    nodes: Any = _in_order(read_table(folder / "nodes.parquet"), roles)
    kept = nodes["kind"].isin([*SOURCES, "target"]) | nodes["n"].ge(least)
    with database(folder) as connection:
        connection.register("kept", nodes.loc[kept, ["id"]])
        path = quoted(folder / "edges.parquet")
        stays = f"n >= {least} AND source IN (FROM kept) AND target IN (FROM kept)"
        edges: Any = connection.execute(
            f"SELECT * FROM read_parquet({path}) WHERE {stays} ORDER BY source, target, via"
        ).df()
        cut = {
            side: connection.execute(
                f"SELECT {side} AS id, sum(flow) AS cut FROM read_parquet({path}) "
                f"WHERE NOT ({stays}) GROUP BY {side}"
            ).df()
            for side in ("source", "target")
        }
    for side, column in (("target", "in_pruned"), ("source", "out_pruned")):
        nodes[column] += nodes["id"].map(cut[side].set_index("id")["cut"]).fillna(0.0)
    nodes = nodes[kept].reset_index(drop=True)
    number = pd.Series(nodes.index, index=nodes["id"])
    edges = edges.assign(
        source=number.loc[edges["source"]].to_numpy(), target=number.loc[edges["target"]].to_numpy()
    ).sort_values(["target", "source", "via"], kind="stable", ignore_index=True)
    data = _graph(nodes, edges, prompts, roles, {**facts, "min_share": min_share})
    of_edges = edges[["source", "target", "via"]].assign(**_statistics(edges, "flow", count))
    of_nodes = pd.DataFrame(_statistics(nodes, "attribution", count), index=data.nodes.index)
    return AverageCircuit(data, of_nodes, of_edges, prompts.drop(columns="digest"))


def _roles(prompts: pd.DataFrame, rest: str | None) -> list[str]:
    """All roles, from left to right."""
    sums: dict[str, tuple[int, int]] = {}
    for row in prompts["roles"]:
        for pos, name in enumerate(json.loads(row)):
            total, count = sums.get(name, (0, 0))
            sums[name] = (total + pos, count + 1)
    sums.pop("", None)
    return ordered(sums, rest)


def _in_order(nodes: pd.DataFrame, roles: list[str]) -> pd.DataFrame:
    """Nodes in the order of a trace's table, with the number of their role."""
    group: Any = {kind: place for place, kinds in enumerate(ORDER) for kind in kinds}
    pos: Any = {name: place for place, name in enumerate(roles)}
    return (
        nodes.assign(
            pos=nodes["role"].map(pos).fillna(-1).astype(np.int64),
            _group=nodes["kind"].map(group),
            _kind=nodes["kind"].map(KINDS.index),
            _part=nodes["sublayer"].map(SUBLAYERS.index),
        )
        .sort_values(["_group", "layer", "_part", "_kind", "pos", "index"], ignore_index=True)
        .drop(columns=["_group", "_kind", "_part"])
    )


def _statistics(table: pd.DataFrame, name: str, count: int) -> dict[str, np.ndarray]:
    mean = table[name].to_numpy() / count
    spread = np.sqrt(np.maximum(table["square"].to_numpy() / count - mean**2, 0.0))
    return {"share": table["n"].to_numpy() / count, "spread": spread}


def _graph(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    prompts: pd.DataFrame,
    roles: list[str],
    facts: dict[str, Any],
) -> Graph:
    """The means as a graph: what a role is called stands where a token's text stands in others."""
    count = len(prompts)
    columns: dict[str, Any] = {name: nodes[name] / count for name in SUMMED}
    columns["activation"] = nodes["activation"] / nodes["n"]
    texts = np.array([*(f" {name}" for name in roles), ""], dtype=object)
    pos = nodes["pos"].to_numpy()
    table = node_table(
        {
            **{name: nodes[name].tolist() for name in ("kind", "layer", "sublayer", "index")},
            **{name: column.to_numpy() for name, column in columns.items()},
            "pos": pos,
            "token": texts[pos].tolist(),
        }
    )
    target = nodes["kind"].eq("target").to_numpy().argmax()
    labels = sorted(set(prompts["label"]))
    label = labels[0] if len(labels) == 1 else f"mean of {count} targets"
    meta = {
        **facts["of_trace"],
        "tokens": [f" {name}" for name in roles],
        "roles": roles,
        "prompt": None,
        "target": {
            "label": label,
            "value": float(nodes["attribution"].to_numpy()[target] / count),
            "pos": int(pos[target]) if pos[target] >= 0 else None,
        },
        "many": {
            "prompts": count,
            "rest": facts["rest"],
            "min_share": facts["min_share"],
            "labels": labels[:5],
        },
        "checks": {"closure": float(np.max(prompts["closure"].to_numpy()))},
    }
    made = Graph(
        table,
        edge_table(
            edges["source"].to_numpy(),
            edges["target"].to_numpy(),
            edges["flow"].to_numpy() / count,
            via=edges["via"].tolist(),
        ),
        meta,
    )
    return made.noted(checks={**meta["checks"], "conservation": made.conservation()})
