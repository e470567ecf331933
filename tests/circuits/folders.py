"""Tiny models that read text, in memory and in folders, for tests of the front door."""

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from benchmarks.tasks.vocabulary import make_tokenizer
from replacement.checkpoints import save_transcoders
from replacement.layers import Transcoder
from tests.random_layers import random_transcoder
from tests.samples import Shape, random_gpt2

PROMPT = "When Mary and John went to the store, John gave a drink to"


def tokenizer() -> Any:
    """Return the tokenizer of the four tasks: one token a word, words it does not know refused."""
    return make_tokenizer()


def text_model(n_context: int = 24) -> GPT2LMHeadModel:
    """Return a random model of two layers over the vocabulary of the four tasks, in float32."""
    shape = Shape(d_vocab=len(tokenizer()), n_context=n_context)
    return random_gpt2(shape, dtype=torch.float32)


def text_transcoders() -> list[Transcoder]:
    """Return one random transcoder per layer of `text_model`, in float32."""
    return [random_transcoder("topk", seed=layer, dtype=torch.float32) for layer in range(2)]


def save_text_model(folder: Path) -> Path:
    """Write `text_model`, its tokenizer and its transcoders; return the model's folder."""
    text_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    save_transcoders(text_transcoders(), folder / "transcoders")
    return folder
