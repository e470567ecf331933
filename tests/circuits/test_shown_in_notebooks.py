"""What a model, a run, a target and a plan show at the end of a notebook cell."""

from xml.etree import ElementTree

import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter

from circuits import load, plan
from circuits.loading_plan import loading_plan
from replacement.notebook import as_html
from replacement.run import Run
from tests.browser.hostile import STRINGS
from tests.circuits.folders import PROMPT


@pytest.fixture(scope="module")
def run() -> Run:
    return load("four-tasks").run(PROMPT)


def shown(value: object) -> pd.DataFrame:
    """The table a notebook shows, which has the value's text too."""
    data, _ = DisplayFormatter().format(value)
    assert data["text/plain"] == repr(value)
    page = ElementTree.fromstring(f"<div>{data['text/html']}</div>")
    names, *rows = [[cell.text for cell in row] for row in page.iter("tr")]
    return pd.DataFrame(rows, columns=names)


def test_a_model_says_what_its_parts_are_read_as(run: Run) -> None:
    told = shown(run.model).set_index("part")["is"]
    assert told["mlp"] == "transcoders" and told["attention"] == "lorsa"
    assert told["context"] == "96 tokens" and told["model"] == "GPT2LMHeadModel"


def test_a_run_says_what_comes_next(run: Run) -> None:
    told = shown(run)
    assert told["next token"].iloc[0] == '" Mary"' and len(told) == 5
    chance = float(run.logits[-1].softmax(-1).max())
    assert float(told["probability"].iloc[0]) == pytest.approx(chance, abs=1e-4)
    assert told["logit"].astype(float).is_monotonic_decreasing


def test_a_target_says_its_terms(run: Run) -> None:
    told = shown(run.logit(" Mary") - 2 * run.logit(" John"))
    assert told["weight"].tolist() == ["+1", "-2"] and told["of"].tolist() == ['" Mary"', '" John"']
    assert set(told["at"]) == {"' to'@14"}
    others = (run.feature(1, 3, 7), run.attention_score(2, 1, -1, 3), run.direction([1.0] * 128, 2))
    wanted = ["layer 1, mlp 7", "layer 2, attn 1", "layer 2"]
    assert [shown(target)["of"].item() for target in others] == wanted


def test_plans_say_the_same_as_their_text(run: Run) -> None:
    for told in (plan(run.logit(" Mary")), loading_plan("four-tasks")):
        table = shown(told)
        assert [f"{name:<9}{text}" for name, text in table.to_numpy()] == repr(told).splitlines()


def test_text_stays_text() -> None:
    """No token or name of a model becomes an element."""
    harmless = as_html("", {"token": ["a"] * len(STRINGS)})
    html = as_html("".join(STRINGS), {"token": STRINGS})
    assert html.count("<") == harmless.count("<") and html.count(">") == harmless.count(">")
