"""Identities 1 and 2: leaves sum to the original model's number, every node conserves flow."""

import dataclasses
from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from attribution.sweep import Sweep, cutoff_of, strongest, sweep
from replacement.layer_run import AttentionRun
from replacement.layers import Lorsa
from replacement.run import Run
from replacement.target import Target
from replacement.weights import LayerWeights
from tests.attribution.laws import assert_closed, assert_conserved
from tests.samples import (
    CASES,
    HEADS,
    LEARNED,
    RESIDUAL,
    SHAPES,
    TARGETS,
    Case,
    random_gpt2,
    random_ids,
    random_run,
)

THRESHOLDS = (0.0, 0.005, 0.1, 1.0, 1e6)
GATES = [("absolute", 0.02), ("signed", 0.02), ("signed", 0.0), ("absolute", 0.5)]


def swept_at(target: Target, threshold: float, rule: str = "absolute") -> Sweep:
    """Return the sweep at a threshold given as the share users give."""
    sublayers = target.run.sublayers
    cutoff = cutoff_of(target, sweep(target, sublayers), threshold)
    return sweep(target, sublayers, cutoff, rule=rule)


@lru_cache(maxsize=512)
def ungated(case: Case, name: str) -> tuple[Target, Sweep]:
    """Return a target and its sweep through all nodes."""
    target = TARGETS[name](random_run(case))
    return target, sweep(target, target.run.sublayers)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_identities_hold_for_every_target(case: Case) -> None:
    """Ungated: Σ leaves = target, inflow = attribution = outflow."""
    for name in TARGETS:
        target, swept = ungated(case, name)
        assert_closed(target, swept)
        assert_conserved(target, target.run.sublayers, swept)
        assert float(swept.leaves.pruned.abs().sum()) == 0


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("rule", "threshold"), GATES)
def test_identities_hold_behind_a_gate(case: Case, rule: str, threshold: float) -> None:
    """Whatever the gate stops is booked as pruned, so both identities hold as before."""
    for name in ("difference", "combination", "feature" if case in HEADS else "scores and logits"):
        target, whole = ungated(case, name)
        sublayers = target.run.sublayers
        swept = sweep(target, sublayers, cutoff_of(target, whole, threshold), rule=rule)
        assert_closed(target, swept)
        assert_conserved(target, sublayers, swept)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_identities_hold_in_float32(case: Case) -> None:
    """The same to 1e-4 of Σ|terms| in single precision."""
    run = random_run(case, torch.float32)
    sublayers = run.sublayers
    for name in ("difference", "centered", "combination", "scores and logits"):
        target = TARGETS[name](run)
        whole = sweep(target, sublayers)
        for swept in (whole, sweep(target, sublayers, cutoff_of(target, whole, 0.05))):
            assert_closed(target, swept)
            assert_conserved(target, sublayers, swept)


def with_leaking_patterns(run: Run) -> Run:
    """Return the run as if every pattern were 0.9 of what it is, the rest being an error."""
    layers = [
        dataclasses.replace(layer, attention=leaking(layer.attention, block, residual))
        for layer, block, residual in zip(
            run.layers, run.weights.layers, run.residuals[:-1:2], strict=True
        )
    ]
    return dataclasses.replace(run, layers=layers)


def leaking(attention: AttentionRun, block: LayerWeights, residual: Tensor) -> AttentionRun:
    pattern, wrote = 0.9 * attention.pattern, attention.output + attention.error
    if isinstance(block.attention, Lorsa):
        y = block.attention_norm.apply(residual, attention.scale)
        mixed, active = None, block.attention.encode(y, pattern)
        output = block.attention.decode(active, y)
    else:
        assert attention.mixed is not None
        mixed, active = 0.9 * attention.mixed, None
        output = block.heads.write(mixed)
        if block.attention is not None:
            active = block.attention.encode(output)
            output = block.attention.decode(active, output)
    return AttentionRun(pattern, attention.scale, mixed, active, output, wrote - output)


@pytest.mark.parametrize("cutoff", [0.0, 0.05])
@pytest.mark.parametrize(
    "case", [Case("two layers", "relu", skip=True), LEARNED[1], LEARNED[5]], ids=str
)
def test_identities_hold_where_patterns_do_not_sum_to_one(case: Case, cutoff: float) -> None:
    """Constants pass by the rows' own sums, and what heads miss of attention is an error."""
    run = with_leaking_patterns(random_run(case))
    assert all(float(layer.attention.error.abs().max()) > 0.01 for layer in run.layers)
    sublayers = run.sublayers
    for name in ("difference", "feature of layer 0", "combination", "scores and logits"):
        target = TARGETS[name](run)
        swept = sweep(target, sublayers, cutoff)
        assert_closed(target, swept)
        flow = assert_conserved(target, sublayers, swept)
        if target.pos > 0 and cutoff == 0:
            assert float(swept.leaves.error[0::2].abs().sum()) > 1e-3
            assert float(flow.in_error.abs().sum()) > 1e-3


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("rule", ["absolute", "signed"])
def test_thresholds_from_none_to_all(rule: str, threshold: float) -> None:
    """The identities hold from a graph of everything to one of the direct paths alone."""
    for case in (Case("two layers", "neurons"), Case("two layers", "relu", skip=True), LEARNED[1]):
        target = TARGETS["difference"](random_run(case))
        sublayers = target.run.sublayers
        swept = swept_at(target, threshold, rule)
        assert_closed(target, swept)
        assert_conserved(target, sublayers, swept)
        if threshold == 1e6:
            assert swept.n_kept(sublayers) == 0


def test_gate_rule_is_what_it_says() -> None:
    """Absolute keeps |a·u| >= cutoff, signed a·u >= cutoff, both only what the target reaches."""
    target = TARGETS["logit of an earlier position"](random_run(Case("two layers", "jumprelu")))
    sublayers = target.run.sublayers
    for rule in ("absolute", "signed"):
        swept = sweep(target, sublayers, 0.05, rule=rule)
        negative = 0
        for layer, attribution, keep in zip(sublayers, swept.attribution, swept.keep, strict=True):
            strength = attribution.abs() if rule == "absolute" else attribution
            reached = layer.positions() <= target.pos
            assert torch.equal(keep, (strength >= 0.05) & reached)
            negative += int((attribution[keep] < 0).sum())
        assert (negative > 0) == (rule == "absolute")


def test_skips_pass_every_threshold() -> None:
    """A skip is a linear path, not a choice: no gate stops it, and it is kept where reached."""
    target = TARGETS["logit"](random_run(Case("two layers", "relu", skip=True)))
    for layer, keep in zip(target.run.sublayers, swept_at(target, 1e6).keep, strict=True):
        if layer.always is not None:
            reached = layer.positions() == target.pos
            assert torch.equal(keep, layer.always & reached)


def test_nothing_above_the_target_is_attributed() -> None:
    """A feature of layer 0 is not explained by later layers, nor a position by later ones."""
    target = TARGETS["feature of layer 0"](random_run(Case("full context", "neurons", seed=6)))
    swept = sweep(target, target.run.sublayers)
    assert all(not keep.any() for keep in swept.keep[1:])
    assert bool((swept.leaves.token[1:] == 0).all())


@given(data=some.data())
@pytest.mark.parametrize(
    "case", [Case("two layers", "topk", skip=True), CASES[0], LEARNED[2]], ids=str
)
def test_identities_hold_for_any_choice_of_nodes(case: Case, data: some.DataObject) -> None:
    """`only=`: any set of nodes is a circuit whose flow is conserved."""
    target = TARGETS[data.draw(some.sampled_from(sorted(TARGETS)))](random_run(case))
    sublayers = target.run.sublayers
    source = torch.Generator().manual_seed(data.draw(some.integers(0, 2**16)))
    share = data.draw(some.floats(0, 1))
    only = [torch.rand(layer.n_nodes, generator=source) < share for layer in sublayers]
    swept = sweep(target, sublayers, only=only)
    assert_closed(target, swept)
    assert_conserved(target, sublayers, swept)
    for layer, keep, chosen in zip(sublayers, swept.keep, only, strict=True):
        optional = keep if layer.always is None else keep & ~layer.always
        assert not bool((optional & ~chosen).any()), "a node that was not chosen was kept"


@given(seed=some.integers(0, 10_000), threshold=some.floats(0, 0.3))
def test_identities_hold_for_any_prompt(seed: int, threshold: float) -> None:
    """Other prompts of the same model: other patterns, scales and gates."""
    case = Case("two layers", "batchtopk", skip=bool(seed % 2))
    model = random_run(case).model
    run = model.run(random_ids(SHAPES[case.shape], seed))
    target = TARGETS["combination"](run)
    swept = swept_at(target, threshold)
    assert_closed(target, swept)
    assert_conserved(target, run.sublayers, swept)


@given(
    weights=some.lists(some.floats(-3, 3, allow_subnormal=False), min_size=3, max_size=3),
    signed=some.booleans(),
)
def test_attribution_is_linear_in_the_target(weights: list[float], signed: bool) -> None:
    """The ungated sweep of a·f + b·g is a times that of f plus b times that of g."""
    run = random_run(Case("deep", "topk", seed=2))
    sublayers = run.sublayers
    parts = [TARGETS[name](run) for name in ("logit", "feature of layer 0", "direction")]
    total = sum(
        (w * part for w, part in zip(weights[1:], parts[1:], strict=True)), weights[0] * parts[0]
    )
    total = -total if signed else total
    sign = -1 if signed else 1
    together = sweep(total, sublayers)
    apart = [sweep(part, sublayers) for part in parts]
    for number, attribution in enumerate(together.attribution):
        terms = torch.stack(
            [sign * w * one.attribution[number] for w, one in zip(weights, apart, strict=True)]
        )
        torch.testing.assert_close(attribution, terms.sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [*HEADS, *LEARNED, *RESIDUAL], ids=str)
def test_values_are_those_of_the_original_model(case: Case) -> None:
    """What the leaves add up to is what plain Hugging Face computes, not a reconstruction."""
    run, shape = random_run(case), SHAPES[case.shape]
    model = random_gpt2(shape, case.seed)
    with torch.no_grad():
        logits = model(torch.tensor([random_ids(shape, case.seed)])).logits[0]
    expected = {
        "logit": logits[-1, 3],
        "difference": logits[-1, 2] - logits[-1, 5],
        "centered": logits[-1, 0] - logits[-1].mean(),
    }
    for name, value in expected.items():
        found = sweep(TARGETS[name](run), run.sublayers).leaves.total()
        assert found == pytest.approx(float(value), abs=1e-9)


class TestStrongest:
    """`max_nodes`: the strongest nodes of one ungated sweep."""

    @staticmethod
    def ungated(run: Run) -> Sweep:
        return sweep(TARGETS["logit of an earlier position"](run), run.sublayers)

    @pytest.mark.parametrize("count", [0, 1, 7, 10_000])
    def test_takes_the_largest(self, count: int) -> None:
        """The chosen are at least as strong as the rest, never more than asked for."""
        run = random_run(CASES[0])
        swept = self.ungated(run)
        chosen = torch.cat(strongest(swept, run.sublayers, count))
        strength = torch.cat([part.abs() for part in swept.attribution])
        reachable = int((torch.cat(swept.keep) & (strength > 0)).sum())
        assert int(chosen.sum()) == min(count, reachable)
        if 0 < count < reachable:
            assert strength[chosen].min() >= strength[~chosen].max()

    def test_breaks_ties_in_node_order(self) -> None:
        """Equal nodes: the first ones win, so two calls never differ."""
        run = random_run(CASES[0])
        swept = self.ungated(run)
        level = [torch.ones_like(part) for part in swept.attribution]
        keep = [torch.ones_like(keep) for keep in swept.keep]
        tied = Sweep(level, keep, [], swept.leaves, swept.entering)
        chosen = torch.cat(strongest(tied, run.sublayers, 5))
        assert chosen.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("count", [0, 3])
    def test_skips_take_no_place(self, count: int) -> None:
        """What is kept anyway is not chosen, so `count` is the number of other nodes."""
        run = random_run(Case("two layers", "relu", skip=True))
        sublayers = run.sublayers
        target = TARGETS["difference"](run)
        chosen = strongest(sweep(target, sublayers), sublayers, count)
        assert sweep(target, sublayers, only=chosen).n_kept(sublayers) == count
        assert sum(int(part.sum()) for part in chosen) == count


def test_cutoff_of_a_target_near_zero_is_not_zero() -> None:
    """A share of max(|target|, 1e-3·Σ|leaf|): a target of 0 does not keep every rounding error."""
    run = random_run(CASES[0])
    zero = run.logit(2) - run.logit(2)
    ungated = sweep(run.logit(2), run.sublayers)
    assert cutoff_of(zero, ungated, 0.1) == pytest.approx(1e-4 * ungated.leaves.magnitude())
    large = run.logit(2)
    assert cutoff_of(large, ungated, 0.1) == pytest.approx(0.1 * abs(large.value), rel=1e-9)
