"""Feature cards: what every feature did over a corpus, and what it says about words, on disk."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from attribution.coactivation import held_at
from attribution.global_weights import NUMBERS
from attribution.places import Place, Places
from attribution.vocabulary import excitations, promotions, token_name, token_writes
from circuits.card_statistics import EDGES, PlaceStatistics
from circuits.cards import FORMAT, Cards, is_cards, read_cards
from circuits.parquet import database, quoted, whole_folder, write_query, write_table
from replacement.prompts import token_ids_of

PART = 256
"""How many prompts wait for being written."""
BEFORE, AFTER = 12, 4
"""Tokens of an example's context."""
LONGEST = 512
"""Where positions are not learned, longer prompts are cut into pieces of so many tokens."""


def build_features(
    model: Any,
    prompts: Iterable[Any],
    path: str | Path,
    *,
    top: int = 10,
    tokens: int = 10,
    progress: bool = True,
) -> Cards:
    """Return the cards of all features, neurons and Lorsa heads of a model over a corpus.

    `prompts`: texts or lists of token ids, one at a time; those longer than the model's context are
    cut into pieces. `path`: a folder, which gets `features.parquet` (one row a feature: how often
    it fires, its mean and largest activation, a histogram), `examples.parquet` (the `top` prompts
    in which it was strongest, with the text around), `tokens.parquet` (`tokens` words that it
    promotes, suppresses, is excited and inhibited by, of features that fired; 0 leaves them out:
    with a large vocabulary they take the longest) and `cards.json`. It is written under another
    name and renamed when whole; cards that are there are replaced.

    To fire is to have an activation above 0; examples and histograms go by |activation|, so that
    what gated neurons do below 0 is seen too. Memory does not grow with the corpus.

    Raises ValueError for no prompts, counts that make no sense, or a path that holds anything else.

    >>> import tempfile
    >>> from circuits import build_features, load
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     texts = ["When Mary and John went to the store, John gave a drink to"]
    ...     cards = build_features(load("four-tasks"), texts, f"{folder}/cards", progress=False)
    ...     print(len(cards.features), cards.examples("L3.f449")["token"].tolist())
    5120 [' to']
    """
    for name, count, least in (("top", top, 1), ("tokens", tokens, 0)):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise ValueError(f"build_features({name}={count!r}): a whole number from {least}.")
    path = Path(path)
    if path.exists() and not is_cards(path):
        raise ValueError(
            f"build_features: {path} is there and holds no feature cards. Give a new folder; cards "
            "that are there would be replaced."
        )
    places = Places(model.weights)
    found = [PlaceStatistics(place.n_features, top, model.device) for place in places.every]
    with whole_folder(path) as draft, database(draft) as connection, torch.no_grad():
        counts = _read_corpus(connection, model, places, found, prompts, draft, progress)
        _write_features(connection, places, found, counts[1], draft)
        _write_examples(connection, places, found, draft)
        if tokens:
            _write_tokens(connection, model, places, found, tokens, draft, progress)
        for part in draft.glob("prompts-*.parquet"):
            part.unlink()
        facts = {
            "format": FORMAT,
            "version": 1,
            "model": model.name,
            "layers": model.read_as,
            "prompts": counts[0],
            "tokens": counts[1],
            "edges": EDGES,
        }
        (draft / "cards.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return read_cards(path)


def _read_corpus(
    connection: duckdb.DuckDBPyConnection,
    model: Any,
    places: Places,
    found: list[PlaceStatistics],
    prompts: Iterable[Any],
    draft: Path,
    progress: bool,
) -> tuple[int, int]:
    """Run all prompts; return how many there were, and their tokens."""
    pieces = _pieces(model, tqdm(prompts, desc="prompts", disable=not progress))
    n_prompts = n_tokens = 0
    while part := list(itertools.islice(pieces, PART)):
        rows = []
        for ids in part:
            run = model.run(ids)
            for place, statistics in zip(places.every, found, strict=True):
                statistics.add(held_at(run, place).active, n_prompts)
            rows.append({"prompt": n_prompts, "words": run.tokens})
            n_prompts, n_tokens = n_prompts + 1, n_tokens + len(ids)
        write_table(connection, pd.DataFrame(rows), draft / f"prompts-{n_prompts:09}.parquet")
    if not n_prompts:
        raise ValueError("build_features: there are no prompts. Give one text or more.")
    return n_prompts, n_tokens


def _pieces(model: Any, prompts: Iterable[Any]) -> Iterator[list[int]]:
    """Token ids of every prompt, cut where it is longer than what the model takes."""
    size = model.n_context or LONGEST
    for prompt in prompts:
        ids = token_ids_of(
            prompt, model.tokenizer, d_vocab=model.weights.d_vocab, n_context=None
        ).tolist()
        yield from (ids[start : start + size] for start in range(0, len(ids), size))


def _write_features(
    connection: duckdb.DuckDBPyConnection,
    places: Places,
    found: list[PlaceStatistics],
    n_tokens: int,
    draft: Path,
) -> None:
    parts = []
    for place, statistics in zip(places.every, found, strict=True):
        fired = statistics.fired.cpu().numpy()
        parts.append(
            place.rows(np.arange(place.n_features)).assign(
                fired=fired,
                rate=fired / n_tokens,
                mean=statistics.total.cpu().numpy() / np.maximum(fired, 1),
                strongest=statistics.activation[:, 0].cpu().numpy(),
                histogram=list(statistics.histogram.cpu().numpy()),
            )
        )
    write_table(connection, pd.concat(parts, ignore_index=True), draft / "features.parquet")


def _write_examples(
    connection: duckdb.DuckDBPyConnection,
    places: Places,
    found: list[PlaceStatistics],
    draft: Path,
) -> None:
    parts = []
    for place, statistics in zip(places.every, found, strict=True):
        activation = statistics.activation.cpu().numpy()
        row, rank = np.nonzero(activation)
        parts.append(
            place.rows(row).assign(
                rank=rank,
                activation=activation[row, rank],
                prompt=statistics.prompt.cpu().numpy()[row, rank],
                pos=statistics.pos.cpu().numpy()[row, rank],
            )
        )
    connection.register("peaks", pd.concat(parts, ignore_index=True))
    words = "list_aggregate(list_slice(words, {}, {}), 'string_agg', '')"
    before = words.format(f"greatest(pos - {BEFORE} + 1, 1)", "pos")
    after = words.format("pos + 2", f"pos + 1 + {AFTER}")
    write_query(
        connection,
        f"SELECT peaks.*, words[pos + 1] AS token, coalesce({before}, '') AS before, "
        f"coalesce({after}, '') AS after "
        f"FROM peaks JOIN read_parquet({quoted(draft / 'prompts-*.parquet')}) USING (prompt) "
        'ORDER BY layer, sublayer, "index", rank',
        draft / "examples.parquet",
    )
    connection.unregister("peaks")


def _write_tokens(
    connection: duckdb.DuckDBPyConnection,
    model: Any,
    places: Places,
    found: list[PlaceStatistics],
    count: int,
    draft: Path,
    progress: bool,
) -> None:
    size = max(1, NUMBERS // model.weights.d_vocab)
    names = np.array([token_name(model, one) for one in range(model.weights.d_vocab)], dtype=object)
    embedding, number = token_writes(model), 0
    bar = tqdm(desc="tokens", disable=not progress, total=sum(len(one.fired) for one in found))
    for place, statistics in zip(places.every, found, strict=True):
        seen = (statistics.activation[:, 0] != 0).nonzero()[:, 0]
        for index in seen.split(size):
            table = _tokens_of(places, place, index, embedding, count, names)
            write_table(connection, table, draft / f"tokens-{number:06}.parquet")
            number += 1
            bar.update(len(index))
    bar.close()
    if not number:
        return
    parts = draft / "tokens-*.parquet"
    write_query(
        connection, f"SELECT * FROM read_parquet({quoted(parts)})", draft / "tokens.parquet"
    )
    for part in draft.glob("tokens-*.parquet"):
        part.unlink()


def _tokens_of(
    places: Places,
    place: Place,
    index: torch.Tensor,
    embedding: torch.Tensor,
    count: int,
    names: np.ndarray,
) -> pd.DataFrame:
    tables = [(("promoted", "suppressed"), promotions(places, place, index))]
    excited = excitations(places, place, index, embedding)
    if excited is not None:
        tables.append((("excited", "inhibited"), excited))
    parts = []
    for relations, weights in tables:
        for relation, sign in zip(relations, (1, -1), strict=True):
            best = (sign * weights).topk(min(count, weights.shape[1]), dim=1).indices
            row, rank = np.indices(tuple(best.shape)).reshape(2, -1)
            number = best.cpu().numpy().ravel()
            part = place.rows(index.cpu().numpy()[row]).assign(
                relation=relation,
                rank=rank,
                token=names[number],
                token_id=number,
                weight=weights.gather(1, best).double().cpu().numpy().ravel(),
            )
            parts.append(part)
    return pd.concat(parts, ignore_index=True)
