"""The generators give what they claim; every claim is checked without the generator's own code."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.tasks import TASKS, Example, is_held_out
from benchmarks.tasks.bracket import MAX_DEPTH
from benchmarks.tasks.example import Split
from benchmarks.tasks.induction import random_words, sentences
from benchmarks.tasks.ioi import TEMPLATES, Sentence, write
from benchmarks.tasks.vocabulary import IOI_NAMES, OTHER_NAMES, WORD_POOL, make_tokenizer, spell

SEEDS = st.integers(0, 2**32)
OPENER = {")": "(", "]": "[", "}": "{"}
LONGEST = 96


def drawn(task: str, seed: int, split: Split = "train", count: int = 5) -> list[Example]:
    rng = random.Random(seed)
    return [TASKS[task](rng, split) for _ in range(count)]


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_no_held_out_example_is_ever_part_of_training(task: str, seed: int) -> None:
    assert not any(is_held_out(example.key) for example in drawn(task, seed))
    assert all(is_held_out(example.key) for example in drawn(task, seed, "held_out"))


@pytest.mark.parametrize("task", TASKS)
def test_a_tenth_is_held_out(task: str) -> None:
    rng = random.Random(3)
    splits: list[Split] = [rng.choice(("train", "held_out")) for _ in range(600)]
    examples = [TASKS[task](rng, split) for split in splits]
    found = ["held_out" if is_held_out(example.key) else "train" for example in examples]
    assert found == splits
    share = sum(is_held_out((task, str(number))) for number in range(5000)) / 5000
    assert 0.085 < share < 0.115


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_answers_are_the_words_that_follow(task: str, seed: int) -> None:
    for example in drawn(task, seed):
        assert 0 < len(example.words) < LONGEST
        assert example.answers
        for answer in example.answers:
            assert example.words[answer.pos] in answer.right
            assert not set(answer.right) & set(answer.wrong)


@pytest.mark.parametrize("task", TASKS)
def test_every_text_is_one_token_a_word(task: str) -> None:
    tokenizer = make_tokenizer()
    for example in drawn(task, 0, count=100):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(example.text).input_ids)
        assert tokens == ["<bos>", *map(spell, example.words)]
        prompt = tokenizer(example.prompt()).input_ids
        assert len(prompt) == example.answers[-1].pos + 1


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_examples(task: str) -> None:
    assert drawn(task, 7) == drawn(task, 7)
    assert drawn(task, 7) != drawn(task, 8)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_ioi_is_answered_by_the_name_that_occurs_once(seed: int) -> None:
    for example in drawn("ioi", seed):
        answer = example.answers[0]
        prompt = example.words[: answer.pos]
        names = [word for word in prompt if word in IOI_NAMES]
        assert len(names) == 3
        assert [name for name in names if names.count(name) == 1] == list(answer.right)
        assert {name for name in names if names.count(name) == 2} == set(answer.wrong)
        assert not set(example.words) & set(OTHER_NAMES)
        for role, word in [("IO", answer.right[0]), ("S1", answer.wrong[0]), ("S2", names[-1])]:
            assert prompt[example.roles[role][0] - 1] == word


def test_ioi_writes_the_sentence_of_the_paper() -> None:
    sentence = Sentence(TEMPLATES[0], "ABBA", "Mary", "John", "store", "drink")
    example = write(sentence)
    assert example.prompt() == "When Mary and John went to the store, John gave a drink to"
    assert example.roles == {"IO": (2,), "S1": (4,), "S1+1": (5,), "S2": (10,), "END": (14,)}


def test_ioi_has_enough_of_everything() -> None:
    assert len(TEMPLATES) >= 8
    assert len(IOI_NAMES) >= 40
    assert len(OTHER_NAMES) >= 15
    assert not set(IOI_NAMES) & set(OTHER_NAMES)
    orders = {e.roles["IO"][0] < e.roles["S1"][0] for e in drawn("ioi", 0, count=50)}
    assert orders == {True, False}


@pytest.mark.parametrize("generator", [random_words, sentences])
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_induction_answers_follow_as_they_did_before(generator, seed: int) -> None:
    example = generator(random.Random(seed), "train")
    first, second = example.roles["FIRST"], example.roles["SECOND"]
    words = (None, *example.words)
    assert [words[pos] for pos in first] == [words[pos] for pos in second]
    assert first[-1] < second[0]
    assert min(answer.pos for answer in example.answers) == second[0]
    assert set(second[:-1]) <= {answer.pos for answer in example.answers}
    for answer in example.answers:
        before = [pos for pos in range(1, answer.pos) if words[pos] == words[answer.pos]]
        assert before
        assert all(words[pos + 1] in answer.right for pos in before)


def test_induction_uses_every_word_of_the_pool() -> None:
    used = {word for e in drawn("induction", 0, count=600) for word in e.words}
    assert set(WORD_POOL) <= used


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_brackets_are_legal_and_only_one_answer_is(seed: int) -> None:
    for example in drawn("bracket", seed):
        stack: list[str] = []
        closing = False
        forced = {}
        for pos, word in enumerate(example.words, start=1):
            closing = closing or word == "close"
            if word in OPENER:
                assert stack.pop() == OPENER[word]
            elif word in OPENER.values():
                assert not closing
                stack.append(word)
            assert len(stack) <= MAX_DEPTH
            if stack and ((closing and word != "close") or len(stack) == MAX_DEPTH):
                forced[pos] = stack[-1]
        assert not stack
        last_open = example.words.index("close")
        forced.pop(last_open, None)  # "close" may follow there as well
        forced.pop(last_open + 1, None)  # after "close" comes ":"
        assert {answer.pos for answer in example.answers} == set(forced)
        for answer in example.answers:
            assert OPENER[answer.right[0]] == forced[answer.pos]
            assert {*answer.right, *answer.wrong} == set(OPENER)


def test_brackets_nest_deep() -> None:
    examples = drawn("bracket", 0, count=200)
    depths = [sum(a.kind == "close" for a in example.answers) for example in examples]
    assert max(depths) == MAX_DEPTH
    assert sum(depth >= 4 for depth in depths) > 40


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_greater_than_is_answered_by_every_later_year(seed: int) -> None:
    for example in drawn("greater_than", seed):
        start, end = int(example.words[7]), int(example.words[12])
        assert example.words[6] == example.words[11]
        assert 2 <= start < end <= 99
        answer = example.answers[0]
        assert [int(year) for year in answer.right] == list(range(start + 1, 100))
        assert [int(year) for year in answer.wrong] == list(range(start + 1))
        assert example.words[example.roles["YY"][0] - 1] == f"{start:02d}"


def test_greater_than_ends_are_uniform_over_the_later_years() -> None:
    ends = [int(e.words[12]) for e in drawn("greater_than", 0, count=4000) if e.words[7] < "40"]
    upper = [end for end in ends if end >= 40]
    assert 0.42 < sum(end >= 70 for end in upper) / len(upper) < 0.58
