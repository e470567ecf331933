"""Feature cards read from a folder of parquet files: tables, one card, any SQL. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from circuits.parquet import quoted

FORMAT = "linear-circuits feature cards"
TABLES = ("features", "examples", "tokens")


@dataclass(frozen=True, eq=False)
class Card:
    """One feature: what it did over the corpus, and which words it has to do with."""

    feature: pd.Series
    examples: pd.DataFrame
    tokens: pd.DataFrame
    histogram: pd.Series
    """How many activations there were, by the |activation| from which a bin goes."""

    def __repr__(self) -> str:
        one = self.feature
        lines = [
            f"{one['name']}: fires on {one['rate']:.3%} of tokens, mean {one['mean']:.4g}, "
            f"strongest {one['strongest']:.4g}"
        ]
        for relation, part in self.tokens.groupby("relation", sort=False):
            lines.append(f"{relation}: " + ", ".join(repr(token) for token in part["token"]))
        rows: Any = self.examples.itertuples()
        for row in rows:
            lines.append(f"{row.activation:10.4g}  {row.before}[{row.token}]{row.after}")
        return "\n".join(lines)


class Cards:
    """The cards of a model's features over a corpus, in a folder that `build_features` wrote."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts

    @property
    def features(self) -> pd.DataFrame:
        """One row a feature: kind, layer, sublayer, index, name, fired, rate, mean, strongest,
        histogram (counts by `facts["edges"]`)."""
        return self.sql('SELECT * FROM features ORDER BY layer, sublayer, "index"')

    def examples(self, feature: Any) -> pd.DataFrame:
        """Return the prompts in which a feature was strongest: activation, prompt, pos, token, and
        the text before and after it. Named as in `card`."""
        return self._of("examples", self._row(feature)).sort_values("rank", ignore_index=True)

    def card(self, feature: Any) -> Card:
        """Return all there is on one feature, given by name ("L1.f18") or by numbers.

        Numbers are (layer, index), of an MLP, or (layer, sublayer, index). Raises KeyError for a
        feature without a card.
        """
        row = self._row(feature)
        counts = list(row["histogram"])
        histogram = pd.Series(counts, index=pd.Index(self.facts["edges"], name="from"))
        return Card(row, self.examples(feature), self._of("tokens", row), histogram)

    def sql(self, query: str, values: list[Any] | None = None) -> pd.DataFrame:
        """Return what a DuckDB query over the tables features, examples and tokens gives."""
        with duckdb.connect() as connection:
            for name in TABLES:
                file = self.path / f"{name}.parquet"
                if file.is_file():
                    connection.execute(
                        f"CREATE VIEW {name} AS SELECT * FROM read_parquet({quoted(file)})"
                    )
            return connection.execute(query, values or []).df()

    def _row(self, feature: Any) -> pd.Series:
        where, values = '"name" = ?', [feature]
        if isinstance(feature, tuple) and len(feature) in (2, 3):
            layer, *sublayer, index = feature
            where, values = (
                'layer = ? AND sublayer = ? AND "index" = ?',
                [layer, *(sublayer or ["mlp"]), index],
            )
        found = self.sql(f"SELECT * FROM features WHERE {where}", values)
        if len(found) != 1:
            raise KeyError(
                f"{feature!r:.60}: no card of that name in {self.path}. Give a name like "
                f"{self.sql('SELECT name FROM features LIMIT 1')['name'].iloc[0]!r}, (layer, "
                "index) of an MLP, or (layer, sublayer, index)."
            )
        return found.iloc[0]

    def _of(self, table: str, row: pd.Series) -> pd.DataFrame:
        if not (self.path / f"{table}.parquet").is_file():
            return pd.DataFrame({"relation": []})
        found = self.sql(f'SELECT * FROM {table} WHERE "name" = ?', [row["name"]])
        return found.drop(columns=["kind", "layer", "sublayer", "index", "name"])

    def __repr__(self) -> str:
        facts = self.facts
        return (
            f"Cards({facts['model']}: {len(self.features)} features over {facts['prompts']} "
            f"prompts, {facts['tokens']} tokens)"
        )


def is_cards(path: Path) -> bool:
    """Whether a folder holds feature cards."""
    return _facts(path) is not None


def read_cards(path: str | Path) -> Cards:
    """Return the cards that `build_features` wrote to a folder, without a model and without torch.

    Raises FileNotFoundError or ValueError for a folder that is missing or holds none.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: there is no such folder. Make one by build_features, at "
            "the shell `circuits features build`."
        )
    facts = _facts(path)
    if facts is None:
        raise ValueError(
            f"{path}: holds no feature cards (a cards.json beside parquet files). Give a folder "
            "that build_features wrote."
        )
    return Cards(path, facts)


def _facts(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((path / "cards.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None
