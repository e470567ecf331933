"""Prompts and targets that are none."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from circuits import ReplacementModel, load
from tests.circuits.folders import text_model, tokenizer
from tests.errors.mistakes import Mistake, assert_explained, each
from tests.errors.models_given import model, run, wordless

QUESTION = {"role": "user", "content": "When Mary and John went"}


@cache
def chatting() -> ReplacementModel:
    """A model whose tokenizer has a chat template."""
    tokens = tokenizer()
    tokens.chat_template = "{{ messages[0].content }}" + (
        "{% if messages[0].role != 'user' %}"
        "{{ raise_exception('Unknown role ' + messages[0].role) }}{% endif %}"
    )
    return load(text_model(), tokens)


@cache
def trimming() -> ReplacementModel:
    """Another, whose template strips the messages as Llama's does."""
    tokens = tokenizer()
    tokens.chat_template = "{{ messages | map(attribute='content') | map('trim') | join(' ') }}"
    return load(text_model(), tokens)


def padded() -> dict[str, Any]:
    return {"input_ids": [[4, 5, 1]], "attention_mask": torch.tensor([[1, 1, 0]])}


PROMPTS = [
    Mistake("empty text", lambda _: model().run(""), ValueError, ("''", "empty", "at least one")),
    Mistake("only spaces", lambda _: model().run("  "), ValueError, ("empty", "at least one")),
    Mistake("no ids", lambda _: model().run([]), ValueError, ("[]", "empty", "at least one")),
    Mistake(
        "unknown word",
        lambda _: model().run("When Marie and Zebediah went"),
        ValueError,
        ("'Zebediah'", "'Marie' (nearest: ' Maria'", "vocabulary", "Use words"),
    ),
    Mistake(
        "prompt longer than the context",
        lambda _: model().run([4] * 25),
        ValueError,
        ("25 tokens", "context is 24", "Shorten"),
    ),
    Mistake(
        "batch as lists",
        lambda _: model().run([[4, 5], [6, 7]]),
        ValueError,
        ("a batch of 2", "one prompt", "model.run for each"),
    ),
    Mistake(
        "padded batch as lists",
        lambda _: model().run([[4, 5, 6], [6, 7, 1]]),
        ValueError,
        ("a batch of 2", "one prompt"),
    ),
    Mistake(
        "batch as a tensor",
        lambda _: model().run(torch.tensor([[4, 5], [6, 7]])),
        ValueError,
        ("a batch of 2", "one prompt"),
    ),
    Mistake(
        "batch from a tokenizer",
        lambda _: model().run(tokenizer()(["Mary and", "John went to"])),
        ValueError,
        ("a batch of 2", "one prompt", "model.run for each"),
    ),
    Mistake(
        "padded batch from a tokenizer",
        lambda _: model().run(padded()),
        ValueError,
        ("attention mask", "padded", "unpadded prompt"),
    ),
    Mistake(
        "padding among the ids",
        lambda _: model().run([4, 5, 1, 1]),
        ValueError,
        ("'<pad>', id 1", "[2, 3]", "unpadded prompt"),
    ),
    Mistake(
        "ids too large",
        lambda _: model().run([4, 99999]),
        ValueError,
        ("[99999]", "vocabulary of", "another tokenizer"),
    ),
    Mistake("negative ids", lambda _: model().run([4, -1]), ValueError, ("[-1]", "vocabulary of")),
    Mistake(
        "floats for ids", lambda _: model().run([4.0, 5.5]), TypeError, ("[4.0, 5.5]", "integers")
    ),
    Mistake(
        "float tensor",
        lambda _: model().run(torch.tensor([4.0, 5.5])),
        TypeError,
        ("[4.0, 5.5]", "integers"),
    ),
    Mistake(
        "truth values for ids", lambda _: model().run([True, 4]), TypeError, ("[True]", "integers")
    ),
    Mistake(
        "words as a list",
        lambda _: model().run(["Mary", "and"]),
        TypeError,
        ("['Mary', 'and']", "one string"),
    ),
    Mistake("one id", lambda _: model().run(4), TypeError, ("int", "4", "list of token ids")),
    Mistake("nothing", lambda _: model().run(None), TypeError, ("NoneType", "list of token ids")),
    Mistake(
        "text without a tokenizer",
        lambda _: wordless().run("When Mary"),
        ValueError,
        ("'When Mary'", "without a tokenizer", "token ids", "load(model, tokenizer=...)"),
    ),
    Mistake(
        "a chat without a tokenizer",
        lambda _: wordless().run([QUESTION]),
        ValueError,
        ("chat messages", "without a tokenizer", "load(model, tokenizer=...)"),
    ),
    Mistake(
        "a chat without a template",
        lambda _: model().run([QUESTION]),
        ValueError,
        ("chat messages", "no chat template", "Give one text", "tokenizer.chat_template"),
    ),
    Mistake(
        "one message, not a list",
        lambda _: model().run(QUESTION),
        TypeError,
        ("one chat message outside a list", "Give a list of messages", "[{'role': 'user'"),
    ),
    Mistake(
        "a batch of one chat",
        lambda _: model().run([[QUESTION]]),
        ValueError,
        ("a list of 1 chats", "Give the messages of one chat", "model.run for each"),
    ),
    Mistake(
        "an answer whose last space the template cuts",
        lambda _: trimming().run([QUESTION, {"role": "assistant", "content": "Mary "}]),
        ValueError,
        ("template", "'Mary ' is written as 'When Mary and John went Mary'", "without space"),
    ),
    Mistake(
        "a message without a role",
        lambda _: model().run([QUESTION, {"content": "Mary"}]),
        ValueError,
        ("message 1", "no 'role'", "keys: content", '{"role": "user", "content": "…"}'),
    ),
    Mistake(
        "a message without content",
        lambda _: model().run([{"role": "user", "text": "Mary"}]),
        ValueError,
        ("message 0", "no 'content'", "keys: role, text", '{"role": "user", "content": "…"}'),
    ),
    Mistake(
        "a message of parts",
        lambda _: model().run([{"role": "user", "content": [{"type": "text", "text": "Mary"}]}]),
        TypeError,
        ("message 0", "'content' that is no text but list", '{"role": "user", "content": "…"}'),
    ),
    Mistake(
        "text among messages",
        lambda _: model().run([QUESTION, "Mary"]),
        TypeError,
        ("message 1", "str: 'Mary'", '{"role": "user", "content": "…"}'),
    ),
    Mistake(
        "a role that the template does not know",
        lambda _: chatting().run([{"role": "judge", "content": "Mary"}]),
        ValueError,
        ("chat template", "refuses", "Unknown role judge", "Roles given: judge"),
    ),
    Mistake(
        "an unknown word in a message",
        lambda _: chatting().run([{"role": "user", "content": "Mary and Zebediah"}]),
        ValueError,
        ("'Zebediah'", "vocabulary", "Use words"),
    ),
]

TARGETS = [
    Mistake(
        "a token that is two tokens",
        lambda _: run().logit(" Mary John"),
        ValueError,
        ("2 tokens", "' Mary' ' John'", "one token", "run.logit(' Mary')", "give ids"),
    ),
    Mistake(
        "an unknown token",
        lambda _: run().logit(" Marry"),
        ValueError,
        ("' Marry'", "Nearest", "' Mary'"),
    ),
    Mistake(
        "an empty token", lambda _: run().logit(""), ValueError, ("''", "Give a token", "its id")
    ),
    Mistake(
        "a token id out of range",
        lambda _: run().logit(99999),
        ValueError,
        ("99999", "vocabulary of"),
    ),
    Mistake(
        "a token that is neither", lambda _: run().logit(4.0), TypeError, ("float: 4.0", "integer")
    ),
    Mistake(
        "a truth value as token", lambda _: run().logit(True), TypeError, ("bool: True", "integer")
    ),
    Mistake(
        "a token as text without a tokenizer",
        lambda _: wordless().run([4, 5]).logit(" Mary"),
        ValueError,
        ("' Mary'", "without a tokenizer", "Give its id", "load(model, tokenizer=...)"),
    ),
    Mistake(
        "position past the end of a logit",
        lambda _: run().logit(" Mary", pos=99),
        IndexError,
        ("position 99", "15 tokens", "0 to 14", "-1 for the last"),
    ),
    Mistake(
        "position before the start",
        lambda _: run().logit(" Mary", pos=-16),
        IndexError,
        ("position -16", "0 to 14"),
    ),
    Mistake(
        "position as text",
        lambda _: run().logit(" Mary", pos="last"),
        TypeError,
        ("'last'", "whole number", "-1 for the last"),
    ),
    Mistake(
        "position as a fraction",
        lambda _: run().logit(" Mary", pos=1.5),
        TypeError,
        ("1.5", "whole number", "-1 for the last"),
    ),
    Mistake(
        "a key after the query",
        lambda _: run().attention_score(0, 1, query=3, key=9),
        ValueError,
        ("query=3, key=9", "does not see", "at or before"),
    ),
    Mistake(
        "a head that does not exist",
        lambda _: run().attention_score(0, 99),
        IndexError,
        ("head=99", "query-key heads", "from 0"),
    ),
    Mistake(
        "a side that does not exist",
        lambda _: run().attention_score(0, 0, side="values"),
        ValueError,
        ("side='values'", "query, key, both"),
    ),
    Mistake(
        "a feature of attention read as heads",
        lambda _: run().feature(0, -1, 3, sublayer="attn"),
        ValueError,
        ("sublayer='attn'", "Lorsa or an autoencoder", 'layer 0 has features in "mlp".'),
    ),
    Mistake(
        "position of a feature",
        lambda _: run().feature(0, 99, 0),
        IndexError,
        ("position 99", "15 tokens"),
    ),
    Mistake(
        "layer of a feature", lambda _: run().feature(2, -1, 0), IndexError, ("layer 2", "0 to 1")
    ),
    Mistake(
        "negative layer", lambda _: run().feature(-1, -1, 0), IndexError, ("layer -1", "0 to 1")
    ),
    Mistake(
        "number of a feature",
        lambda _: run().feature(1, -1, 12),
        IndexError,
        ("index=12", "layer 1 has 12 neurons", "numbered from 0"),
    ),
    Mistake(
        "negative number of a feature",
        lambda _: run().feature(1, -1, -1),
        IndexError,
        ("index=-1", "12 neurons"),
    ),
    Mistake(
        "direction of another width",
        lambda _: run().direction(torch.ones(7), 1),
        ValueError,
        ("8 numbers", "(7,)"),
    ),
    Mistake(
        "direction with NaN",
        lambda _: run().direction(torch.full((8,), torch.nan), 1),
        ValueError,
        ("finite", "8 numbers", "NaN"),
    ),
    Mistake(
        "layer of a direction",
        lambda _: run().direction(torch.ones(8), 3),
        IndexError,
        ("layer 3", "0 to 2"),
    ),
    Mistake(
        "targets of two runs",
        lambda _: run().logit(" Mary") - model().run("Mary and").logit(" John"),
        ValueError,
        ('logit(" Mary")', 'logit(" John")', "different runs", "the same run"),
    ),
    Mistake(
        "a difference, centered",
        lambda _: (run().logit(" Mary") - run().logit(" John")).centered(),
        ValueError,
        ("not a single logit", "run.logit(...)", "as it is"),
    ),
]


@each([*PROMPTS, *TARGETS])
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
