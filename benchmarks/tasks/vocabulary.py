"""The words of the tasks, and the tokenizers that read them: of four tasks, and of five.

Every word is one token and carries its leading space (" Mary"), as in GPT-2, so a text means the
same with or without a space in front. Punctuation carries none; brackets and two-digit years
carry one.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS: Final = "<bos>"
PAD: Final = "<pad>"
UNK: Final = "<unk>"


def _words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


IOI_NAMES: Final = _words(
    """
    Mary John Alice Tom Sarah James Emma Peter Anna Robert Laura Michael Julia David Rachel
    Daniel Helen Mark Susan Paul Kate George Lucy Henry Jane Simon Amy Jack Ruth Adam Clara
    Martin Nina Kevin Diana Frank Maria Steven Rose Andrew Grace Charles Linda Brian
    """
)
"""Names that occur in indirect-object sentences."""

OTHER_NAMES: Final = _words(
    """
    Oliver Sophia Leo Victoria Oscar Irene Felix Nora Hugo Stella Victor Ivy Walter Hazel Arthur
    Esther Edgar Wanda
    """
)
"""Names that never occur in indirect-object sentences, only in repeated sequences."""

PLACES: Final = _words(
    """
    store park school garden station museum library market beach office hospital restaurant
    church theater farm castle bakery harbor river bridge
    """
)
OBJECTS: Final = _words(
    """
    drink book ring ball letter key flower cake map coat ticket basket lamp bottle hat pen
    camera phone present kiss necklace bone
    """
)
EVENTS: Final = _words(
    """
    war siege reign plague trial voyage campaign dispute treaty famine rebellion expedition
    drought marriage alliance project study tour contract dynasty quest rivalry strike exile
    blockade crusade occupation partnership friendship epidemic kingdom construction pilgrimage
    conspiracy invasion revolt mission truce feud investigation imprisonment journey conflict
    decline growth operation tradition expansion therapy program
    """
)
"""Nouns that last from one year to another."""

ADJECTIVES: Final = _words(
    """
    old small quiet green bright heavy strange cold gentle broken golden empty famous narrow
    simple silver
    """
)
NOUNS: Final = _words(
    """
    horse window tree stone road cloud door table song wolf mountain candle wheel forest mirror
    ship apple tower bird clock
    """
)
GRAMMAR: Final = _words(
    """
    The the a and to at in of it was were is had by When Then After While In Friends Yesterday
    Once went gave working handed long day decided give thinking about going wanted got found
    met saw near sent walked evening passed lasted from year close stood behind came called They
    said again read word words for very
    """
)
PUNCTUATION: Final = (",", ".", ":", ";")
PAIRS: Final = {"(": ")", "[": "]", "{": "}"}
"""Opening bracket to closing bracket."""

YEARS: Final = tuple(f"{number:02d}" for number in range(100))
"""Two-digit numbers: years within a century, and the centuries themselves."""

WORD_POOL: Final = IOI_NAMES + OTHER_NAMES + PLACES + OBJECTS + EVENTS + ADJECTIVES + NOUNS
"""Words of which random sequences are made."""


THINGS: Final = ("Van", "Hat", "Ring", "Desk", "Sun", "Lamp", "Book", "Ball", "Cup", "Door")
MEMBERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "numerals": tuple(str(number) for number in range(1, 13)),
        "number_words": _words("one two three four five six seven eight nine ten eleven twelve"),
        "months": _words(
            "January February March April May June July August September October November December"
        ),
    }
)
"""What sequences run through, by their kind; those of two digits are among the years."""


def token_strings(*, sequences: bool = False) -> tuple[str, ...]:
    """Return every token as it is spelt in the vocabulary, in the order of the ids.

    The words of sequences, if they are wanted, come last: all other ids are the same without them.

    >>> token_strings()[:4]
    ('<bos>', '<pad>', '<unk>', ',')
    """
    brackets = tuple(PAIRS) + tuple(PAIRS.values())
    words = brackets + YEARS + GRAMMAR + WORD_POOL
    if sequences:
        members = tuple(one for listed in MEMBERS.values() for one in listed if one not in YEARS)
        words += ("done", *THINGS, *members)
    tokens = (BOS, PAD, UNK, *PUNCTUATION, *(f" {word}" for word in words))
    if len(set(tokens)) != len(tokens):
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        raise ValueError(
            f"the vocabulary lists {twice} twice; take each out of one list in vocabulary.py"
        )
    return tokens


def spell(word: str) -> str:
    """Return the token of a word: with a leading space, unless it is punctuation.

    >>> spell("Mary"), spell(",")
    (' Mary', ',')
    """
    return word if word in PUNCTUATION else f" {word}"


def _normalizer() -> normalizers.Normalizer:
    """Return the rules that make every spelling of the same words the same string."""
    brackets = tuple(PAIRS) + tuple(PAIRS.values())
    space_before_brackets = [normalizers.Replace(mark, f" {mark}") for mark in brackets]
    no_space_before_punctuation = [
        normalizers.Replace(Regex(rf"\s+\{mark}"), mark) for mark in PUNCTUATION
    ]
    return normalizers.Sequence(
        [
            *space_before_brackets,
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex(r"\s+$"), ""),
            *no_space_before_punctuation,
        ]
    )


def make_tokenizer(*, sequences: bool = False) -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer: BOS in front, one token a word, decoding concatenates.

    `sequences`: also of the words of sequences.

    >>> tokenizer = make_tokenizer()
    >>> tokenizer.decode(tokenizer("When Mary and John").input_ids)
    '<bos> When Mary and John'
    """
    ids = {token: index for index, token in enumerate(token_strings(sequences=sequences))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=96,
    )
