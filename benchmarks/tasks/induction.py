"""Induction (Olsson et al. 2022, arXiv 2209.11895): what followed the last time follows again.

Half of the texts are random words: a few that never recur, then a block of distinct words two or
more times, the last copy possibly cut short. The other half are ordinary sentences in which a
phrase of two to six random words (or a full name) recurs. Every word of the pool can stand
anywhere, so nothing but the repetition tells what comes next.
"""

import random
from collections.abc import Sequence
from typing import Final

from benchmarks.tasks.example import Answer, Example, Split, belongs
from benchmarks.tasks.vocabulary import (
    ADJECTIVES,
    IOI_NAMES,
    NOUNS,
    OTHER_NAMES,
    PLACES,
    WORD_POOL,
)

LONGEST_TEXT: Final = 72
BLOCK_LENGTHS: Final = (2, 20)
PREFIX_LENGTHS: Final = (0, 12)
PHRASE_LENGTHS: Final = (2, 6)

SENTENCES: Final = (
    "The {ADJ} {NOUN} stood behind the {PLACE} .",
    "Once the {NOUN} was {ADJ} .",
    "They walked from the {PLACE} to the {PLACE} .",
    "In the evening the {PLACE} was very {ADJ} .",
    "After a long day the {NOUN} was near the {PLACE} .",
)
WITH_PHRASE: Final = (
    "They read of {PHRASE} .",
    "Yesterday {PHRASE} came to the {PLACE} .",
    "The word was {PHRASE} , again and again .",
    "They saw {PHRASE} near the {ADJ} {NOUN} .",
    "Then , {PHRASE} .",
    "The words were : {PHRASE} .",
)


def _answers(words: Sequence[str], positions: Sequence[int]) -> tuple[Answer, ...]:
    """Return, for each position, that the word after it follows and no other of the text."""
    return tuple(
        Answer(pos, (words[pos],), tuple(dict.fromkeys(w for w in words if w != words[pos])))
        for pos in positions
    )


def random_words(rng: random.Random, split: Split, pool: Sequence[str] = WORD_POOL) -> Example:
    """Return words that never recur, then a block of words that does; all are distinct."""
    while True:
        prefix_length = min(rng.randint(*PREFIX_LENGTHS), len(pool) - BLOCK_LENGTHS[0])
        longest = min(BLOCK_LENGTHS[1], len(pool) - prefix_length)
        length = rng.randint(BLOCK_LENGTHS[0], longest)
        drawn = rng.sample(pool, prefix_length + length)
        block = drawn[prefix_length:]
        if not belongs(("induction", *block), split):
            continue
        room = LONGEST_TEXT - prefix_length
        total = rng.randint(2 * length, max(2 * length, min(room, 4 * length)))
        words = drawn[:prefix_length] + [block[index % length] for index in range(total)]
        first = prefix_length + 1
        second = first + length
        roles = {
            "FIRST": tuple(range(first, second)),
            "SECOND": tuple(range(second, second + length)),
        }
        answers = _answers(words, range(second, len(words)))
        return Example("induction", tuple(words), answers, roles, ("induction", *block))


def _fill(rng: random.Random, sentence: str, phrase: Sequence[str]) -> list[str]:
    """Return the words of a sentence with its slots filled by words outside the phrase."""
    pools = {"{ADJ}": ADJECTIVES, "{NOUN}": NOUNS, "{PLACE}": PLACES}
    words: list[str] = []
    for slot in sentence.split():
        if slot == "{PHRASE}":
            words.extend(phrase)
        elif slot in pools:
            words.append(rng.choice([word for word in pools[slot] if word not in phrase]))
        else:
            words.append(slot)
    return words


def _story(rng: random.Random, phrase: Sequence[str]) -> list[str]:
    """Return sentences, two or three with the phrase, that fit into `LONGEST_TEXT`."""
    while True:
        words: list[str] = []
        for template in rng.sample(WITH_PHRASE, rng.choice((2, 2, 3))):
            for _ in range(rng.choice((0, 0, 1, 2))):
                words += _fill(rng, rng.choice(SENTENCES), phrase)
            words += _fill(rng, template, phrase)
        if len(words) <= LONGEST_TEXT:
            return words


def sentences(rng: random.Random, split: Split) -> Example:
    """Return ordinary sentences in which a phrase of random words or a full name recurs."""
    while True:
        if rng.random() < 0.3:
            phrase = rng.sample(IOI_NAMES + OTHER_NAMES, 2)
        else:
            phrase = rng.sample(WORD_POOL, rng.randint(*PHRASE_LENGTHS))
        if belongs(("induction", *phrase), split):
            break
    words = _story(rng, phrase)
    starts = [1 + index for index, word in enumerate(words) if word == phrase[0]]
    copies = [tuple(range(start, start + len(phrase))) for start in starts]
    roles = {"FIRST": copies[0], "SECOND": copies[1]}
    asked = [pos for copy in copies[1:] for pos in copy[:-1]]
    return Example("induction", tuple(words), _answers(words, asked), roles, ("induction", *phrase))


def induction(rng: random.Random, split: Split) -> Example:
    """Return a random text of the split, of either sort equally often."""
    return random_words(rng, split) if rng.random() < 0.5 else sentences(rng, split)
