"""Feature cards against plain loops over what the runs recorded."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("duckdb")

from attribution.coactivation import held_at
from attribution.places import Places
from attribution.vocabulary import feature_tokens
from circuits import build_features, load, read_cards
from circuits.card_statistics import EDGES
from circuits.cards import Cards
from replacement.model import ReplacementModel
from tests.families import tiny
from tests.samples import Case, random_run

TOP = 3
CASES = [
    Case("deep", "neurons | topk", attention="sae", streams=((1, "topk"), (2, "relu")), seed=16),
    Case("two layers", "topk gated", attention="lorsa rotary", seed=1),
]
PROMPTS = [[1, 2, 3], [3, 2, 1, 0], [5, 5, 5], [4, 4], [2, 2], [6, 7, 8, 1, 2], [3, 3, 3], [9]]
Seen = dict[tuple[int, str, int], list[tuple[float, int, int]]]


def model_of(name: str) -> Any:
    cases = {str(case): case for case in CASES}
    return random_run(cases[name]).model if name in cases else ReplacementModel(tiny(name))


NAMES = [*map(str, CASES), "Llama, grouped keys"]


def by_loops(model: Any) -> tuple[Seen, int]:
    """Every activation of every feature, with prompt and position, and the number of tokens."""
    found: Seen = defaultdict(list)
    n_tokens = 0
    for number, ids in enumerate(PROMPTS):
        run = model.run(ids)
        n_tokens += len(ids)
        for place in Places(model.weights).every:
            active = held_at(run, place).active
            nodes = zip(active.index, active.pos, active.activation, strict=True)
            for index, pos, amount in nodes:
                key = (place.layer, place.name, int(index))
                found[key].append((float(amount), number, int(pos)))
    return found, n_tokens


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_what_loops_find(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    cards = build_features(
        model, iter(PROMPTS), tmp_path / "cards", top=TOP, tokens=2, progress=False
    )
    seen, n_tokens = by_loops(model)
    features = cards.features
    assert len(features) == sum(place.n_features for place in Places(model.weights).every)
    everything = cards.sql("SELECT * FROM examples")
    for row in features.itertuples():
        amounts = seen.get((row.layer, row.sublayer, row.index), [])
        positive = [amount for amount, _, _ in amounts if amount > 0]
        assert row.fired == len(positive) and row.rate == pytest.approx(len(positive) / n_tokens)
        assert row.mean == pytest.approx(np.mean(positive) if positive else 0.0, rel=1e-9)
        sizes = [abs(amount) for amount, _, _ in amounts if amount]
        bins = np.searchsorted(EDGES, sizes, side="right") - 1
        assert row.histogram.tolist() == np.bincount(bins, minlength=len(EDGES)).tolist()
        peaks: dict[int, tuple[float, int]] = {}
        for amount, prompt, pos in amounts:
            if abs(amount) > abs(peaks.get(prompt, (0.0, 0))[0]):
                peaks[prompt] = (amount, pos)
        best = sorted(peaks.items(), key=lambda item: -abs(item[1][0]))[:TOP]
        mine = everything[everything["name"].eq(row.name)].sort_values("rank")
        np.testing.assert_allclose(mine["activation"], [one[0] for _, one in best], rtol=1e-9)
        assert mine["prompt"].tolist() == [prompt for prompt, _ in best]
        assert mine["pos"].tolist() == [one[1] for _, one in best]
        words = [f"[{PROMPTS[prompt][one[1]]}]" for prompt, one in best]
        assert mine["token"].tolist() == words


def test_tokens_are_those_of_the_model(tmp_path: Path) -> None:
    model = model_of(NAMES[1])
    cards = build_features(model, PROMPTS, tmp_path / "cards", tokens=4, progress=False)
    fired = cards.features.query("fired > 0")
    for name in fired["name"].iloc[[0, len(fired) // 2, -1]]:
        expected = feature_tokens(model, name, k=4)
        found = cards.card(name).tokens
        assert found["token_id"].tolist() == expected["token_id"].tolist()
        np.testing.assert_allclose(found["weight"], expected["weight"], rtol=1e-6, atol=1e-9)
    silent = cards.features.query("strongest == 0")
    assert len(silent) and not len(cards.card(silent["name"].iloc[0]).tokens)
    without = build_features(model, PROMPTS, tmp_path / "other", tokens=0, progress=False)
    assert not len(without.card(fired["name"].iloc[0]).tokens)


def test_contexts_are_the_text_around(tmp_path: Path) -> None:
    model = load("four-tasks")
    text = "When Mary and John went to the store, John gave a drink to"
    cards = build_features(model, [text], tmp_path / "cards", progress=False)
    whole = cards.sql("SELECT before || '[' || token || ']' || after AS text, pos FROM examples")
    tokens = model.run(text).tokens
    for row in whole.sample(50, random_state=0).itertuples():
        before = "".join(tokens[max(row.pos - 12, 0) : row.pos])
        after = "".join(tokens[row.pos + 1 : row.pos + 5])
        assert row.text == f"{before}[{tokens[row.pos]}]{after}"
    assert repr(cards.card("L3.f449")).startswith("L3.f449: fires on ")
    assert cards.card((3, 449)).feature["name"] == cards.card((3, "mlp", 449)).feature["name"]


def test_long_prompts_are_cut(tmp_path: Path) -> None:
    model = model_of(NAMES[1])  # 9 positions
    cards = build_features(model, [list(range(12)) * 2], tmp_path / "cards", progress=False)
    assert (cards.facts["prompts"], cards.facts["tokens"]) == (3, 24)


def test_nothing_half_written_and_cards_replaced(tmp_path: Path) -> None:
    model, path = model_of(NAMES[1]), tmp_path / "cards"

    def broken() -> Any:
        yield PROMPTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_features(model, broken(), path, progress=False)
    assert not list(tmp_path.iterdir())
    build_features(model, PROMPTS[:2], path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        build_features(model, broken(), path, progress=False)
    assert read_cards(path).facts["prompts"] == 2
    build_features(model, PROMPTS, path, progress=False)
    assert read_cards(path).facts["prompts"] == len(PROMPTS)
    assert [one.name for one in tmp_path.iterdir()] == ["cards"]


def test_the_same_corpus_gives_the_same_files(tmp_path: Path) -> None:
    model = model_of(NAMES[1])
    files = []
    for name in ("a", "b"):
        build_features(model, PROMPTS, tmp_path / name, progress=False)
        files.append({one.name: one.read_bytes() for one in (tmp_path / name).iterdir()})
    assert files[0] == files[1]


def test_cards_are_read_without_torch(tmp_path: Path) -> None:
    build_features(model_of(NAMES[1]), PROMPTS, tmp_path / "cards", progress=False)
    code = (
        "import sys; from circuits import read_cards; "
        f"print(len(read_cards({str(tmp_path / 'cards')!r}).features), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(Cards(tmp_path / "cards", {}).features)), "False"]
