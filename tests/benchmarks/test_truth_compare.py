"""Do traces find the edges of exact models; and can the comparison say no?"""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from benchmarks.truth import __main__ as command
from benchmarks.truth.compare import (
    contrast_flows,
    held_flows,
    pessimistic_area,
    roc_auc,
    scores_of,
    target_of,
)
from benchmarks.truth.measure import FEW, RECOMMENDED, RULES, Measured, larger, measured
from benchmarks.truth.program import Recipe
from benchmarks.truth.programs import HELD_OUT, PROGRAMS, RULE_CHOSEN_ON
from replacement.secant import SecantRule

ROOT = Path(__file__).parent.parent.parent
STORED = ROOT / "benchmarks" / "results" / "exact-models.csv"


def contrasts(of: Measured, rule: SecantRule | None) -> torch.Tensor:
    return torch.stack([contrast_flows(of.components, pair, rule) for pair in of.program.pairs])


@pytest.mark.parametrize("recipe", [*RULE_CHOSEN_ON, *HELD_OUT], ids=lambda one: one.name)
def test_contrast_finds_the_edges_of_every_program(recipe: Recipe) -> None:
    of = measured(recipe.build(rotated=True, count=10), ["resample"])
    row = of.row("contrast", "resample", contrasts(of, RECOMMENDED))
    assert (row.roc_auc, row.pessimistic_area) == (1, 1)
    assert row.true < row.edges


@pytest.mark.parametrize("name", ["symbolic_ioi", "closing_bracket"])
def test_nothing_flows_through_dummies(name: str) -> None:
    of = measured(PROGRAMS[name].build(rotated=True, dummies=1, count=2), ["resample"])
    scores = scores_of(contrasts(of, RECOMMENDED))
    assert not scores[~of.declared].any()
    assert int((scores > 0).sum()) > 5


def test_flows_into_the_output_are_the_whole_difference() -> None:
    of = measured(PROGRAMS["symbolic_ioi"].build(rotated=True, count=2), [])
    into_output = torch.tensor([edge.via == "out" for edge in of.components.edges])
    for pair in of.program.pairs:
        flows = contrast_flows(of.components, pair, RECOMMENDED)
        whole = float(of.components.difference(pair))
        assert float(flows[into_output].sum()) == pytest.approx(whole)
        held = held_flows(of.components, pair)
        value = target_of(of.components, pair).value
        assert float(held[into_output].sum()) == pytest.approx(value)


def test_the_mean_of_both_orders_loses_queries_and_keys() -> None:
    """Negative control, and why the weights are not 1/2: where both prompts look at the same
    places, what queries and keys contribute cancels in the mean of both orders."""
    of = measured(PROGRAMS["symbolic_ioi_renamed_soft"].build(rotated=True, count=3), ["resample"])
    mean = of.row("contrast", "resample", contrasts(of, SecantRule()))
    assert (mean.roc_auc, mean.pessimistic_area) == (0.625, 0.25)
    leaning = of.row("contrast", "resample", contrasts(of, RECOMMENDED))
    assert (leaning.roc_auc, leaning.pessimistic_area) == (1, 1)


def test_a_wrong_truth_gives_smaller_areas() -> None:
    """Negative control: the area is of this truth, not of any."""
    of = measured(PROGRAMS["induction"].build(rotated=True, dummies=1, count=3), ["resample"])
    scores = scores_of(contrasts(of, RECOMMENDED))
    truth = of.truths["resample"]
    for place in truth.nonzero().flatten():
        wrong = truth.clone()
        wrong[place], wrong[0 if place else 1] = False, True
        assert roc_auc(scores, wrong) < 1
        assert pessimistic_area(scores, wrong) < 1
    assert pessimistic_area(scores, truth.roll(1)) < pessimistic_area(scores, truth) == 1


def test_held_traces_find_values_and_no_more() -> None:
    of = measured(PROGRAMS["induction"].build(rotated=True, count=4), ["resample", "frozen zero"])
    flows = torch.stack([held_flows(of.components, pair) for pair in of.program.pairs])
    frozen = of.row("held", "frozen zero", flows)
    assert (frozen.roc_auc, frozen.pessimistic_area) == (1, 1)
    free = of.row("held", "resample", flows)
    assert free.pessimistic_area < 0.5, "of five edges three are by queries and keys"


def test_areas_of_worked_values() -> None:
    truth = torch.tensor([True, False, True, False])
    assert roc_auc(torch.tensor([2.0, 2.0, 1.0, 1.0]), truth) == 0.5
    assert pessimistic_area(torch.tensor([2.0, 2.0, 1.0, 1.0]), truth) == 0.25
    assert pessimistic_area(torch.tensor([1.0, 1.0, 1.0, 1.0]), truth) == 0
    assert pessimistic_area(torch.tensor([4.0, 1.0, 3.0, 2.0]), truth) == 1
    assert roc_auc(torch.tensor([3.0, 4.0, 2.0, 1.0]), truth) == 0.5


def test_dust_is_a_tie() -> None:
    flows = torch.tensor([[1.0, 1e-9, -0.5], [-3.0, 1e-7, 0.5]])
    assert scores_of(flows).tolist() == [2.0, 0.0, 0.5]


def test_the_larger_of_two_keeps_its_sign() -> None:
    found = larger(torch.tensor([[1.0, -3.0]]), torch.tensor([[-2.0, 2.0]]))
    assert found.tolist() == [[-2.0, -3.0]]


def test_the_command_writes_rows_and_truths(tmp_path: Path) -> None:
    app, kept = Typer(), tmp_path / "exact.json"
    app.command()(command.main)
    done = CliRunner().invoke(app, ["--only", "and_gate", "--pairs", "2", "-o", str(kept)])
    assert done.exit_code == 0, done.output
    assert "pessimistic area" in done.output
    found = json.loads(kept.read_text())
    assert found["command"] == (
        "python -m benchmarks.truth --only and_gate --pairs 2 --seed 0 -o exact.json"
    )
    assert found["truths"]["and_gate"]["resample"][-1] == "mlp 0 → output out"
    rows = pd.read_csv(kept.with_suffix(".csv"))
    assert len(rows) == len(RULES) + 4 + 2 * (len(FEW) + 2)
    assert set(rows["variant"]) == set(command.VARIANTS)


def test_stored_results_say_what_is_claimed() -> None:
    """1.0 / 1.0 for the recommended weights on every model, chosen on or held out."""
    rows = pd.read_csv(STORED)
    programs = {one.name for one in (*RULE_CHOSEN_ON, *HELD_OUT)}
    ours = rows[rows["program"].isin(programs) & rows["method"].eq("contrast qk 0.75 pv 0.25")]
    assert set(ours["program"]) == programs
    assert len(ours) == len(programs) * len(command.VARIANTS)
    assert ours["roc_auc"].eq(1).all()
    assert ours["pessimistic_area"].eq(1).all()
