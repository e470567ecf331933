"""Models whose edges cannot be cut one by one: what their components write does not add up."""

from pathlib import Path

from benchmarks.truth.exhaustive import ComponentModel
from circuits import load
from tests.errors.mistakes import Mistake, assert_explained, each
from tests.families import tiny


def components(name: str) -> ComponentModel:
    return ComponentModel(load(tiny(name), attention="heads", mlp="neurons"))


TRUTH = [
    Mistake(
        "a norm behind the heads",
        lambda _: components("Gemma-2, no caps"),
        ValueError,
        ("Gemma2ForCausalLM", "norms behind its sublayers", "Give one without"),
    ),
    Mistake(
        "attention and MLP beside each other",
        lambda _: components("GPT-J"),
        ValueError,
        ("GPTJForCausalLM", "parallel blocks", "Give one without"),
    ),
    Mistake(
        "layers that were trained",
        lambda _: ComponentModel(load("four-tasks")),
        ValueError,
        ("four-tasks", "trained layers", 'Load it with attention="heads", mlp="neurons"'),
    ),
]


@each(TRUTH)
def test_it_is_explained(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)


def test_what_adds_up_is_taken() -> None:
    """Control: the same call on a model that fits."""
    assert components("GPT-2").n_heads == 2
