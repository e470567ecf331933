"""Small tokenizers for the tests, made from a word list and a sentence: no download."""

import json

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

WORDS = [" Mary", " John", "When", " went", " to", " the", " store", ",", " gave", "here"]
SPECIAL = ["<bos>", "<pad>", "<unk>"]
SENTENCES = ["When Mary and John went to the store, John gave a drink to Mary."] * 20


def word_level(special: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """Return one token a word (with the space before it), BOS in front, <unk> for the rest.

    `special` renames special tokens, to make tokenizers that use one token for two purposes.
    """
    ids = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    names = {"bos_token": "<bos>", "pad_token": "<pad>", "unk_token": "<unk>", **(special or {})}
    inner = Tokenizer(models.WordLevel(ids, unk_token=names["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, **names
    )


def byte_pairs() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE as GPT-2's: no BOS added, nothing unknown, spaces inside tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|end|>",
        eos_token="<|end|>",
        unk_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )


# ------------------------------------------------- classes of transformers, with a vocabulary each

BRACKETS = ["(Mary) and (John) went to (the store). [system] [user] [assistant] [end]"] * 20
CHAT = (
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('Unknown role ' + message.role) }}{% endif %}"
    "[{{ message.role }}] {{ message.content }} [end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""A chat template without BOS; `CHAT_WITH_BOS` puts one first, as most do."""
CHAT_WITH_BOS = "{{ bos_token }}" + CHAT


def llama(**settings: object) -> LlamaTokenizer:
    """Return Llama's: a space before every text, `▁` for spaces, BOS in front."""
    vocabulary, merges = _trained(pre_tokenizers.Metaspace(), ["<unk>", "<s>", "</s>"])
    return LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, **settings)


def gemma(**settings: object) -> GemmaTokenizer:
    """Return Gemma's: `▁` for spaces, none added, BOS in front."""
    vocabulary, merges = _trained(
        pre_tokenizers.Split("▁", "merged_with_next"),
        ["<pad>", "<eos>", "<bos>", "<unk>"],
        normalizers.Replace(" ", "▁"),
    )
    return GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, **settings)


def gpt2(*, add_bos_token: bool = False, **settings: object) -> GPT2Tokenizer:
    """Return GPT-2's: bytes, one special token for every purpose; a BOS only where asked for."""
    vocabulary, merges = _trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"]
    )
    return GPT2Tokenizer(vocab=vocabulary, merges=merges, add_bos_token=add_bos_token, **settings)


def qwen2(**settings: object) -> Qwen2Tokenizer:
    """Return Qwen2's: bytes, and no BOS at all."""
    vocabulary, merges = _trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"]
    )
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, **settings)


def _trained(
    words: pre_tokenizers.PreTokenizer,
    special: list[str],
    normalizer: normalizers.Normalizer | None = None,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and its merges in which every word of the sentences is one token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = words
    if normalizer is not None:
        inner.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    inner.train_from_iterator(SENTENCES + BRACKETS, trainer)
    model = json.loads(inner.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
