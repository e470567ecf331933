"""Published tasks for models with an ordinary tokenizer: docstring, sequences, gendered pronoun.

The bundled model's vocabulary does not hold their words. Lists are filtered by the tokenizer at
hand: what is drawn is one token, and both texts of a pair are of one length.

* docstring (Heimersheim & Janiak 2023): which argument does the documentation name next? Template,
  draw and corruption ("random_random": the matching arguments redrawn, separately in definition and
  documentation) as in the authors' generator, style "rest", 3 matching arguments, 2 in front, 1
  behind, descriptions of 3 and 2 words. Names and nouns are the more common half of theirs. Their
  metric takes the *largest* wrong logit; `Pairs` are linear, so here it is the mean of the wrong
  ones, which is not to be compared with published values (`TextPair.largest_wrong` is).
* numerals, number_words, months (Lan et al. 2023, 2311.04131): "Van done in 1. … Sun done in" is
  continued by 5. Corrupt: random members, none the successor of the one before, nor the answer in
  front of the gap. Metric: logit(next) − logit(last member). Nouns: five of theirs and ours.
* gendered_pronoun (Mathwin et al. 2023): "So Mary is such a really great friend, isn't" she.
  Corrupt: "That person is …". Metric: logit of the right pronoun − the other's.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.edges.pairs import Pairs
from benchmarks.tasks.vocabulary import IOI_NAMES
from replacement.prompts import single_token

Words = Callable[[Sequence[str]], list[str]]
"""Of a list, what is one token with a space in front."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ARGUMENTS: Final = _words(
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
NOUNS: Final = _words(
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
FEMALE: Final = frozenset(
    _words(
        """
        Mary Alice Sarah Emma Anna Laura Julia Rachel Helen Susan Kate Lucy Jane Amy Ruth Clara Nina
        Diana Maria Rose Grace Linda
        """
    )
)


@dataclass(frozen=True)
class TextPair:
    """A text and its counterfactual, cut where the answer is predicted."""

    task: str
    clean: str
    corrupt: str
    right: str
    wrong: tuple[str, ...]

    def largest_wrong(self, logits: Float[Tensor, " d_vocab"], tokenizer: Any) -> Float[Tensor, ""]:
        """Return logit(right) − the largest of the wrong ones: docstring's published metric."""
        number = [single_token(word, tokenizer, len(logits)) for word in (self.right, *self.wrong)]
        return logits[number[0]] - logits[number[1:]].max()


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
        f" {right}",
        tuple(f" {argument}" for argument in drawn if argument != right),
    )


def _sequence(kind: str) -> Callable[[random.Random, Words], TextPair]:
    def draw(rng: random.Random, words: Words) -> TextPair:
        members = MEMBERS[kind]
        start = rng.randrange(len(members) - 4)
        run = members[start : start + 5]
        things = rng.sample(words(THINGS), 5)
        while True:
            others = rng.sample(members, 4)
            places = [members.index(one) for one in others]
            follows = any(b == a + 1 for a, b in itertools.pairwise(places))
            if not follows and others[-1] not in (run[3], run[4]):
                break

        def text(shown: Sequence[str]) -> str:
            done = [f"{thing} done in {one}." for thing, one in zip(things, shown, strict=False)]
            return " ".join([*done, f"{things[4]} done in"])

        return TextPair(kind, text(run[:4]), text(others), f" {run[4]}", (f" {run[3]}",))

    return draw


def gendered_pronoun(rng: random.Random, words: Words) -> TextPair:
    """Return a sentence about a named friend, to be tagged with a pronoun."""
    name = rng.choice(words(IOI_NAMES))
    right, wrong = (" she", " he") if name in FEMALE else (" he", " she")
    rest = "is such a really great friend, isn't"
    return TextPair("gendered_pronoun", f"So {name} {rest}", f"That person {rest}", right, (wrong,))


TEXTS: Final[Mapping[str, Callable[[random.Random, Words], TextPair]]] = MappingProxyType(
    {
        "docstring": docstring,
        **{kind: _sequence(kind) for kind in MEMBERS},
        "gendered_pronoun": gendered_pronoun,
    }
)
"""Each task's draw."""


def text_pairs(task: str, tokenizer: Any, count: int, *, seed: int = 0) -> list[TextPair]:
    """Return so many pairs of a task that a tokenizer reads as meant.

    Raises KeyError for an unknown task, ValueError "vocabulary not present" where its words are not
    single tokens.
    """
    rng, known = random.Random(f"texts/{seed}/{task}"), {}

    def words(listed: Sequence[str]) -> list[str]:
        if listed not in known:
            known[listed] = [word for word in listed if _is_one(f" {word}", tokenizer)]
        return known[listed]

    found: list[TextPair] = []
    for _ in range(20 * count):
        try:
            one = TEXTS[task](rng, words)
        except (ValueError, IndexError):  # fewer words than are drawn
            break
        if _reads(one, tokenizer):
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
        [start + _ids(getattr(one, side), tokenizer) for one in chosen]
        for side in ("clean", "corrupt")
    )
    longest, pad = max(map(len, clean)), clean[0][:1]
    weights = torch.zeros(len(chosen), d_vocab)
    for row, one in enumerate(chosen):
        weights[row, single_token(one.right, tokenizer, d_vocab)] = 1.0
        for word in one.wrong:
            weights[row, single_token(word, tokenizer, d_vocab)] = -1 / len(one.wrong)
    return Pairs(
        clean=torch.tensor([ids + pad * (longest - len(ids)) for ids in clean]),
        corrupt=torch.tensor([ids + pad * (longest - len(ids)) for ids in corrupt]),
        end=torch.tensor([len(ids) - 1 for ids in clean]),
        weights=weights,
    )


def _ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _is_one(text: str, tokenizer: Any) -> bool:
    ids = _ids(text, tokenizer)
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _reads(one: TextPair, tokenizer: Any) -> bool:
    """Whether both texts are known and of one length, and all answers are single tokens."""
    clean, corrupt = _ids(one.clean, tokenizer), _ids(one.corrupt, tokenizer)

    answers = all(_is_one(word, tokenizer) for word in (one.right, *one.wrong))
    return len(clean) == len(corrupt) and tokenizer.unk_token_id not in clean + corrupt and answers
