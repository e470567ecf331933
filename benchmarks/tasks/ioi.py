"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593): who is given the drink?

"When Mary and John went to the store, John gave a drink to" is followed by the name that occurs
once. The two names come in either order (ABBA: the indirect object first; BABA: the subject
first).
"""

import random
from dataclasses import dataclass
from typing import Final

from benchmarks.tasks.example import Answer, Example, Split, belongs
from benchmarks.tasks.vocabulary import IOI_NAMES, OBJECTS, PLACES

TEMPLATES: Final = (
    "When {A} and {B} went to the {PLACE} , {S} gave a {OBJECT} to",
    "Then , {A} and {B} went to the {PLACE} . {S} gave a {OBJECT} to",
    "After {A} and {B} went to the {PLACE} , {S} gave a {OBJECT} to",
    "While {A} and {B} were working at the {PLACE} , {S} handed a {OBJECT} to",
    "{A} and {B} had a long day at the {PLACE} . {S} decided to give a {OBJECT} to",
    "Then , {A} and {B} were thinking about going to the {PLACE} . "
    "{S} wanted to give a {OBJECT} to",
    "When {A} and {B} got a {OBJECT} at the {PLACE} , {S} decided to give it to",
    "The {PLACE} {A} and {B} went to had a {OBJECT} . {S} gave it to",
    "Friends {A} and {B} found a {OBJECT} at the {PLACE} . {S} gave it to",
    "{A} met {B} at the {PLACE} , and {S} gave a {OBJECT} to",
    "Yesterday {A} saw {B} near the {PLACE} . {S} sent a {OBJECT} to",
    "{A} and {B} walked to the {PLACE} . In the evening {S} passed a {OBJECT} to",
)
"""Sentences up to the answer; {A} and {B} are the names in order, {S} the one repeated."""


@dataclass(frozen=True)
class Sentence:
    """The choices that make one sentence."""

    template: str
    order: str
    """ABBA or BABA."""

    io: str
    subject: str
    place: str
    object: str

    @property
    def key(self) -> tuple[str, ...]:
        """What decides whether the sentence is held out: everything but the order."""
        return (self.template, self.io, self.subject, self.place, self.object)


def write(sentence: Sentence) -> Example:
    """Return the sentence as an example, answer and full stop included."""
    names = (sentence.io, sentence.subject)
    first, second = names if sentence.order == "ABBA" else names[::-1]
    filled = {
        "{A}": first,
        "{B}": second,
        "{S}": sentence.subject,
        "{PLACE}": sentence.place,
        "{OBJECT}": sentence.object,
    }
    slots = sentence.template.split()
    words = tuple(filled.get(slot, slot) for slot in slots)
    io_pos = 1 + words.index(sentence.io)
    s1_pos = 1 + words.index(sentence.subject)
    s2_pos = 1 + slots.index("{S}")
    end = len(words)
    roles = {
        "IO": (io_pos,),
        "S1": (s1_pos,),
        "S1+1": (s1_pos + 1,),
        "S2": (s2_pos,),
        "END": (end,),
    }
    answer = Answer(end, right=(sentence.io,), wrong=(sentence.subject,))
    return Example("ioi", (*words, sentence.io, "."), (answer,), roles, sentence.key)


def ioi(rng: random.Random, split: Split) -> Example:
    """Return a random sentence of the split."""
    while True:
        io, subject = rng.sample(IOI_NAMES, 2)
        sentence = Sentence(
            template=rng.choice(TEMPLATES),
            order=rng.choice(("ABBA", "BABA")),
            io=io,
            subject=subject,
            place=rng.choice(PLACES),
            object=rng.choice(OBJECTS),
        )
        if belongs(sentence.key, split):
            return write(sentence)
