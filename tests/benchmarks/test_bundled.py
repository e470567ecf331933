"""The bundled model as stored: what its card says, on a smaller sample."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

import replacement
from benchmarks.four_tasks.card import card
from benchmarks.four_tasks.evaluate import TRIALS, judged, measure
from benchmarks.four_tasks.folder import load_model, weight_files
from benchmarks.four_tasks.frontier import read_frontier
from benchmarks.four_tasks.layer_data import held_out_batches
from benchmarks.four_tasks.layer_kinds import KINDS, load_kind
from benchmarks.tasks import TASKS
from benchmarks.tasks.vocabulary import make_tokenizer
from replacement.training import measure_layers, replaced

assert replacement.__file__ is not None
FOLDER = Path(replacement.__file__).parent / "bundled" / "four-tasks"
PROMPTS = 200
MODEL, LAYERS = cache(load_model), cache(load_kind)


@pytest.mark.parametrize("task", TASKS)
def test_the_model_reaches_the_bar(task: str) -> None:
    figures = measure(MODEL(FOLDER), task, PROMPTS, seed=1)
    assert judged(task, figures) >= TRIALS[task].bar - 0.01


@pytest.mark.parametrize("attention", [None, "lorsa", "attention-saes"])
@pytest.mark.parametrize("task", TASKS)
def test_with_its_layers_in_place_it_loses_little(task: str, attention: str | None) -> None:
    """Every MLP by its transcoder, and all attention by Lorsa or SAEs, no error added back."""
    model = MODEL(FOLDER)
    alone = judged(task, measure(model, task, PROMPTS, seed=1))
    attentions = LAYERS(attention, FOLDER) if attention else None
    with replaced(model, mlps=LAYERS("transcoders", FOLDER), attentions=attentions):
        in_place = judged(task, measure(model, task, PROMPTS, seed=1))
    assert in_place >= alone - (0.1 if attention else 0.06)


def test_without_what_the_layers_write_nothing_is_left() -> None:
    """The figures above are the layers' doing: Lorsa layers in the wrong places will not do."""
    model = MODEL(FOLDER)
    with replaced(model, attentions=LAYERS("lorsa", FOLDER)[::-1]):
        assert judged("ioi", measure(model, "ioi", 50, seed=1)) < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_explain_what_they_replace(kind: str) -> None:
    batches = held_out_batches(PROMPTS, seed=1)
    layers = measure_layers(MODEL(FOLDER), LAYERS(kind, FOLDER), batches)
    explained = torch.tensor([layer.variance_explained for layer in layers])
    assert explained.quantile(0.5) >= 0.95
    assert all(layer.l0 <= 24 for layer in layers)


def test_few_lorsa_heads_are_never_active() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text())
    for kind in ("lorsa", "attention-saes"):
        assert all(layer["dead"] < 0.2 for layer in figures["layers"][kind]["metrics"])


def test_prompts_are_answered_as_they_say() -> None:
    prompts = json.loads((FOLDER / "prompts.json").read_text())
    assert prompts[0] == {
        "task": "ioi",
        "prompt": "When Mary and John went to the store, John gave a drink to",
        "explain": " Mary",
        "minus": " John",
    }
    tokenizer = make_tokenizer()
    for task in TASKS:
        assert sum(entry["task"] == task for entry in prompts) >= 3
    for entry in prompts:
        ids = torch.tensor([tokenizer(entry["prompt"]).input_ids])
        assert tokenizer.unk_token_id not in ids
        logits = MODEL(FOLDER)(ids).logits[0, -1]
        explain, minus = tokenizer.convert_tokens_to_ids([entry["explain"], entry["minus"]])
        assert tokenizer.unk_token_id not in (explain, minus)
        assert logits[explain] > logits[minus], entry
        if entry["task"] != "greater_than":
            assert logits.argmax() == explain, entry


def test_the_stored_tokenizer_is_the_one_of_the_tasks() -> None:
    from transformers import AutoTokenizer

    stored = AutoTokenizer.from_pretrained(FOLDER)
    assert stored.get_vocab() == make_tokenizer().get_vocab()
    text = "([ Mary ,17 32 close:"
    assert stored(text).input_ids == make_tokenizer()(text).input_ids


def test_figures_are_of_these_weights_and_the_card_is_of_these_figures() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text())
    assert figures["weights_sha256"] == weight_files(FOLDER)
    d_vocab = json.loads((FOLDER / "config.json").read_text())["vocab_size"]
    assert (FOLDER / "README.md").read_text() == card(figures, read_frontier(FOLDER), d_vocab)


def test_the_folder_is_small_and_holds_no_pickles() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
