"""Do traces find the edges of exact models; and can the comparison say no?"""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from benchmarks.baselines import exhaustive_edges, relp
from benchmarks.edges import EdgeModel
from benchmarks.scores import TIES, pessimistic_area, roc_points, trapezoid_area
from benchmarks.truth import __main__ as command
from benchmarks.truth import heads
from benchmarks.truth.compare import contrast_flows, held_flows, target_of
from benchmarks.truth.heads import discrete_rows
from benchmarks.truth.measure import FEW, RECOMMENDED, RULES, Measured, larger, measured
from benchmarks.truth.others import METHODS, batch_of, edge_order, published_flows
from benchmarks.truth.program import Recipe
from benchmarks.truth.programs import HELD_OUT, PROGRAMS, RULE_CHOSEN_ON
from replacement.secant import SecantRule

ROOT = Path(__file__).parent.parent.parent
STORED = ROOT / "benchmarks" / "results" / "exact-models.csv"

NAMED = {"contrast ½ ½": "contrast qk 0.5 pv 0.5", "contrast ¾ ¼": "contrast qk 0.75 pv 0.25"}
"""How the document calls two rules."""


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
    scores = contrasts(of, RECOMMENDED).abs().mean(0)
    some = scores > TIES * scores.max()
    assert not some[~of.declared].any()
    assert int(some.sum()) > 5


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
    mean = of.row("contrast", "resample", contrasts(of, RULES["qk 0.5 pv 0.5"]))
    assert (mean.roc_auc, mean.pessimistic_area) == (0.625, 0.25)
    leaning = of.row("contrast", "resample", contrasts(of, RECOMMENDED))
    assert (leaning.roc_auc, leaning.pessimistic_area) == (1, 1)


def test_a_wrong_truth_gives_smaller_areas() -> None:
    """Negative control: the area is of this truth, not of any."""
    of = measured(PROGRAMS["induction"].build(rotated=True, dummies=1, count=3), ["resample"])
    scores = contrasts(of, RECOMMENDED).abs().mean(0)
    truth = of.truths["resample"]

    def areas(truth: torch.Tensor) -> tuple[float, float]:
        points = roc_points(scores, truth)
        return trapezoid_area(points), pessimistic_area(points)

    for place in truth.nonzero().flatten():
        wrong = truth.clone()
        wrong[place], wrong[0 if place else 1] = False, True
        assert max(areas(wrong)) < 1
    assert areas(truth.roll(1)) < areas(truth) == (1, 1)


def test_held_traces_find_values_and_no_more() -> None:
    of = measured(PROGRAMS["induction"].build(rotated=True, count=4), ["resample", "frozen zero"])
    flows = torch.stack([held_flows(of.components, pair) for pair in of.program.pairs])
    frozen = of.row("held", "frozen zero", flows)
    assert (frozen.roc_auc, frozen.pessimistic_area) == (1, 1)
    free = of.row("held", "resample", flows)
    assert free.pessimistic_area < 0.5, "of five edges three are by queries and keys"


@pytest.mark.parametrize("name", ["symbolic_ioi", "closing_bracket"])
def test_edges_of_both_graphs_are_the_same(name: str) -> None:
    """One to one, and cutting each does the same in both: two passes written apart. A pairing that
    is off by one edge is noticed."""
    of = measured(PROGRAMS[name].build(rotated=True, dummies=1, count=2), ["resample"])
    model = EdgeModel(of.components.model)
    assert sorted(edge_order(model.graph, of.components)) == list(range(model.graph.n_edges))
    patched = published_flows(of.components, of.program.pairs)["exhaustive patching"]
    effects = -of.effects["resample"]
    torch.testing.assert_close(patched, effects, rtol=0, atol=1e-9)
    assert not torch.allclose(patched.roll(1, dims=1), effects, atol=1e-3)


def test_gradients_fail_where_attention_is_decided() -> None:
    """What queries and keys get is below rounding at either end, so that a few steps miss it."""
    of = measured(PROGRAMS["symbolic_ioi"].build(count=3), ["resample"])
    found = published_flows(of.components, of.program.pairs)
    areas = {name: of.row(name, "resample", one).pessimistic_area for name, one in found.items()}
    assert areas["EAP"] < areas["EAP-IG-5"] < areas["EAP-IG-50"] == 1
    assert areas["exhaustive patching"] == 1


@pytest.mark.parametrize("name", ["closing_bracket", "symbolic_ioi_renamed_soft"])
def test_relp_is_eap_here(name: str) -> None:
    """Why it has no rows: ReLU's gate is its slope, and the norms divide by a constant. With
    patterns held it differs, but only where attention is not decided."""
    of = measured(PROGRAMS[name].build(rotated=True, count=1), [])
    model, (pair,) = EdgeModel(of.components.model), of.program.pairs
    batch = batch_of([pair], model.weights.d_vocab)
    eap = METHODS["EAP"](model, batch)
    torch.testing.assert_close(relp(model, batch), eap, rtol=1e-9, atol=1e-9)
    assert eap.abs().max() > 1
    held = relp(model, batch, hold_patterns=True)
    assert torch.allclose(held, eap, rtol=0, atol=1e-9) == (not name.endswith("soft"))


def test_dust_is_a_tie() -> None:
    """What is below the tolerance ranks with zero, whatever the truth says."""
    of = measured(PROGRAMS["or_gate"].build(count=1), ["resample"])
    truth = of.truths["resample"]
    dust = torch.where(truth, 1e-9, 0.0)
    dust[(~truth).nonzero()[0]] = 1.0
    row = of.row("dust", "resample", dust[None].double())
    assert row.roc_auc == pytest.approx((1 - 1 / int((~truth).sum())) / 2)
    assert row.pessimistic_area == 0


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
    assert len(rows) == len(RULES) + 4 + 2 * (len(FEW) + 2) + 3 * len(METHODS)
    scores = found["truths"]["and_gate"]["scores"]
    assert set(scores) == {"contrast qk 0.75 pv 0.25", *METHODS}
    assert scores["EAP"]["mlp 0 → output out"] == 1
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


def test_the_document_shows_the_stored_results() -> None:
    """Every cell of its table: the worst over variants, pessimistic area and area under ROC."""
    rows = pd.read_csv(STORED)
    worst = rows.groupby(["program", "method"])[["pessimistic_area", "roc_auc"]].min()
    lines = (ROOT / "docs" / "exact_models.md").read_text().split("<!-- areas -->")[1].split("\n")
    head, _, *body = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert [row[0].strip("`") for row in body] == list(rows["program"].unique())
    for program, *cells in body:
        for method, cell in zip(head[1:], cells, strict=True):
            areas = worst.loc[program.strip("`"), NAMED.get(method, method)].to_numpy()
            assert cell == f"{areas[0]:.2f} ({areas[1]:.2f})".replace("1.00 (1.00)", "1")


def test_discrete_codes_are_judged_by_true_edges_and_true_heads() -> None:
    """Dummy heads are false; the method's edges from anything but heads score nothing."""
    of = measured(PROGRAMS["induction"].build(rotated=True, dummies=2, count=4), ["resample"])
    edges, by_head, by_pairs = discrete_rows(of)
    assert (edges["edges"], edges["true"]) == (75, 5)
    assert edges["roc_auc"] < 0.9, "four of the five come from the input or end at the output"
    assert (by_head["edges"], by_head["true"]) == (by_pairs["edges"], by_pairs["true"]) == (6, 2)
    plain = measured(PROGRAMS["induction"].build(count=4), ["resample"])
    assert "roc_auc" not in discrete_rows(plain)[1], "all heads are true: nothing to rank"


def test_pairs_of_heads_are_in_the_order_of_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What patching gives in place of pairs, in the order of the component graph, ranks all."""
    of = measured(PROGRAMS["induction"].build(rotated=True, dummies=2, count=3), ["resample"])
    model, d_vocab = EdgeModel(of.components.model), of.program.model.config.vocab_size
    patched = [exhaustive_edges(model, batch_of([pair], d_vocab)) for pair in of.program.pairs]
    scores = torch.stack(patched).abs().mean(0)
    monkeypatch.setattr(heads, "pair_edges", lambda *_: scores)
    assert discrete_rows(of)[0]["roc_auc"] == 1


def test_several_pairs_are_one_batch() -> None:
    program = PROGRAMS["reverse"].build(count=6)
    d_vocab = program.model.config.vocab_size
    batch = batch_of(program.pairs, d_vocab)
    assert len({len(pair.clean) for pair in program.pairs}) > 1, "of different lengths"
    for row, pair in enumerate(program.pairs):
        (one,) = [batch_of([pair], d_vocab)]
        end = int(batch.end[row])
        assert batch.clean[row, : end + 1].tolist() == pair.clean == one.clean[0].tolist()
        assert batch.corrupt[row, : end + 1].tolist() == pair.other
        assert torch.equal(batch.weights[row], one.weights[0])
