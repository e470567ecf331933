"""The comparison of methods runs as users run it, goes on where it stopped, and judges by f."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks import faithfulness
from benchmarks.baselines import eap_ig_inputs, random_scores
from benchmarks.edges import EdgeModel
from benchmarks.faithfulness import Judge, Settings, lines_of, secant_rules, stored, summary
from benchmarks.tasks.counterfactuals import counterfactuals, pairs_of
from benchmarks.tasks.published import PublishedCircuit
from circuits import load
from replacement.secant import SecantRule


@cache
def bundled() -> EdgeModel:
    return EdgeModel(load("four-tasks", mlp="neurons", attention="heads"))


def some_pairs(count: int):
    source = bundled().source
    chosen = counterfactuals("greater_than", count)
    return pairs_of(chosen, source.tokenizer, source.weights.d_vocab)


def test_rules_are_named_after_their_weights() -> None:
    rules = secant_rules(every=True)
    assert len(rules) == len({tuple(vars(rule).values()) for rule in rules.values()}) == 28
    assert rules["contrast norm=0 qk=0.5 pv=1"] == SecantRule(1.0, 0.5, 0.0)
    few = secant_rules(every=False)
    assert len(few) == 7
    assert few.items() <= rules.items()
    assert SecantRule() in few.values()


def test_a_good_ranking_beats_a_bad_one() -> None:
    """EAP-IG against its own reverse and against chance."""
    pairs = some_pairs(6)
    judge, scores = Judge(bundled(), pairs), eap_ig_inputs(bundled(), pairs)
    good = judge.figures(scores)
    bad = judge.figures(1 / scores.abs().clamp_min(1e-9))
    chance = judge.figures(random_scores(bundled().graph, 0))
    assert good["CMD"] < 0.15 < 0.6 < chance["CMD"] < bad["CMD"] + 0.1
    assert good["CPR"] > 0.8 > 0.4 > chance["CPR"]
    assert good["complement"] < 0.1
    assert good["curve"]["479"] == pytest.approx(1)
    assert good["curve"]["0"] == 0


def test_heads_of_published_circuits_are_a_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores on the edges these heads write to find them all; on all others, none."""
    graph = bundled().graph
    named = PublishedCircuit("IOI, ours", "IOI", "small", "", {"all": ((3, 2), (3, 3))}, ())
    monkeypatch.setattr(faithfulness, "circuits_of", lambda *_: {named.name: named})
    true = [graph.writers[writer] in ("a3.h2", "a3.h3") for writer in graph.writer.tolist()]
    scores = torch.tensor(true).float()
    assert faithfulness.published_heads(bundled(), "ioi", scores) == {"IOI, ours": 1.0}
    assert faithfulness.published_heads(bundled(), "ioi", 1 - scores) == {"IOI, ours": 0.0}


def test_a_finished_run_is_shown_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def quick(model, _pairs, _settings, _seed):
        return {name: torch.rand(model.graph.n_edges) for name in ("EAP", "random")}

    monkeypatch.setattr(faithfulness, "scores_of", quick)
    settings, output = Settings(4, exhaustive_pairs=0), tmp_path / "found.json"
    cell = faithfulness.measure(("greater_than", 0), settings)
    assert set(cell) == {"EAP", "random"}
    kept = {"greater_than, seed 0": cell}
    written = json.dumps({"settings": asdict(settings), "cells": kept})
    output.write_text(written)
    assert stored(output, settings) == kept
    assert stored(tmp_path / "none.json", settings) == {}
    faithfulness.main(output, "greater_than", pairs=4, seeds=1, exhaustive=0)
    assert output.read_text() == written
    assert f"{cell['EAP']['CMD']:.3f}" in capsys.readouterr().out


def test_seeds_are_summed_up() -> None:
    def cell(cmd: float) -> dict:
        figures = {"CMD": cmd, "CPR": 1 - cmd, "CMD, edges": cmd, "complement": 0.0}
        return {"EAP": {**figures, "Pearson": None, "curve": {"5": cmd}}}

    rows = summary([cell(0.1), cell(0.4)])
    assert rows["EAP"]["CMD"] == pytest.approx([0.25, 0.1, 0.4])
    assert rows["EAP"]["curve"] == {"5": pytest.approx(0.25)}
    assert "Pearson" not in rows["EAP"]
    lines = lines_of("ioi", rows)
    assert "EAP" in lines[1]
    assert "0.250" in lines[1]
    assert "± 0.150" in lines[1]
