"""Sequences as a task, and the second bundled model as stored: what its card says, on fewer."""

import itertools
import json
import random
from functools import cache
from pathlib import Path

import pytest
import torch

import replacement
from benchmarks.five_tasks.card import card
from benchmarks.four_tasks.batches import collate
from benchmarks.four_tasks.evaluate import FIVE_TRIALS, judged, measure
from benchmarks.four_tasks.folder import load_model, weight_files
from benchmarks.tasks import FIVE_TASKS, TASKS, Example, is_held_out
from benchmarks.tasks.example import Split
from benchmarks.tasks.sequence import SHOWN, sequence
from benchmarks.tasks.vocabulary import MEMBERS, make_tokenizer, spell, token_strings
from circuits import load

assert replacement.__file__ is not None
FOLDER = Path(replacement.__file__).parent / "bundled" / "five-tasks"
MODEL = cache(load_model)


def drawn(count: int = 200, split: Split = "train", seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    return [sequence(rng, split) for _ in range(count)]


def shown(example: Example) -> list[int]:
    """Which members the text names, as numbers in their order."""
    words = [word for k, word in enumerate(example.words) if k % 5 == 3]
    (members,) = [listed for listed in MEMBERS.values() if set(words) <= set(listed)]
    return [members.index(word) for word in words]


def test_half_of_the_texts_are_sequences_and_only_these_are_asked() -> None:
    asked = 0
    for example in drawn():
        numbers = shown(example)
        steps = [later - one for one, later in itertools.pairwise(numbers)]
        assert len(numbers) == SHOWN + 1
        asked += bool(example.answers)
        if not example.answers:
            assert 1 not in steps, "a run of two would look like a sequence"
            continue
        assert set(steps) == {1}
        for answer in example.answers:
            assert example.words[answer.pos] in answer.right
            assert example.words[answer.pos - 1] == "in"
            assert len(answer.wrong) == 11
        assert example.answers[-1].pos == example.roles["END"][0]
    assert 70 < asked < 130


def test_a_tenth_is_held_out_and_what_is_drawn_is_of_its_split() -> None:
    for split, held_out in (("train", False), ("held_out", True)):
        assert {is_held_out(one.key) for one in drawn(100, split)} == {held_out}
    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    kinds = {one.answers[0].kind for one in drawn() if one.answers}
    assert kinds == set(MEMBERS)


def test_words_of_both_vocabularies_are_the_same_tokens() -> None:
    few, more = token_strings(), token_strings(sequences=True)
    assert more[: len(few)] == few
    assert len(set(more)) == len(more) > len(few)
    tokenizer = make_tokenizer(sequences=True)
    for example in drawn(50):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(example.text).input_ids)
        assert tokens == ["<bos>", *map(spell, example.words)]
    assert make_tokenizer().unk_token_id in make_tokenizer()(drawn(1)[0].text).input_ids


@pytest.mark.parametrize("test", [*TASKS, *(f"sequence, {kind}" for kind in MEMBERS)])
def test_the_model_reaches_the_bar(test: str) -> None:
    figures = measure(MODEL(FOLDER), test, 100, seed=1)
    assert judged(test, figures) >= FIVE_TRIALS[test].bar - 0.02


@torch.no_grad()
def test_it_goes_by_the_sequence_and_not_by_the_last_member() -> None:
    """Behind members in no order the successor of the last one is not expected."""
    examples = drawn(200, "held_out")
    batch, after = collate(examples), []
    logits = MODEL(FOLDER)(batch.ids).logits
    tokenizer = make_tokenizer(sequences=True)
    for row, example in enumerate(examples):
        (members,) = [m for m in MEMBERS.values() if example.words[3] in m]
        number = members.index(example.words[18])
        if number + 1 < len(members):
            token = tokenizer.convert_tokens_to_ids(spell(members[number + 1]))
            chance = logits[row, example.roles["END"][0]].softmax(-1)[token]
            after.append((bool(example.answers), float(chance)))
    ordered, others = ([p for is_one, p in after if is_one == which] for which in (True, False))
    assert sum(ordered) / len(ordered) > 0.9
    assert sum(others) / len(others) < 0.1


def test_prompts_are_answered_as_they_say() -> None:
    model = load("five-tasks")
    prompts = json.loads((FOLDER / "prompts.json").read_text())
    assert {entry["task"] for entry in prompts} == {*FIVE_TASKS, *MEMBERS} - {"sequence"}
    for entry in prompts:
        run = model.run(entry["prompt"])
        assert (run.logit(entry["explain"]) - run.logit(entry["minus"])).value > 0, entry


def test_the_card_says_what_was_measured_of_these_weights() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text())
    assert figures["weights_sha256"] == weight_files(FOLDER)
    d_vocab = json.loads((FOLDER / "config.json").read_text())["vocab_size"]
    assert (FOLDER / "README.md").read_text() == card(figures, d_vocab)
    for name, row in figures["model"]["tests"].items():
        assert row["reached"] >= row["bar"], name
