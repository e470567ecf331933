"""The short form of feature cards that a circuit keeps for its nodes."""

from typing import Any

import pandas as pd

from circuits.cards import Cards
from graphs.graph import Graph
from graphs.names import row_names
from graphs.nodes import INTERIOR

EXAMPLES, TOKENS = 3, 5


def of_nodes(graph: Graph, cards: Any) -> dict[str, dict[str, Any]]:
    """Return {node: card} for the nodes of a graph that have a card.

    A card: "name", "rate" (share of tokens on which it fires), "strongest", "examples"
    [[before, token, after, activation], …] and "promoted" and "suppressed" [[token, weight], …],
    the strongest few. Raises TypeError for what are no cards, and ValueError for cards of another
    model or of other layers.
    """
    if not isinstance(cards, Cards):
        raise TypeError(
            f"detailed(cards={cards!r:.60}): is a {type(cards).__name__}. Give "
            "circuits.read_cards(folder)."
        )
    for what in ("model", "layers"):
        mine, given = graph.meta.get(what), cards.facts.get(what)
        if mine != given:
            raise ValueError(
                f"detailed(cards=...): {cards.path} is of {what} {given!r:.100}, the circuit of "
                f"{mine!r:.100}. Build cards of the circuit's own model: build_features(model, "
                "prompts, folder)."
            )
    rows = graph.nodes.loc[graph.is_kind(*INTERIOR)]
    names = row_names(rows.assign(pos=-1, token=""))
    wanted = [sorted(set(names))]
    features = _asked(cards, "features", wanted).set_index("name")[["rate", "strongest"]]
    examples = _grouped(_asked(cards, "examples", wanted, EXAMPLES))
    tokens = _grouped(_asked(cards, "tokens", wanted, TOKENS))
    found: dict[str, dict[str, Any]] = {}
    for node, name in zip(rows.index.tolist(), names, strict=True):
        if name in features.index:
            said = tokens.get(name)
            found[str(node)] = {
                "name": name,
                **{what: float(features.at[name, what]) for what in ("rate", "strongest")},
                "examples": _lists(examples.get(name), ["before", "token", "after", "activation"]),
                **{
                    relation: _lists(said, ["token", "weight"], relation)
                    for relation in ("promoted", "suppressed")
                },
            }
    return found


def _asked(
    cards: Cards, table: str, names: list[list[str]], most: int | None = None
) -> pd.DataFrame:
    """The rows of these features; none where the cards were built without that table."""
    if not (cards.path / f"{table}.parquet").is_file():
        return pd.DataFrame({"name": [], "relation": []})
    best = "" if most is None else f" AND rank < {most} ORDER BY rank"
    return cards.sql(f"SELECT * FROM {table} WHERE name IN (SELECT unnest(?)){best}", names)


def _grouped(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(name): part for name, part in rows.groupby("name")}


def _lists(rows: Any, columns: list[str], relation: str | None = None) -> list[list[Any]]:
    """Rows, or those of a relation, as plain lists."""
    if rows is None:
        return []
    if relation is not None:
        rows = rows[rows["relation"].eq(relation)]
    return rows[columns].to_numpy(dtype=object).tolist()
