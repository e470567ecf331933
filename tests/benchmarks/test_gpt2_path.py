"""What GPT-2 small's weights would be asked, on a random model with GPT-2's tokenizer class."""

import dataclasses
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from benchmarks import gpt2_shape, greater_than, ioi, published
from benchmarks.edges import EdgeModel
from benchmarks.faithfulness import drawn
from benchmarks.role_circuits import ask
from benchmarks.tasks.published import published_circuits
from benchmarks.tasks.text_pair import token_ids
from benchmarks.tasks.texts import TEXTS, text_pairs
from circuits import load
from replacement.model import ReplacementModel


@cache
def small() -> ReplacementModel:
    model = gpt2_shape.random_model(layers=2, width=24, heads=3)
    return load(model, tokenizer=gpt2_shape.tokenizer(), mlp="neurons", attention="heads")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gpt2")
    gpt2_shape.random_model(layers=2, width=24, heads=3).save_pretrained(made)
    gpt2_shape.tokenizer().save_pretrained(made)
    return made


def run(main, *words: str) -> str:
    app = Typer()
    app.command()(main)
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_shape_is_gpt2_smalls() -> None:
    with torch.device("meta"):
        model = gpt2_shape.random_model()
    assert sum(weight.numel() for weight in model.parameters()) == 124_439_808


def test_published_prompts_are_asked_as_their_authors_do() -> None:
    for task, bos in (("ioi", False), ("greater_than", True)):
        for one in ask(small(), task, 3, published=True):
            assert (one.run.tokens[0] == gpt2_shape.END) == bos
            assert one.roles["END"] == [len(one.run.tokens) - 1]
            changed = "S2" if task == "ioi" else "YY"
            tokens, others = one.run.tokens, one.other.tokens
            places = [k for k, token in enumerate(tokens) if token != others[k]]
            assert places == one.roles[changed]
    words = one.run.tokens
    (century,) = one.roles["XX1"]
    assert words[century] == words[-1]
    later, others = range(int(one.answer), 100), range(int(one.answer))
    number = [one.run.model.tokenizer.convert_tokens_to_ids(f"{k:02d}") for k in range(100)]
    logits = one.run.logits[-1][number]
    wanted = logits[list(later)].mean() - logits[list(others)].mean()
    assert one.target.value == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("script", [ioi, greater_than])
def test_the_scripts_run_to_the_picture(script, folder: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.svg"
    words = ("--model", str(folder), "--published", "--prompts", "1", "-o", str(drawn))
    shown = run(script.main, *words)
    assert re.search(r"\d+ parts .* of all nodes\): alone", shown)
    assert "looks at" in shown
    assert drawn.read_text(encoding="utf-8").startswith("<svg")


def test_published_figures_of_every_task(folder: Path, tmp_path: Path) -> None:
    written = tmp_path / "found.json"
    run(published.main, "--model", str(folder), "--pairs", "2", "-o", str(written))
    found = json.loads(written.read_text())["tasks"]
    assert found.keys() == TEXTS.keys()
    for task, row in found.items():
        assert row["pairs"] == 2, task
        assert row["metric"] == ("probability" if task == "greater_than" else "logit")
    model = load(str(folder), mlp="neurons", attention="heads")
    rows = []
    for one in text_pairs("ioi", model.tokenizer, 2):
        ids = torch.tensor([token_ids(one.clean, model.tokenizer)])
        with torch.no_grad():
            logits = model.hf_model(ids).logits[0, -1]
        right, wrong = (token_ids(words[0], model.tokenizer)[0] for words in (one.right, one.wrong))
        rows.append((logits[right] - logits[wrong]).item())
    assert found["ioi"]["clean"] == pytest.approx(sum(rows) / 2, abs=1e-5)
    assert found["ioi"]["right ahead"] == sum(row > 0 for row in rows) / 2


def test_faithfulness_takes_published_prompts() -> None:
    bos = small().tokenizer.bos_token_id
    for task, first in (("ioi", False), ("greater_than", True)):
        pairs, others = (drawn(small(), task, 2, seed, published=True) for seed in (0, 1))
        assert (pairs.clean[:, 0] == bos).all() == first
        assert pairs.probability == first
        assert not torch.equal(pairs.clean, others.clean)


def test_a_vocabulary_without_the_words_is_said(tmp_path: Path) -> None:
    words = ("--model", "four-tasks", "--tasks", "months", "--pairs", "2")
    shown = run(published.main, *words, "-o", str(tmp_path / "found.json"))
    assert "months: vocabulary not present" in shown


def test_circuits_are_of_models_of_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published.circuits_of("ioi", EdgeModel(small())) == {}
    model = gpt2_shape.random_model(layers=12, width=12, heads=12)
    shaped = EdgeModel(load(model, tokenizer=gpt2_shape.tokenizer(), mlp="neurons"))
    assert len(published.circuits_of("ioi", shaped)) == 4
    assert published.circuits_of("docstring", shaped) == {}, "of a model of 4 layers"
    assert published.circuits_of("sva_simple", shaped) == {}
    row = published.figures(shaped, "greater_than", 2)
    assert len(row) == 6 + 4
    kept = row["greater-than, Hanna et al. code"]
    for share in kept.values():
        assert share not in (row["clean"], row["counterfactual"])
    assert kept["alone"] != kept["without"]
    whole = dataclasses.replace(
        published_circuits()["IOI, ACDC canonical"],
        roles={"all": tuple((layer, head) for layer in range(12) for head in range(12))},
    )
    monkeypatch.setattr(published, "circuits_of", lambda *_: {"all": whole})
    row = published.figures(shaped, "greater_than", 2)
    assert row["all"]["alone"] == pytest.approx(row["clean"], abs=1e-6)
