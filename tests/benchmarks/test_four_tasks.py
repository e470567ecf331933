"""Training resumes exactly; evaluation measures what it says."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.four_tasks.batches import PAD_ID, collate, draw, token_ids
from benchmarks.four_tasks.card import card
from benchmarks.four_tasks.evaluate import TRIALS, judged, measure
from benchmarks.four_tasks.folder import load_model, save_model
from benchmarks.four_tasks.layer_data import held_out_batches, training_batches
from benchmarks.four_tasks.layer_kinds import KINDS
from benchmarks.four_tasks.measuring import IN_PLACE
from benchmarks.four_tasks.model import ModelSettings, build, train_model
from benchmarks.tasks import TASKS
from benchmarks.tasks.vocabulary import spell

TINY = ModelSettings(
    layers=1,
    width=16,
    heads=2,
    steps=20,
    warm_up=2,
    ioi=2,
    induction=2,
    bracket=2,
    greater_than=2,
    checkpoint_every=5,
)


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = train_model(TINY, tmp_path / "whole")
    train_model(TINY, tmp_path / "parts", stop_after=7)
    parts = train_model(TINY, tmp_path / "parts")
    untrained = build(TINY)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    assert not torch.equal(whole.lm_head.weight, untrained.lm_head.weight)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train_model(TINY, tmp_path, stop_after=1)
    with pytest.raises(ValueError, match=r"other settings \(seed differ\)"):
        train_model(ModelSettings(**{**TINY.__dict__, "seed": 1}), tmp_path)


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [TINY.learning_rate_at(step) for step in range(TINY.steps + 1)]
    assert rates[1] == max(rates) == TINY.learning_rate
    assert rates[-1] == pytest.approx(0)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_asks_where_the_answers_are(task: str) -> None:
    examples = draw(task, "train", 5, seed="test")
    batch = collate(examples)
    for row, example in enumerate(examples):
        asked = batch.asked[row].nonzero().flatten().tolist()
        assert asked == sorted(answer.pos for answer in example.answers)
        assert batch.real[row].sum() == len(example.words) + 1


class Oracle(nn.Module):
    """A model that is told the answer: it gives the next token, or the same one everywhere."""

    def __init__(self, constant: str | None = None) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        following = ids.roll(-1, dims=1)
        if self.constant is not None:
            following = torch.full_like(ids, token_ids()[spell(self.constant)])
        return SimpleNamespace(logits=20.0 * nn.functional.one_hot(following, len(token_ids())))


@pytest.mark.parametrize("name", TRIALS)
def test_who_knows_the_answers_gets_full_marks(name: str) -> None:
    figures = measure(Oracle(), name, 20)
    assert figures.argmax == figures.preferred == 1.0
    assert figures.share > 0.999
    assert figures.bits < 0.001
    assert judged(name, figures) > 0.999


@pytest.mark.parametrize("name", TRIALS)
def test_who_always_says_the_same_does_not(name: str) -> None:
    figures = measure(Oracle("02"), name, 20)
    assert judged(name, figures) < 0.6


def test_year_shares_by_hand() -> None:
    """All mass on 50: right where the start is below 50, wrong elsewhere."""
    from benchmarks.four_tasks.evaluate import held_out_examples

    examples = held_out_examples("greater_than", 100, seed=0)
    below = sum(example.words[7] < "50" for example in examples) / 100
    assert measure(Oracle("50"), "greater_than", 100).share == pytest.approx(below, abs=1e-4)


def test_a_saved_model_is_stored_in_half_and_loads_in_full(tmp_path: Path) -> None:
    model = build(TINY)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight.dtype == torch.float32
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.half().float())
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_missing_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.four_tasks model"):
        load_model(tmp_path)


def test_the_card_holds_every_figure() -> None:
    test = {"measure": "argmax", "bar": 0.99, "reached": 0.99876, "preferred": 0.5, "bits": 1.5}
    layer = {"variance_explained": 0.97531, "l0": 12.34, "dead": 0.25}
    lost = {"cross_entropy": 1.25, "cross_entropy_replaced": 1.5, "kl": 0.125}
    figures = {
        "prompts_per_test": 1000,
        "versions": {"torch": "x"},
        "bytes": {"model.safetensors": 1_000_000},
        "model": {"settings": TINY.__dict__, "parameters": 123456, "tests": {"ioi": test}},
        "layers": {
            kind: {"settings": {"k": 7, "n_features": 98, "repeats": 2}, "metrics": [layer]}
            for kind in KINDS
        },
        "in_place": {
            name: {"tests": {"ioi": {**test, "reached": 0.9 + number / 1000}}, **lost}
            for number, name in enumerate(IN_PLACE)
        },
    }
    row = {
        "kind": "lorsa",
        "k": 6,
        "l0": 5.43,
        "median_variance_explained": 0.87654,
        "dead": [0.1, 0.35],
        "kl": 0.0625,
        "reached": dict.fromkeys(TASKS, 0.45678),
    }
    text = card(figures, [row], d_vocab=362)
    for figure in ("99.88 %", "0.9753", "12.34", "25.00 %", "123,456", "0.1250", "24 share each"):
        assert figure in text
    for number in range(len(IN_PLACE)):
        assert f"{90 + number / 10:.2f} %" in text
    for figure in ("5.43", "0.8765", "35.00 %", "0.0625", "45.68 %"):
        assert figure in text
        assert figure not in card(figures, [], d_vocab=362)


def test_what_is_in_place_is_of_known_kinds_and_attention_of_one() -> None:
    for kinds in IN_PLACE.values():
        assert set(kinds) <= set(KINDS)
        assert len(set(kinds) - {"transcoders"}) <= 1


def test_bos_counts_in_training_and_not_in_metrics() -> None:
    (batch, *_), (measured, *_) = training_batches(0)(0), held_out_batches(2)
    assert (batch.weight[:, 0] > 0).all()
    assert (measured.weight[:, 0] == 0).all()
    for found in (batch, measured):
        assert found.weight[:, 1:].sum().item() == pytest.approx(1)
        assert ((found.ids != PAD_ID) >= (found.weight > 0)).all()
