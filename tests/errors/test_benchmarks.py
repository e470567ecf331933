"""What the benchmarks refuse: models that are no sum of components, pairs that misfit."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import torch

from benchmarks.baselines import acdc, eap_ig_activations, eap_ig_inputs
from benchmarks.edges import EdgeModel, Pairs, Patching
from benchmarks.faithfulness import Settings, stored
from benchmarks.scores import bootstrap_jaccard, faithfulness, roc_points
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
]


@each(MISTAKES)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
