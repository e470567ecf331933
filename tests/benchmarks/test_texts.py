"""Published tasks on a word tokenizer like GPT-2's: texts, counterfactuals, metrics, filters."""

import itertools
import random
import re
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.tasks.texts import MEMBERS, TEXTS, pairs_of_texts, text_pairs
from benchmarks.tasks.vocabulary import make_tokenizer

LEFT_OUT = "Mary"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Pieces as GPT-2 cuts them, each one token: those of many draws, less one name."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rng, pieces = random.Random(0), {"Ġhe", "Ġshe"}
    for draw in TEXTS.values():
        for _ in range(1500):
            one = draw(rng, list)
            for text in (one.clean, one.corrupt, one.right, *one.wrong):
                pieces.update(piece for piece, _ in cut.pre_tokenize_str(text))
    pieces.discard(f"Ġ{LEFT_OUT}")
    ids = {piece: number for number, piece in enumerate(["<unk>", "<bos>", *sorted(pieces)])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = cut
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<bos>")


@pytest.mark.parametrize("task", TEXTS)
def test_pairs_are_aligned_and_the_same_for_a_seed(task: str) -> None:
    chosen = text_pairs(task, tokenizer(), 40)
    assert chosen == text_pairs(task, tokenizer(), 40)
    assert chosen != text_pairs(task, tokenizer(), 40, seed=1)
    with_bos, without = (
        pairs_of_texts(chosen, tokenizer(), len(tokenizer()), bos=bos) for bos in (True, False)
    )
    assert with_bos.clean.shape[1] == without.clean.shape[1] + 1
    assert set(with_bos.clean[:, 0].tolist()) == {tokenizer().bos_token_id}
    assert torch.ne(with_bos.clean, with_bos.corrupt).any(1).all()
    assert tokenizer().unk_token_id not in with_bos.clean[with_bos.real].tolist()
    assert torch.allclose(with_bos.weights.sum(1), torch.zeros(40), atol=1e-6)
    for row, one in enumerate(chosen):
        right = tokenizer()(one.right, add_special_tokens=False).input_ids
        assert with_bos.weights[row, right] == 1


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
        assert one.right == f" {arguments[4]}"
        assert one.clean.startswith("\ndef ")
        assert one.clean.endswith("\n    :param")
        assert '"""' in one.clean
        assert arguments[:2] + arguments[5:] == redrawn[:2] + redrawn[5:]
        assert not {*redrawn[2:5], *renamed} & {*arguments}, "redrawn apart from one another"
        assert not {*redrawn} & {*renamed}
        assert one.right not in one.wrong
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
            assert one.right == f" {members[shown[-1] + 1]}"
            assert one.wrong == (f" {members[shown[-1]]}",)
            assert all(b != a + 1 for a, b in itertools.pairwise(others))
            assert one.clean.endswith(" done in")


def test_names_are_filtered_by_the_tokenizer() -> None:
    chosen = text_pairs("gendered_pronoun", tokenizer(), 300)
    names = {one.clean.split()[1] for one in chosen}
    assert LEFT_OUT not in names
    assert len(names) > 30
    she = {one.clean.split()[1] for one in chosen if one.right == " she"}
    assert "Alice" in she
    assert "John" in names - she
    assert all(one.corrupt.startswith("That person is such a") for one in chosen)


@pytest.mark.parametrize("task", TEXTS)
def test_the_bundled_vocabulary_does_not_hold_them(task: str) -> None:
    with pytest.raises(ValueError, match=f"{task}: vocabulary not present"):
        text_pairs(task, make_tokenizer(), 2)


def test_the_published_metric_takes_the_largest_wrong_logit() -> None:
    (one,) = text_pairs("docstring", tokenizer(), 1)
    logits = torch.zeros(len(tokenizer()))
    right, first = (
        tokenizer()(word, add_special_tokens=False).input_ids[0]
        for word in (one.right, one.wrong[0])
    )
    logits[right], logits[first] = 3.0, 1.0
    assert one.largest_wrong(logits, tokenizer()) == 2
