"""Published sentences for ordinary tokenizers: indirect objects, years, subject-verb agreement.

* ioi (Wang et al. 2022): the authors' 15 templates in both orders, their names, places and objects,
  no BOS. Corrupt: S2 → IO (MIB's default); ioi_abc: three unrelated names (the authors' p_ABC).
  Metric: logit(IO) − logit(S).
* greater_than (Hanna et al. 2023): years without a space between century and year, which must be
  two tokens; centuries 11 to 17, YY from 02 to 98, BOS (eos) in front. Corrupt: YY → 01. Metric:
  Σ p(later years) − Σ p(others) over two digits. Nouns: ours, the bundled model's events; the
  authors drop the first and last valid year of each century, which YY's range does here.
* sva_simple, sva_noun_pp, sva_within_rc (Marks et al. 2024, after Finlayson et al.): "The girls
  near the truck" have. Corrupt: the other number of the noun the verb agrees with. Metric:
  logit(verb) − logit(its other number). Nouns, places and verbs as in the authors' files.
"""

import random
from collections.abc import Callable, Sequence

from benchmarks.tasks.text_pair import TextPair, Words, split_words
from benchmarks.tasks.vocabulary import EVENTS, YEARS

TEMPLATES = (
    "Then, {B} and {A} went to the {PLACE}. {S} gave a {OBJECT} to",
    "Then, {B} and {A} had a lot of fun at the {PLACE}. {S} gave a {OBJECT} to",
    "Then, {B} and {A} were working at the {PLACE}. {S} decided to give a {OBJECT} to",
    "Then, {B} and {A} were thinking about going to the {PLACE}. {S} wanted to give a {OBJECT} to",
    "Then, {B} and {A} had a long argument, and afterwards {S} said to",
    "After {B} and {A} went to the {PLACE}, {S} gave a {OBJECT} to",
    "When {B} and {A} got a {OBJECT} at the {PLACE}, {S} decided to give it to",
    "When {B} and {A} got a {OBJECT} at the {PLACE}, {S} decided to give the {OBJECT} to",
    "While {B} and {A} were working at the {PLACE}, {S} gave a {OBJECT} to",
    "While {B} and {A} were commuting to the {PLACE}, {S} gave a {OBJECT} to",
    "After the lunch, {B} and {A} went to the {PLACE}. {S} gave a {OBJECT} to",
    "Afterwards, {B} and {A} went to the {PLACE}. {S} gave a {OBJECT} to",
    "Then, {B} and {A} had a long argument. Afterwards {S} said to",
    "The {PLACE} {B} and {A} went to had a {OBJECT}. {S} gave it to",
    "Friends {B} and {A} found a {OBJECT} at the {PLACE}. {S} gave it to",
)
"""Up to the answer; {B} and {A} are the names in order, {S} the one repeated."""
NAMES = split_words(
    """
    Michael Christopher Jessica Matthew Ashley Jennifer Joshua Amanda Daniel David James Robert
    John Joseph Andrew Ryan Brandon Jason Justin Sarah William Jonathan Stephanie Brian Nicole
    Nicholas Anthony Heather Eric Elizabeth Adam Megan Melissa Kevin Steven Thomas Timothy
    Christina Kyle Rachel Laura Lauren Amber Brittany Danielle Richard Kimberly Jeffrey Amy Crystal
    Michelle Tiffany Jeremy Benjamin Mark Emily Aaron Charles Rebecca Jacob Stephen Patrick Sean
    Erin Jamie Kelly Samantha Nathan Sara Dustin Paul Angela Tyler Scott Katherine Andrea Gregory
    Erica Mary Travis Lisa Kenneth Bryan Lindsey Kristen Jose Alexander Jesse Katie Lindsay Shannon
    Vanessa Courtney Christine Alicia Cody Allison Bradley Samuel
    """
)
PLACES = split_words("store garden restaurant school hospital office house station")
OBJECTS = split_words("ring kiss bone basketball computer necklace drink snack")
CENTURIES = tuple(range(11, 18))
SUBJECTS = split_words(
    """
    friend/friends carpenter/carpenters aunt/aunts man/men doctor/doctors mother/mothers
    victim/victims lawyer/lawyers singer/singers poet/poets kid/kids teacher/teachers farmer/farmers
    athlete/athletes father/fathers woman/women girl/girls boy/boys guy/guys uncle/uncles
    """
)
"""Both numbers of a noun."""
OTHERS = split_words(
    """
    chef/chefs parent/parents assistant/assistants architect/architects executive/executives
    guard/guards dancer/dancers minister/ministers skater/skaters driver/drivers
    """
)
THINGS = split_words(
    "desk/desks table/tables car/cars bike/bikes cat/cats chair/chairs truck/trucks window/windows "
    "tree/trees dog/dogs"
)
VERBS = split_words("is/are has/have does/do goes/go")


def filled(
    template: str, words: dict[str, str], named: Sequence[str]
) -> tuple[str, dict[str, tuple[int, int]]]:
    """Return a template with its words, and where those of some names stand, leading space too.

    >>> filled("The {A} ran", {"A": "dog"}, ["A"])
    ('The dog ran', {'A': (3, 7)})
    """
    text, places = "", {}
    for part in template.split("{"):
        name, closed, rest = part.partition("}")
        if not closed:
            text += name
            continue
        if name in named and name not in places:
            places[name] = (len(text.rstrip()), len(text) + len(words[name]))
        text += words[name] + rest
    return text, places


def _ioi(task: str) -> Callable[[random.Random, Words], TextPair]:
    def draw(rng: random.Random, words: Words) -> TextPair:
        io, subject, *third = rng.sample(words(NAMES), 5)
        template, order = rng.choice(TEMPLATES), rng.choice(("BABA", "ABBA"))
        first, second = (subject, io) if order == "BABA" else (io, subject)
        said = {"PLACE": rng.choice(words(PLACES)), "OBJECT": rng.choice(words(OBJECTS))}
        said |= {"B": first, "A": second, "S": subject}
        clean, places = filled(template, said, "BAS")
        given = {"S": io} if task == "ioi" else dict(zip("BAS", third, strict=True))
        corrupt, _ = filled(template, said | given, ())
        named = ("S1", "IO") if order == "BABA" else ("IO", "S1")
        roles = {named[0]: places["B"], named[1]: places["A"], "S2": places["S"]}
        return TextPair(task, clean, corrupt, (f" {io}",), (f" {subject}",), bos=False, roles=roles)

    return draw


def greater_than(rng: random.Random, words: Words) -> TextPair:
    """Return a span of years, to be continued by a later year of its century."""
    century, start = str(rng.choice(CENTURIES)), rng.randrange(2, 99)
    said = {"NOUN": rng.choice(words(EVENTS)), "XX1": century, "XX2": century}
    template = "The {NOUN} lasted from the year {XX1}{YY} to the year {XX2}"
    clean, roles = filled(template, {**said, "YY": YEARS[start]}, ("NOUN", "XX1", "YY"))
    corrupt, _ = filled(template, {**said, "YY": "01"}, ())
    later, others = YEARS[start + 1 :], YEARS[: start + 1]
    return TextPair("greater_than", clean, corrupt, later, others, probability=True, roles=roles)


def _agreement(task: str, template: str, agrees: str) -> Callable[[random.Random, Words], TextPair]:
    """`agrees`: the slot whose number the verb takes."""
    lists = {"SUBJECT": SUBJECTS, "OTHER": OTHERS, "THING": THINGS}

    def draw(rng: random.Random, words: Words) -> TextPair:
        chosen, slots = {}, [name for name in lists if f"{{{name}}}" in template]
        for name in slots:
            both = rng.choice([p for p in lists[name] if len(words(tuple(p.split("/")))) == 2])
            chosen[name] = both.split("/")
        number = {name: rng.randrange(2) for name in slots}
        right, wrong = rng.choice(VERBS).split("/")
        if number[agrees]:
            right, wrong = wrong, right
        said = {name: both[number[name]] for name, both in chosen.items()}
        said["WHERE"] = rng.choice(("near", "behind", "beside"))
        clean, roles = filled(template, said, slots)
        corrupt, _ = filled(template, said | {agrees: chosen[agrees][1 - number[agrees]]}, ())
        return TextPair(task, clean, corrupt, (f" {right}",), (f" {wrong}",), roles=roles)

    return draw


SENTENCES = {
    "ioi": _ioi("ioi"),
    "ioi_abc": _ioi("ioi_abc"),
    "greater_than": greater_than,
    "sva_simple": _agreement("sva_simple", "The {SUBJECT}", "SUBJECT"),
    "sva_noun_pp": _agreement("sva_noun_pp", "The {SUBJECT} {WHERE} the {THING}", "SUBJECT"),
    "sva_within_rc": _agreement("sva_within_rc", "The {SUBJECT} that the {OTHER}", "OTHER"),
}
"""Each task's draw."""
