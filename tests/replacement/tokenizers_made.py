"""Small tokenizers for the tests, made from a word list and a sentence: no download."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

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
