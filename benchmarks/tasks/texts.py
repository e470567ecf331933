"""Published tasks for models with an ordinary tokenizer, by name.

The bundled model's vocabulary does not hold their words. Lists are filtered by the tokenizer at
hand: what is drawn is one token, and both texts of a pair are of one length.

* docstring (Heimersheim & Janiak 2023): which argument does the documentation name next? Template,
  draw and corruption ("random_random": the matching arguments redrawn, separately in definition and
  documentation) as in the authors' generator, style "rest", 3 matching arguments, 2 in front, 1
  behind, descriptions of 3 and 2 words. Names and nouns are the more common half of theirs. Their
  metric takes the *largest* wrong logit; `Pairs` are linear, so here it is the mean of the wrong
  ones, which is not to be compared with published values (`TextPair.largest_wrong` is).
* numerals, number_words, months (sequence.py, Lan et al. 2023, 2311.04131): "Van done in 1. … Sun
  done in" is continued by 5. Corrupt: random members, none the successor of the one before, nor the
  answer in front of the gap. Metric: logit(next) − logit(last member). Nouns: five of theirs, and
  ours.
* gendered_pronoun (Mathwin et al. 2023): "So Mary is such a really great friend, isn't" she.
  Corrupt: "That person is …". Metric: logit of the right pronoun − the other's.
* ioi, greater_than, sva_…: sentences.py.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import torch

from benchmarks.edges.pairs import Pairs
from benchmarks.tasks.sentences import SENTENCES
from benchmarks.tasks.sequence import SHOWN, sentences, unordered
from benchmarks.tasks.text_pair import TextPair, Words, split_words, token_ids
from benchmarks.tasks.vocabulary import IOI_NAMES, MEMBERS, THINGS, spell
from replacement.prompts import single_token

ARGUMENTS: Final = split_words(
    """
    data name file value test new result line user key default request path output node item url
    model response text version function log string field start number values index error
    current context image message check create size event state row parser end files form query
    instance label run action target array code table source first required options update
    module status group content filename results last read command base format color settings
    order found count match tag title parent call session token server host date description
    mode expected project info valid page header option task shape load names port old resource
    root
    """
)
NOUNS: Final = split_words(
    """
    price control cost issue process position course minute education type research subject girl
    age father force act matter health street patient class mind church condition paper bank
    century section activity building sense sort staff team student language town plan
    management morning product practice evidence ground letter foot boy game food union role
    land art support range stage trade voice arm club history account material care manager
    record example training window air light wife quality rule pound story tax worker nature bed
    hospital method unit detail wall computer amount president chapter property oil column piece
    crime population dark
    """
)
FEMALE: Final = frozenset(
    split_words(
        """
        Mary Alice Sarah Emma Anna Laura Julia Rachel Helen Susan Kate Lucy Jane Amy Ruth Clara Nina
        Diana Maria Rose Grace Linda
        """
    )
)


def docstring(rng: random.Random, words: Words) -> TextPair:
    """Return a definition whose documentation is to name its third matching argument."""
    name, *drawn = rng.sample(words(ARGUMENTS), 15)
    parts = [drawn[start:stop] for start, stop in ((1, 4), (4, 6), (8, 11), (11, 13), (13, 14))]
    other_def, other_doc, matching, front, behind = parts
    described = rng.sample(words(NOUNS), 3)
    details = [rng.sample(words(NOUNS), 2) for _ in range(2)]

    def text(middle: Sequence[str], documented: Sequence[str]) -> str:
        lines = [
            f"    :param {argument}: {' '.join(detail)}"
            for argument, detail in zip(documented, details, strict=True)
        ]
        head = f"\ndef {name}(self, {', '.join([*front, *middle, *behind])}):"
        quoted = f'    """{" ".join(described)}\n'
        return "\n".join([head, quoted, *lines, "    :param"])

    right = matching[-1]
    return TextPair(
        "docstring",
        text(matching, matching[:-1]),
        text(other_def, other_doc),
        (f" {right}",),
        tuple(f" {argument}" for argument in drawn if argument != right),
    )


def _sequence(kind: str) -> Callable[[random.Random, Words], TextPair]:
    def draw(rng: random.Random, words: Words) -> TextPair:
        members = MEMBERS[kind]
        start = rng.randrange(len(members) - SHOWN)
        *shown, last, following = members[start : start + SHOWN + 1]
        things = rng.sample(words(THINGS), SHOWN + 1)
        others = unordered(rng, members)
        while others[-1] in (last, following):
            others = unordered(rng, members)

        def text(members: Sequence[str]) -> str:
            return "".join(map(spell, sentences(things, members))).removeprefix(" ")

        clean, corrupt = text([*shown, last]), text(others)
        return TextPair(kind, clean, corrupt, (f" {following}",), (f" {last}",))

    return draw


def gendered_pronoun(rng: random.Random, words: Words) -> TextPair:
    """Return a sentence about a named friend, to be tagged with a pronoun."""
    name = rng.choice(words(IOI_NAMES))
    right, wrong = (" she", " he") if name in FEMALE else (" he", " she")
    rest = "is such a really great friend, isn't"
    return TextPair(
        "gendered_pronoun", f"So {name} {rest}", f"That person {rest}", (right,), (wrong,)
    )


TEXTS: Final[Mapping[str, Callable[[random.Random, Words], TextPair]]] = MappingProxyType(
    {
        "docstring": docstring,
        **{kind: _sequence(kind) for kind in MEMBERS},
        "gendered_pronoun": gendered_pronoun,
        **SENTENCES,
    }
)
"""Each task's draw."""


def text_pairs(task: str, tokenizer: Any, count: int, *, seed: int = 0) -> list[TextPair]:
    """Return so many pairs of a task that a tokenizer reads as meant.

    Raises KeyError for an unknown task, ValueError "vocabulary not present" where its words are not
    single tokens.
    """
    rng, known = random.Random(f"texts/{seed}/{task}"), {}
    is_one = cache(lambda text: _is_one(text, tokenizer))

    def words(listed: Sequence[str]) -> list[str]:
        if listed not in known:
            known[listed] = [word for word in listed if is_one(f" {word}")]
        return known[listed]

    found: list[TextPair] = []
    for _ in range(20 * count):
        try:
            one = TEXTS[task](rng, words)
        except (ValueError, IndexError):  # fewer words than are drawn
            break
        if _reads(one, tokenizer) and all(map(is_one, (*one.right, *one.wrong))):
            found.append(one)
        if len(found) == count:
            return found
    raise ValueError(
        f"{task}: vocabulary not present: {len(found)} of {count} pairs could be drawn of words "
        "that are one token each for this tokenizer. Give a model with an ordinary vocabulary."
    )


def pairs_of_texts(chosen: Sequence[TextPair], tokenizer: Any, d_vocab: int, *, bos: bool) -> Pairs:
    """Return pairs of one task as a batch, with the tokenizer's BOS in front or without."""
    start = [tokenizer.bos_token_id] if bos else []
    clean, corrupt = (
        [start + token_ids(getattr(one, side), tokenizer) for one in chosen]
        for side in ("clean", "corrupt")
    )
    longest, pad = max(map(len, clean)), clean[0][:1]
    weights, number = torch.zeros(len(chosen), d_vocab), _numbers(tokenizer, d_vocab)
    for row, one in enumerate(chosen):
        for words, sign in ((one.right, 1.0), (one.wrong, -1.0)):
            share = sign if one.probability else sign / len(words)
            weights[row, [number(word) for word in words]] = share
    return Pairs(
        clean=torch.tensor([ids + pad * (longest - len(ids)) for ids in clean]),
        corrupt=torch.tensor([ids + pad * (longest - len(ids)) for ids in corrupt]),
        end=torch.tensor([len(ids) - 1 for ids in clean]),
        weights=weights,
        probability=chosen[0].probability,
    )


def _numbers(tokenizer: Any, d_vocab: int) -> Callable[[str], int]:
    return cache(lambda word: single_token(word, tokenizer, d_vocab))


def _is_one(text: str, tokenizer: Any) -> bool:
    ids = token_ids(text, tokenizer)
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _reads(one: TextPair, tokenizer: Any) -> bool:
    """Whether both texts are known and of one length, and roles are single tokens."""
    clean, corrupt = token_ids(one.clean, tokenizer), token_ids(one.corrupt, tokenizer)
    known = tokenizer.unk_token_id not in clean + corrupt
    stretches = [(one.clean[:start], one.clean[:end]) for start, end in one.roles.values()]
    single = all(
        len(token_ids(longer, tokenizer)) == len(token_ids(text, tokenizer)) + 1
        for text, longer in stretches
    )
    return len(clean) == len(corrupt) and known and single
