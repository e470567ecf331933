"""From text or ids to one prompt, and from a word to the token it is; what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from replacement.model import ReplacementModel
from replacement.prompts import single_token, token_ids_of, token_texts
from tests.replacement.tokenizers_made import (
    CHAT,
    CHAT_WITH_BOS,
    byte_pairs,
    gemma,
    gpt2,
    llama,
    qwen2,
    word_level,
)
from tests.samples import Shape, random_gpt2

WORDS, PAIRS = word_level(), byte_pairs()
VOCABULARY = {
    "words": WORDS,
    "byte pairs": PAIRS,
    "none": None,
    "chat": gemma(chat_template=CHAT),
    "chat of words": word_level({"chat_template": " went{{ messages[0].content }}"}),
}


CLASSES: dict[str, Any] = {
    "Llama": llama(),
    "Gemma": gemma(),
    "GPT-2": gpt2(),
    "GPT-2 with BOS": gpt2(add_bos_token=True),
    "Qwen2": qwen2(),
    "words": WORDS,
}
ADD_BOS = ("Llama", "Gemma", "GPT-2 with BOS", "words")


def ids_of(
    prompt: Any, tokenizer: PreTrainedTokenizerFast | None, n_context: int = 12
) -> list[int]:
    """Return the ids of a prompt, for a model as large as its tokenizer's vocabulary."""
    d_vocab = 13 if tokenizer is None else len(tokenizer)
    return token_ids_of(prompt, tokenizer, d_vocab=d_vocab, n_context=n_context).tolist()


def test_text_gets_the_special_tokens_of_its_tokenizer() -> None:
    """BOS once: added where the tokenizer adds it, not a second time where the text has it."""
    bos, when, mary = 0, WORDS.convert_tokens_to_ids("When"), WORDS.convert_tokens_to_ids(" Mary")
    assert ids_of("When Mary", WORDS) == [bos, when, mary]
    assert ids_of("<bos>When Mary", WORDS) == [bos, when, mary]
    assert ids_of("<bos>", WORDS) == [bos]
    end = PAIRS.bos_token_id
    assert ids_of("When", PAIRS)[0] != end
    assert ids_of("<|end|>When", PAIRS).count(end) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_bos_is_there_once_or_never(name: str) -> None:
    """Once where the tokenizer adds it or the text has it, however often both would; never else."""
    tokenizer, text = CLASSES[name], "When Mary went"
    bos = tokenizer.bos_token_id
    ids = ids_of(text, tokenizer)
    assert (ids[0] == bos) == (name in ADD_BOS)
    assert ids.count(bos) == (name in ADD_BOS)
    if bos is not None:
        given = ids_of(tokenizer.bos_token + text, tokenizer)
        assert given[0] == bos and given.count(bos) == 1
        assert given == tokenizer(tokenizer.bos_token + text, add_special_tokens=False).input_ids
        for chosen in (given[1:], [bos, *given]):  # ids: without BOS, or with two
            assert ids_of(chosen, tokenizer) == chosen


def test_texts_of_tokens_join_to_the_text() -> None:
    """Llama's tokenizer puts a space before a text, which its first token shows."""
    for name, tokenizer in {**CLASSES, "byte pairs": PAIRS}.items():
        text = "When Mary went"
        ids = torch.tensor(ids_of(text, tokenizer))
        texts = token_texts(ids, tokenizer)[name in ADD_BOS :]
        assert texts[-2:] == [" Mary", " went"]
        assert "".join(texts) == (" " + text if name == "Llama" else text)
    assert token_texts(torch.tensor([3, 0]), None) == ["[3]", "[0]"]


# ---------------------------------------------------------------------------------------- chats

USER = {"role": "user", "content": "When Mary went"}
ASSISTANT = {"role": "assistant", "content": "(John)"}
CHATS: dict[str, tuple[list[dict[str, str]], str]] = {
    "a question": ([USER], "[user] When Mary went [end][assistant] "),
    "a system prompt": (
        [{"role": "system", "content": "the store"}, USER],
        "[system] the store [end][user] When Mary went [end][assistant] ",
    ),
    "an answer and a question": (
        [USER, ASSISTANT, USER],
        "[user] When Mary went [end][assistant] (John) [end][user] When Mary went [end]"
        "[assistant] ",
    ),
    "an answer that goes on": ([USER, ASSISTANT], "[user] When Mary went [end][assistant] (John)"),
}


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("make", [llama, gemma, gpt2, qwen2])
@pytest.mark.parametrize("template", [CHAT, CHAT_WITH_BOS], ids=["no BOS", "BOS"])
def test_messages_are_written_down_by_the_template_and_by_nothing_else(
    name: str, make: Callable[..., Any], template: str
) -> None:
    """The special tokens are the template's, also where the tokenizer adds a BOS to text."""
    tokenizer = make(chat_template=template)
    bos = (tokenizer.bos_token or "") if template == CHAT_WITH_BOS else ""
    messages, text = CHATS[name]
    ids = ids_of(messages, tokenizer, n_context=200)
    assert ids == tokenizer(bos + text, add_special_tokens=False).input_ids
    assert ids.count(tokenizer.bos_token_id) == bool(bos)
    assert ids_of(tuple(messages), tokenizer, n_context=200) == ids


def test_an_answer_goes_on_behind_its_last_character() -> None:
    """A template that strips messages is refused only where an end was lost."""
    stripping = gemma(chat_template=CHAT.replace("content }} [", "content | trim }}["))
    keeping = gemma(chat_template=CHAT)
    for content in ("(John)", " (John)", "(John) "):
        answer = [USER, {"role": "assistant", "content": content}]
        written = "[user] When Mary went [end][assistant] "
        kept = keeping(written + content, add_special_tokens=False).input_ids
        assert ids_of(answer, keeping, n_context=200) == kept
        if content.endswith(" "):
            with pytest.raises(ValueError, match=r"does not keep the end.*'\(John\) '"):
                ids_of(answer, stripping, n_context=200)
        else:
            assert stripping.decode(ids_of(answer, stripping, n_context=200)).endswith("(John)")


def test_a_chat_written_down_by_hand_is_the_same_prompt() -> None:
    """Text that the template made begins with its BOS, and is given no second one."""
    tokenizer = llama(chat_template=CHAT_WITH_BOS)
    text = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert text.startswith("<s>[user]")
    assert ids_of(text, tokenizer, n_context=200) == ids_of([USER], tokenizer, n_context=200)


def test_a_prompt_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the template wrote goes to the tokenizer once, and the ids of that call are the run's.

    (Whether it knows the words of a message is asked besides.)
    """
    tokenizer = llama(chat_template=CHAT_WITH_BOS)
    model = ReplacementModel(random_gpt2(Shape(d_vocab=len(tokenizer), n_context=99)), tokenizer)
    given: list[str] = []
    inner = type(tokenizer).__call__

    def counted(self: Any, text: str, **settings: Any) -> Any:
        given.append(text)
        return inner(self, text, **settings)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    run = model.run([USER])
    written = "<s>[user] When Mary went [end][assistant] "
    assert [text for text in given if text != USER["content"]] == [written]
    assert run.prompt is None and run.tokens[0] == "<s>" and " Mary" in run.tokens
    assert torch.equal(run.logits, model.run(run.token_ids.tolist()).logits)


def test_messages_keep_what_else_they_hold() -> None:
    """A template may ask for more than role and content."""
    tokenizer = qwen2(chat_template="{{ messages[0].name }} went")
    ids = ids_of([{**USER, "name": "Mary"}], tokenizer)
    assert ids == tokenizer("Mary went").input_ids


IDS = [1, 2, 3]


@pytest.mark.parametrize(
    "given",
    [
        IDS,
        tuple(IDS),
        [IDS],
        torch.tensor(IDS),
        torch.tensor([IDS]),
        torch.tensor(IDS, dtype=torch.int32),
        np.array(IDS),
        np.array([IDS]),
        {"input_ids": IDS},
        {"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 3)},
    ],
    ids=repr,
)
@pytest.mark.parametrize("tokenizer", [None, PAIRS], ids=["no tokenizer", "byte pairs"])
def test_ids_are_taken_as_they_are(given: Any, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """No special token is added to ids, in whatever container of one prompt they come."""
    assert ids_of(given, tokenizer) == IDS


def test_what_a_tokenizer_returns_is_a_prompt() -> None:
    """A BatchEncoding of one text is the text."""
    assert ids_of(WORDS("When Mary"), WORDS) == ids_of("When Mary", WORDS)
    assert ids_of(WORDS("When Mary", return_tensors="pt"), WORDS) == ids_of("When Mary", WORDS)


def test_ids_may_be_numpy_integers() -> None:
    """A list picked out of an array is a list of token ids."""
    assert ids_of(list(np.array(IDS)), None) == IDS


REFUSED: dict[str, tuple[Any, str, type[Exception], str]] = {
    "empty list": ([], "none", ValueError, "is empty"),
    "empty row": ([[]], "none", ValueError, "is empty"),
    "empty tensor": (torch.zeros(0, dtype=torch.long), "none", ValueError, "is empty"),
    "empty text": ("", "byte pairs", ValueError, "'' is empty"),
    "empty text with BOS": ("", "words", ValueError, "'' is empty"),
    "space and BOS": ("  ", "words", ValueError, "is empty|does not hold"),
    "too long": ([1] * 13, "none", ValueError, "13 tokens, the model's context is 12"),
    "too long text": ("When" * 13, "byte pairs", ValueError, "the model's context is 12"),
    "above the vocabulary": ([1, 13, 99], "none", ValueError, r"\[13, 99\].*vocabulary of 13"),
    "below zero": ([1, -1], "none", ValueError, r"\[-1\] are outside"),
    "bool": ([True, 2], "none", TypeError, r"integers; got \[True\]"),
    "bool tensor": (torch.tensor([True]), "none", TypeError, "integers"),
    "float": ([1.0, 2], "none", TypeError, r"integers; got \[1\.0\]"),
    "float tensor": (torch.tensor([1.0]), "none", TypeError, "integers"),
    "words": (["When", " Mary"], "words", TypeError, "Text is given as one string"),
    "one word in a list": (["When"], "words", TypeError, "Text is given as one string"),
    "bytes": (b"When", "byte pairs", TypeError, "list of token ids or one of chat messages"),
    "number": (3, "none", TypeError, "got int: 3"),
    "scalar tensor": (torch.tensor(3), "none", TypeError, "text, a list of token ids"),
    "none": (None, "none", TypeError, "got NoneType"),
    "mapping without ids": ({"ids": [1]}, "none", TypeError, r"without input_ids \(keys: ids\)"),
    "one message": (USER, "words", TypeError, r"outside a list\..*\[\{'role'"),
    "chat in a list": ([[USER]], "chat", ValueError, "a list of 1 chats.*one chat"),
    "chat without tokenizer": ([USER], "none", ValueError, "messages.*without a tokenizer"),
    "chat without template": ([USER], "words", ValueError, "no chat template"),
    "no role": ([{"content": "When"}], "chat", ValueError, r"message 0.*'role' \(keys: content"),
    "no content": ([USER, {"role": "user"}], "chat", ValueError, "message 1.*no 'content'"),
    "nothing in it": ([{}], "chat", ValueError, r"no 'role' \(keys: none\)"),
    "content in parts": (
        [{"role": "user", "content": [{"type": "text"}]}], "chat", TypeError, "'content' that"),
    "no text": ([{"role": "user", "content": None}], "chat", TypeError, "no text but NoneType"),
    "role of a number": ([{"role": 1, "content": "When"}], "chat", TypeError, "'role' that is no"),
    "text among messages": ([USER, "When"], "chat", TypeError, "message 1 of the chat is str: 'Wh"),
    "a role of nobody": (
        [{"role": "judge", "content": "When"}], "chat", ValueError,
        "refuses the messages: Unknown role judge. Roles given: judge"),
    "unknown word in a chat": (
        [{"role": "user", "content": "When Zed"}], "chat of words", ValueError, "hold: 'Zed'"),
    "batch": ([[1, 2], [3, 4]], "none", ValueError, "a batch of 2 prompts"),
    "batch tensor": (torch.ones(3, 2, dtype=torch.long), "none", ValueError, "a batch of 3"),
    "ragged": ([1, [2]], "none", ValueError, "a batch"),
    "padded": ([0, 3, 1, 1], "words", ValueError, r"'<pad>', id 1\) at positions \[2, 3\]"),
    "masked": (
        {"input_ids": [[3, 4]], "attention_mask": [[0, 1]]}, "none", ValueError, "attention mask"),
    "text without tokenizer": ("When", "none", ValueError, "without a tokenizer"),
    "unknown word": ("When Zed went", "words", ValueError, r"hold: 'Zed'\. Use words"),
    "unknown words": ("When Zed Marx", "words", ValueError, r"'Zed', 'Marx' \(nearest: ' Mary'\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_prompt_is_refused(name: str) -> None:
    """The error names what was given."""
    given, tokenizer, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        ids_of(given, VOCABULARY[tokenizer])


def test_a_model_without_context_limit_takes_any_length() -> None:
    assert len(token_ids_of([1] * 500, None, d_vocab=2, n_context=None)) == 500


def test_bos_that_is_also_the_unknown_token_is_no_unknown_word() -> None:
    """OPT, and GPT-2 with add_bos_token: BOS in front of known words is no unknown word."""
    tokenizer = word_level({"unk_token": "<bos>"})
    assert ids_of("When Mary", tokenizer) == ids_of("When Mary", WORDS)
    with pytest.raises(ValueError, match="Zed"):
        ids_of("When Zed", tokenizer)


def test_padding_with_a_token_of_another_use_is_no_padding() -> None:
    """Where pad = BOS or EOS, that token is a token."""
    tokenizer = word_level({"pad_token": "<bos>"})
    assert ids_of([0, 3, 0], tokenizer) == [0, 3, 0]


# ------------------------------------------------------------------------------------ one token

LLAMA, GEMMA, GPT2 = (CLASSES[name] for name in ("Llama", "Gemma", "GPT-2"))
TOKENS: list[tuple[PreTrainedTokenizerFast | None, str | int, str | int]] = [
    (WORDS, " Mary", " Mary"),
    (WORDS, "Mary", " Mary"),
    (WORDS, "here", "here"),
    (WORDS, " here", "here"),
    (WORDS, ",", ","),
    (WORDS, "<bos>", 0),
    (WORDS, "<unk>", 2),
    (WORDS, 5, 5),
    (PAIRS, "Mary", "ĠMary"),
    (PAIRS, " Mary", "ĠMary"),
    (PAIRS, "When", "When"),
    (PAIRS, " When", "When"),
    (PAIRS, "to", "to"),
    (PAIRS, " to", "Ġto"),
    (PAIRS, " ", "Ġ"),
    (PAIRS, "<|end|>", 0),
    (None, 5, 5),
    (LLAMA, "Mary", "Mary"),
    (LLAMA, " Mary", "▁Mary"),
    (LLAMA, "When", "▁When"),
    (LLAMA, " When", "▁When"),
    (LLAMA, ")", ")"),
    (LLAMA, " )", ")"),
    (LLAMA, " ", "▁"),
    (LLAMA, "<s>", "<s>"),
    (GEMMA, "Mary", "Mary"),
    (GEMMA, " Mary", "▁Mary"),
    (GEMMA, "went", "▁went"),
    (GEMMA, " When", "When"),
    (GPT2, "Mary", "Mary"),
    (GPT2, " Mary", "ĠMary"),
    (GPT2, "went", "Ġwent"),
    (GPT2, " When", "When"),
]
"""The last twelve: both spellings are tokens, or one of them is."""


@pytest.mark.parametrize(("tokenizer", "given", "expected"), TOKENS)
def test_a_token_by_text_or_id(
    tokenizer: PreTrainedTokenizerFast | None, given: str | int, expected: str | int
) -> None:
    """ " Mary" and "Mary" are one token where only one of them is; where both are, as written."""
    if isinstance(expected, str):
        assert tokenizer is not None
        expected = tokenizer.convert_tokens_to_ids(expected)
    assert single_token(given, tokenizer, 300) == expected


NO_TOKENS: list[tuple[PreTrainedTokenizerFast | None, Any, type[Exception], str]] = [
    (PAIRS, "Johnny", ValueError, "tokens here: 'Jo' 'hn'"),
    (LLAMA, "Johnny", ValueError, r"3 tokens here: ' John' 'n' 'y'.*first: run\.logit\(' John'\)"),
    (GEMMA, " storehe", ValueError, r"2 tokens here: ' store' 'he'.*run\.logit\(' store'\)"),
    (PAIRS, " Mary went", ValueError, r"2 tokens here.*run\.logit\(' Mary'\)"),
    (WORDS, "Mary went", ValueError, "tokens here|does not hold"),
    (WORDS, "Marie", ValueError, r"does not hold it\. Nearest: .*' Mary'"),
    (WORDS, "", ValueError, "does not hold it"),
    (PAIRS, "", ValueError, "''"),
    (None, " Mary", ValueError, "without a tokenizer"),
    (None, 300, ValueError, "id 300 is outside the vocabulary of 300"),
    (WORDS, -1, ValueError, "id -1 is outside"),
]


@pytest.mark.parametrize(("tokenizer", "given", "kind", "message"), NO_TOKENS)
def test_what_is_not_one_token_is_refused(
    tokenizer: PreTrainedTokenizerFast | None, given: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        single_token(given, tokenizer, 300)


@pytest.mark.parametrize("given", [True, 1.5, None, [3]])
def test_tokens_of_other_types_are_refused(given: Any) -> None:
    """A bool is no id, whether types are checked at the door (here) or by the function itself."""
    with pytest.raises(TypeError):
        single_token(given, WORDS, 300)


def test_every_token_of_a_vocabulary_is_found_by_its_text() -> None:
    """Whatever a tokenizer decodes a token to can be asked for, if it is one token again."""
    for number in range(len(WORDS)):
        assert single_token(WORDS.decode([number]), WORDS, len(WORDS)) == number


@pytest.mark.parametrize(("make", "text"), [(word_level, "When Mary"), (byte_pairs, "When Mary")])
def test_a_model_runs_text(make: Callable[[], PreTrainedTokenizerFast], text: str) -> None:
    """Text in, named tokens and named targets out; the same text is the same run as its ids."""
    tokenizer = make()
    model = ReplacementModel(random_gpt2(Shape(d_vocab=len(tokenizer))), tokenizer)
    run = model.run(text)
    assert run.prompt == text
    assert "".join(run.tokens).removeprefix("<bos>") == text
    assert torch.equal(run.logits, model.run(run.token_ids.tolist()).logits)
    assert run.logit("Mary").value == run.logit(" Mary").value
    assert run.logit("Mary").label == 'logit(" Mary")'
