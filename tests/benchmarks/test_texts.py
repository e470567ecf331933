"""Published tasks on a word tokenizer like GPT-2's: texts, counterfactuals, metrics, filters."""

import itertools
import re
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import gpt2_shape
from benchmarks.gpt2_shape import pieces
from benchmarks.tasks.sentences import OBJECTS, OTHERS, PLACES, SUBJECTS
from benchmarks.tasks.texts import TEXTS, pairs_of_texts, text_pairs
from benchmarks.tasks.vocabulary import MEMBERS, make_tokenizer

LEFT_OUT = "Mary"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Pieces as GPT-2 cuts them, each one token, less one name; years of two tokens are none."""
    known = [piece for piece in pieces() if piece != f"Ġ{LEFT_OUT}"]
    ids = {piece: number for number, piece in enumerate(["<unk>", "<bos>", *known])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<bos>")


def tokenizer_for(task: str) -> Any:
    return byte_level() if task == "greater_than" else tokenizer()


byte_level = cache(gpt2_shape.tokenizer)


@pytest.mark.parametrize("task", TEXTS)
def test_pairs_are_aligned_and_the_same_for_a_seed(task: str) -> None:
    reader = tokenizer_for(task)
    chosen = text_pairs(task, reader, 40)
    assert chosen == text_pairs(task, reader, 40)
    assert chosen != text_pairs(task, reader, 40, seed=1)
    with_bos, without = (
        pairs_of_texts(chosen, reader, len(reader), bos=bos) for bos in (True, False)
    )
    assert with_bos.clean.shape[1] == without.clean.shape[1] + 1
    assert set(with_bos.clean[:, 0].tolist()) == {reader.bos_token_id}
    assert torch.ne(with_bos.clean, with_bos.corrupt).any(1).all()
    assert reader.unk_token_id not in without.clean[without.real].tolist()
    assert with_bos.probability == (task == "greater_than")
    for row, one in enumerate(chosen):
        weights = with_bos.weights[row]
        right, wrong = (
            [reader(word, add_special_tokens=False).input_ids[0] for word in words]
            for words in (one.right, one.wrong)
        )
        share = (1, -1) if with_bos.probability else (1 / len(right), -1 / len(wrong))
        assert torch.allclose(weights[right], torch.tensor(share[0]).float())
        assert torch.allclose(weights[wrong], torch.tensor(share[1]).float())
        assert int((weights != 0).sum()) == len(right) + len(wrong)


def test_docstring_names_the_third_of_the_matching_arguments() -> None:
    for one in text_pairs("docstring", tokenizer(), 40):
        signature = re.search(r"\(self, (.*)\):", one.clean)
        other = re.search(r"\(self, (.*)\):", one.corrupt)
        assert signature is not None
        assert other is not None
        arguments, redrawn = signature.group(1).split(", "), other.group(1).split(", ")
        named, renamed = (
            re.findall(r":param (\w+): \w+ \w+", text) for text in (one.clean, one.corrupt)
        )
        assert named == arguments[2:4]
        assert one.right == (f" {arguments[4]}",)
        assert one.clean.startswith("\ndef ")
        assert one.clean.endswith("\n    :param")
        assert '"""' in one.clean
        assert arguments[:2] + arguments[5:] == redrawn[:2] + redrawn[5:]
        assert not {*redrawn[2:5], *renamed} & {*arguments}, "redrawn apart from one another"
        assert not {*redrawn} & {*renamed}
        assert one.right[0] not in one.wrong
        assert {f" {argument}" for argument in arguments[:4]} <= {*one.wrong}
        assert len(one.wrong) == 13


def test_sequences_go_on_and_their_counterfactuals_do_not() -> None:
    for kind, members in MEMBERS.items():
        for one in text_pairs(kind, tokenizer(), 40):
            shown, others = (
                [members.index(word) for word in re.findall(r"done in (\w+)\.", text)]
                for text in (one.clean, one.corrupt)
            )
            assert shown == [shown[0] + step for step in range(4)]
            assert one.right == (f" {members[shown[-1] + 1]}",)
            assert one.wrong == (f" {members[shown[-1]]}",)
            assert all(b != a + 1 for a, b in itertools.pairwise(others))
            assert one.clean.endswith(" done in")


def test_names_are_filtered_by_the_tokenizer() -> None:
    chosen = text_pairs("gendered_pronoun", tokenizer(), 300)
    names = {one.clean.split()[1] for one in chosen}
    assert LEFT_OUT not in names
    assert len(names) > 30
    she = {one.clean.split()[1] for one in chosen if one.right == (" she",)}
    assert "Alice" in she
    assert "John" in names - she
    assert all(one.corrupt.startswith("That person is such a") for one in chosen)


def test_indirect_objects_are_in_both_orders_and_their_counterfactuals_as_published() -> None:
    orders, templates = set(), set()
    for task in ("ioi", "ioi_abc"):
        for one in text_pairs(task, tokenizer(), 300):
            names = {name: one.clean[start:end] for name, (start, end) in one.roles.items()}
            assert names["S1"] == names["S2"] == one.wrong[0]
            assert names["IO"] == one.right[0]
            assert one.clean.endswith(" to")
            assert not one.bos
            orders.add(one.roles["S1"] < one.roles["IO"])
            other = one.corrupt.split()
            places = [(a, b) for a, b in zip(one.clean.split(), other, strict=True) if a != b]
            assert len(places) == (1 if task == "ioi" else 3)
            changed = {b.strip(",.") for _, b in places}
            if task == "ioi":
                assert changed == {one.right[0].strip()}
            else:
                assert len(changed) == 3, "three names, none of them twice"
                assert not changed & {one.right[0].strip(), one.wrong[0].strip()}
            shape = one.clean
            for name in {*names.values()}:
                shape = shape.replace(name, " N")
            for word in (*PLACES, *OBJECTS):
                shape = re.sub(rf" {word}\b", " X", shape)
            templates.add(shape)
    assert orders == {True, False}
    assert len(templates) == 15


def test_years_are_a_century_and_two_digits() -> None:
    pairs = text_pairs("greater_than", byte_level(), 200)
    for one in pairs:
        tokens = byte_level().tokenize(one.clean)
        where = one.positions(byte_level(), bos=False)
        year = tokens[where["YY"]]
        assert tokens[where["XX1"]] == tokens[-1] == f"Ġ{one.clean[-2:]}"
        assert one.clean.split()[6] == f"{one.clean[-2:]}{year}"
        assert one.corrupt.split()[6] == f"{one.clean[-2:]}01"
        assert one.right == tuple(f"{number:02d}" for number in range(int(year) + 1, 100))
        assert one.wrong == tuple(f"{number:02d}" for number in range(int(year) + 1))
        assert one.positions(byte_level(), bos=True)["END"] == len(tokens)
    assert {int(one.clean[-2:]) for one in pairs} == set(range(11, 18))


@pytest.mark.parametrize("task", ["sva_simple", "sva_noun_pp", "sva_within_rc"])
def test_verbs_agree_with_one_noun_whose_number_changes(task: str) -> None:
    both = {plural: singular for singular, plural in (w.split("/") for w in (*SUBJECTS, *OTHERS))}
    for one in text_pairs(task, tokenizer(), 60):
        words, others = one.clean.split(), one.corrupt.split()
        changed = [k for k, word in enumerate(words) if word != others[k]]
        assert changed == [4 if task == "sva_within_rc" else 1]
        noun, other = words[changed[0]], others[changed[0]]
        plural = noun in both
        assert both[noun if plural else other] == (other if plural else noun)
        assert (one.right[0] in (" are", " have", " do", " go")) == plural
        assert (one.wrong[0] in (" are", " have", " do", " go")) != plural


@pytest.mark.parametrize("task", [task for task in TEXTS if not task.startswith("ioi")])
def test_the_bundled_vocabulary_does_not_hold_them(task: str) -> None:
    with pytest.raises(ValueError, match=f"{task}: vocabulary not present"):
        text_pairs(task, make_tokenizer(), 2)


def test_the_published_metric_takes_the_largest_wrong_logit() -> None:
    (one,) = text_pairs("docstring", tokenizer(), 1)
    logits = torch.zeros(len(tokenizer()))
    right, first = (
        tokenizer()(word, add_special_tokens=False).input_ids[0]
        for word in (one.right[0], one.wrong[0])
    )
    logits[right], logits[first] = 3.0, 1.0
    assert one.largest_wrong(logits, tokenizer()) == 2
