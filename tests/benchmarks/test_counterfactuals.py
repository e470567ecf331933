"""Counterfactuals of the four tasks: one word differs, by the published rule."""

import random

import pytest
import torch

from benchmarks.edges import EdgeModel, Patching
from benchmarks.tasks import is_held_out
from benchmarks.tasks.bracket import KEY_LENGTH
from benchmarks.tasks.counterfactuals import (
    EARLIEST,
    RULES,
    counterfactuals,
    ioi_random,
    pairs_of,
)
from benchmarks.tasks.vocabulary import IOI_NAMES, PAIRS, YEARS, make_tokenizer, token_strings
from circuits import load

COUNT = 60


@pytest.mark.parametrize("task", RULES)
def test_prompts_differ_in_one_word(task: str) -> None:
    for one in counterfactuals(task, COUNT):
        (changed,) = one.roles["CHANGED"]
        differing = [
            1 + place
            for place, words in enumerate(zip(one.clean, one.corrupt, strict=True))
            if len(set(words)) == 2
        ]
        assert differing == [changed]
        assert one.roles["END"] == (len(one.clean),)
        assert not set(one.right) & set(one.wrong)


def test_ioi_repeats_the_other_name() -> None:
    for one in counterfactuals("ioi", COUNT):
        (io,), (subject,) = one.right, one.wrong
        (s2,), first = one.roles["S2"], one.roles["IO"]
        assert one.clean[s2 - 1] == subject == one.clean[one.roles["S1"][0] - 1]
        assert one.corrupt[s2 - 1] == io == one.clean[first[0] - 1]
        assert one.clean.count(io) == 1
        assert one.corrupt.count(subject) == 1, "the answer flips"


def test_ioi_with_a_third_name_has_no_answer() -> None:
    rng = random.Random(0)
    for _ in range(COUNT):
        one = ioi_random(rng)
        third = one.corrupt[one.roles["S2"][0] - 1]
        assert third in IOI_NAMES
        assert third not in one.clean
        assert one.corrupt.count(one.right[0]) == one.corrupt.count(one.wrong[0]) == 1


def test_greater_than_begins_in_the_earliest_year() -> None:
    for one in counterfactuals("greater_than", COUNT):
        (year,) = one.roles["YY"]
        start = YEARS.index(one.clean[year - 1])
        assert one.corrupt[year - 1] == EARLIEST != one.clean[year - 1]
        assert one.right == YEARS[start + 1 :]
        assert one.wrong == YEARS[: start + 1]
        assert one.probability


def test_induction_changes_what_is_to_be_repeated() -> None:
    for one in counterfactuals("induction", COUNT):
        (previous,), (source,) = one.roles["PREVIOUS"], one.roles["SOURCE"]
        assert one.clean[-1] == one.clean[previous - 1]
        assert source == previous + 1
        assert one.clean[source - 1] == one.right[0]
        assert one.corrupt[source - 1] == one.wrong[0]
        assert one.wrong[0] not in one.clean


def test_bracket_changes_the_kind_of_the_one_to_be_closed() -> None:
    for one in counterfactuals("bracket", COUNT):
        (opener,) = one.roles["OPENER"]
        for words, closing in ((one.clean, one.right), (one.corrupt, one.wrong)):
            stack = []
            for place, word in enumerate(words):
                if word in PAIRS:
                    stack.append(place)
                elif word in PAIRS.values():
                    assert PAIRS[words[stack.pop()]] == word
            assert stack[-1] == opener - 1
            assert closing == (PAIRS[words[opener - 1]],)


def test_clean_prompts_are_held_out() -> None:
    brackets = [one.clean for one in counterfactuals("bracket", COUNT)]
    for words in brackets:
        region = words[: words.index("close")]
        assert is_held_out(("bracket", *region[:KEY_LENGTH]))
    for one in counterfactuals("greater_than", COUNT):
        noun, century, year = (one.clean[one.roles[part][0] - 1] for part in ("NOUN", "XX1", "YY"))
        assert is_held_out((noun, century, year))


@pytest.mark.parametrize("task", RULES)
def test_the_same_seed_gives_the_same_pairs(task: str) -> None:
    assert counterfactuals(task, 5, seed=3) == counterfactuals(task, 5, seed=3)
    assert counterfactuals(task, 5, seed=3) != counterfactuals(task, 5, seed=4)


@pytest.mark.parametrize("task", RULES)
def test_a_batch_is_the_prompts_as_the_tokenizer_reads_them(task: str) -> None:
    tokenizer, chosen = make_tokenizer(), counterfactuals(task, 8)
    pairs = pairs_of(chosen, tokenizer, len(token_strings()))
    for row, one in enumerate(chosen):
        stop = int(pairs.end[row]) + 1
        for ids, words in ((pairs.clean, one.clean), (pairs.corrupt, one.corrupt)):
            assert ids[row, :stop].tolist() == tokenizer(" ".join(words)).input_ids
        weights = pairs.weights[row]
        assert float(weights[weights > 0].sum()) == (len(one.right) if one.probability else 1)
        assert (weights != 0).sum() == len(one.right) + len(one.wrong)


@pytest.mark.parametrize("task", RULES)
def test_the_bundled_model_answers_and_the_counterfactual_undoes_it(task: str) -> None:
    source = load("four-tasks", mlp="neurons", attention="heads")
    pairs = pairs_of(counterfactuals(task, COUNT), source.tokenizer, source.weights.d_vocab)
    model = EdgeModel(source)
    runs = Patching(model, pairs)
    clean, corrupt = (
        pairs.metric(model.logits(run.final, pairs.end)) for run in (runs.clean, runs.corrupt)
    )
    if task == "greater_than":
        assert clean.mean() > 0.9
        assert corrupt.mean() < 0.3
    else:
        assert (clean > 3).double().mean() > 0.95
        assert torch.allclose(corrupt.mean(), -clean.mean(), rtol=0.2)


def test_an_unknown_task_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="docstring"):
        counterfactuals("docstring", 1)
