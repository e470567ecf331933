"""Every spelling of the same words gives the same tokens, and decoding gives them back."""

import pytest

from benchmarks.tasks.vocabulary import make_tokenizer, token_strings

SPELLINGS = [
    ("When Mary and", ["<bos>", " When", " Mary", " and"]),
    (" When Mary and", ["<bos>", " When", " Mary", " and"]),
    ("  When \n Mary   and ", ["<bos>", " When", " Mary", " and"]),
    ("the store, John", ["<bos>", " the", " store", ",", " John"]),
    ("the store , John", ["<bos>", " the", " store", ",", " John"]),
    ("close: )", ["<bos>", " close", ":", " )"]),
    ("close :)", ["<bos>", " close", ":", " )"]),
    ("([{}", ["<bos>", " (", " [", " {", " }"]),
    ("( [ {}", ["<bos>", " (", " [", " {", " }"]),
    ("17 32 to", ["<bos>", " 17", " 32", " to"]),
    ("Mary; xylophone.", ["<bos>", " Mary", ";", "<unk>", "."]),
    ("<bos> Mary", ["<bos>", "<bos>", " Mary"]),
    ("", ["<bos>"]),
]


@pytest.mark.parametrize(("text", "tokens"), SPELLINGS)
def test_spellings(text: str, tokens: list[str]) -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == tokens


def test_decoding_concatenates_and_reading_again_changes_nothing() -> None:
    tokenizer = make_tokenizer()
    text = "When Mary and John went to the store, John gave ( [ close: 17 32."
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == f" {text}"
    assert tokenizer.decode(ids) == "".join(tokenizer.convert_ids_to_tokens(ids))
    assert tokenizer(tokenizer.decode(ids), add_special_tokens=False).input_ids == ids


def test_every_token_reads_as_itself() -> None:
    tokenizer = make_tokenizer()
    for token in token_strings():
        ids = tokenizer(token, add_special_tokens=False).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == [token]


def test_special_tokens_and_folder(tmp_path) -> None:
    from transformers import AutoTokenizer

    make_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<bos>",
        "<pad>",
        "<unk>",
    )
    assert tokenizer("Mary, ([").tokens() == ["<bos>", " Mary", ",", " (", " ["]
    assert tokenizer.decode(tokenizer("Mary, ([").input_ids) == "<bos> Mary, ( ["
