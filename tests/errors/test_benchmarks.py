"""What the benchmarks refuse: models that are no sum of components, pairs that misfit."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import torch

from benchmarks.baselines import acdc, discrete_codes, eap_ig_activations, eap_ig_inputs
from benchmarks.edges import EdgeModel, Pairs, Patching
from benchmarks.faithfulness import Settings, stored
from benchmarks.report.cells import Cells
from benchmarks.role_circuits import ask
from benchmarks.scores import bootstrap_jaccard, faithfulness, roc_points
from benchmarks.tasks.texts import text_pairs
from benchmarks.tasks.vocabulary import make_tokenizer
from circuits import load
from replacement.model import ReplacementModel
from tests.errors.mistakes import Mistake, assert_explained, each, made_file
from tests.families import tiny


@cache
def model() -> EdgeModel:
    return EdgeModel(ReplacementModel(tiny("GPT-2")))


def pairs() -> Pairs:
    ids = torch.tensor([[1, 2, 3]])
    return Pairs(ids, ids + 1, torch.tensor([2]), torch.zeros(1, 13))


def cells(folder: Path, measured_with: dict[str, int]) -> Cells:
    """A report's folder, asked for with 200 pairs, that holds a cell measured with others."""
    found = Cells(folder, {"pairs": 200})
    text = json.dumps({"settings": measured_with, "figures": {}})
    made_file(folder / "cells" / "edges-ioi-0.json", text)
    return found


MISTAKES = [
    Mistake(
        "a model read through layers",
        lambda _: EdgeModel(load("four-tasks")),
        ValueError,
        ("layer 0", "transcoders", "mlp='neurons', attention='heads'"),
    ),
    Mistake(
        "norms after sublayers",
        lambda _: EdgeModel(ReplacementModel(tiny("Gemma-2, no caps"))),
        ValueError,
        ("norms after its sublayers", "does not add up", "Models without them"),
    ),
    Mistake(
        "counterfactuals of another length",
        lambda _: dataclasses.replace(pairs(), corrupt=torch.tensor([[1, 2]])),
        ValueError,
        ("(1, 3)", "(1, 2)", "the same lengths"),
    ),
    Mistake(
        "an answer behind the prompt",
        lambda _: dataclasses.replace(pairs(), end=torch.tensor([3])),
        ValueError,
        ("answers at 3 to 3", "3 tokens", "from 0"),
    ),
    Mistake(
        "an unknown ablation",
        lambda _: Patching(model(), pairs(), "noise"),  # type: ignore[arg-type]
        ValueError,
        ("ablation='noise'", "corrupt, mean, zero"),
    ),
    Mistake(
        "no steps on inputs",
        lambda _: eap_ig_inputs(model(), pairs(), 0),
        ValueError,
        ("steps=0", "at least 1"),
    ),
    Mistake(
        "no steps on activations",
        lambda _: eap_ig_activations(model(), pairs(), 0),
        ValueError,
        ("steps=0", "at least 1"),
    ),
    Mistake(
        "a negative threshold",
        lambda _: acdc(model(), pairs(), -0.1),
        ValueError,
        ("threshold=-0.1", ">= 0"),
    ),
    Mistake(
        "only true edges",
        lambda _: roc_points(torch.ones(3), torch.ones(3, dtype=torch.bool)),
        ValueError,
        ("3 of 3 edges are true", "false ones"),
    ),
    Mistake(
        "an ablation that changes nothing",
        lambda _: faithfulness(1.0, empty=2.0, whole=2.0),
        ValueError,
        ("2.0", "everything ablated", "Give a counterfactual"),
    ),
    Mistake(
        "one resample",
        lambda _: bootstrap_jaccard(torch.ones(3, 4), 2, resamples=1),
        ValueError,
        ("resamples=1", "two or more"),
    ),
    Mistake(
        "results of other settings",
        lambda folder: stored(
            made_file(folder / "a.json", json.dumps({"settings": {"pairs": 40}, "cells": {}})),
            Settings(),
        ),
        ValueError,
        ("a.json", "'pairs': 40", "'pairs': 200", "another file"),
    ),
    Mistake(
        "a tokenizer without a task's words",
        lambda _: ask(ReplacementModel(tiny("GPT-2")), "ioi", 1),
        ValueError,
        ("ioi: vocabulary not present", "0 of 100 prompts", "Give a model"),
    ),
    Mistake(
        "a report's folder of other settings",
        lambda folder: cells(folder, {"pairs": 40}).get("edges", "ioi-0", dict),
        ValueError,
        ("edges-ioi-0.json", "'pairs': 40", "'pairs': 200", "another folder"),
    ),
    Mistake(
        "codes from one example",
        lambda _: discrete_codes(torch.ones(4, 2, 3), torch.ones(4, 2, 3), examples=1),
        ValueError,
        ("examples=1", "2 or more", "negative prompts"),
    ),
    Mistake(
        "a published task without its words",
        lambda _: text_pairs("months", make_tokenizer(), 2),
        ValueError,
        ("months: vocabulary not present", "0 of 2", "Give a model"),
    ),
]


@each(MISTAKES)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
