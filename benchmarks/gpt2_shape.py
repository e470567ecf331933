"""A model of GPT-2 small's shape with random weights, to try what its weights would be asked.

`python -m benchmarks.gpt2_shape FOLDER` writes 12 layers of width 768, 50,257 tokens (500 MB), and
a byte-level GPT-2 tokenizer whose merges make one token of every word of the published tasks and of
our own. Its figures mean nothing; that every step runs, how long and in how much memory, does.
"""

import random
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from benchmarks.tasks.texts import TEXTS
from benchmarks.tasks.vocabulary import YEARS, token_strings

END = "<|endoftext|>"
DRAWS = 400
"""Of each task, from which words are taken."""


def pieces() -> list[str]:
    """Return the words of all tasks as GPT-2 cuts text, in byte-level spelling, the same always."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rng, texts = random.Random(0), dict[str, None]()
    for draw in TEXTS.values():
        for _ in range(DRAWS):
            one = draw(rng, list)
            texts |= dict.fromkeys((one.clean, one.corrupt, *one.right, *one.wrong))
    found = {piece: None for text in texts for piece, _ in cut.pre_tokenize_str(text)}
    found |= dict.fromkeys(word.replace(" ", "Ġ") for word in token_strings()[3:])
    return [piece for piece in found if not (piece[1:].isdigit() and len(piece) == 5)]


def tokenizer() -> GPT2Tokenizer:
    """Return GPT-2's tokenizer class with a vocabulary of its own.

    Merges build every word from its left, words after a space first, then capitals; a year is its
    century and two more digits.
    """
    merges: dict[tuple[str, str], None] = {}
    for piece in sorted(pieces(), key=lambda one: (one[0] != "Ġ", one[0].islower())):
        for end in range(1, len(piece)):
            merges[piece[:end], piece[end]] = None
    merges |= dict.fromkeys((year[0], year[1]) for year in YEARS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges)])
    numbers = {token: number for number, token in enumerate([*tokens, END])}
    pairs: Any = list(merges)  # the class says strings, and takes pairs
    return GPT2Tokenizer(vocab=numbers, merges=pairs, bos_token=END, eos_token=END, unk_token=END)


def random_model(*, layers: int = 12, width: int = 768, heads: int = 12) -> GPT2LMHeadModel:
    """Return an untrained GPT-2, the same always; by default of GPT-2 small's shape."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads)).eval()


def main(folder: Annotated[Path, typer.Argument(help="To write to.")]) -> None:
    """Write the model and its tokenizer."""
    random_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    typer.echo(f"wrote {folder}")


if __name__ == "__main__":
    typer.run(main)
