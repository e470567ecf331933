"""Identity 6: token, error and switch differences sum to the target's, and every node conserves."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from attribution.sweep import cutoff_of, sweep
from replacement.model import ReplacementModel
from replacement.run import Run
from replacement.secant import RunPair, SecantRule
from replacement.target import Target
from tests.attribution.laws import TOLERANCE, assert_closed, assert_conserved
from tests.attribution.test_families import run_of
from tests.families import CONFIGS, D_VOCAB, IDS
from tests.samples import (
    CASES,
    LEARNED,
    SHAPES,
    TARGETS,
    Case,
    mlps_of,
    random_gpt2,
    random_ids,
    random_run,
)
from tests.secant.pairs import OTHERS, RULES, changed, difference, pair_of

GATED = ("difference", "combination", "scores and logits")
COVERED = [case for case in CASES if not case.streams]
each_case = pytest.mark.parametrize("case", COVERED, ids=str)
each_family = pytest.mark.parametrize("name", CONFIGS)


def assert_explained(target: Target, rule: str = "absolute", threshold: float = 0.0) -> None:
    """Assert both identities of a difference, and that nothing but differences is in them.

    Differences of float32 numbers have lost digits before anything is computed from them: there a
    node is held to the scale of the target's leaves, as `Graph.conservation` holds it.
    """
    sublayers = target.run.sublayers
    swept = sweep(target, sublayers)
    if threshold:
        swept = sweep(target, sublayers, cutoff_of(target, swept, threshold), rule=rule)
    assert_closed(target, swept)
    share = 1.0 if swept.leaves.token.dtype == torch.float32 else 0.01
    flow = assert_conserved(target, sublayers, swept, share)
    assert set(flow.via) <= {"residual", "mlp", "q", "k", "v"}
    leaves = swept.leaves
    assert not leaves.position.any() and not leaves.bias.any() and not flow.in_bias.any()
    assert leaves.target_bias == target.bias == 0


@each_case
def test_leaves_and_flows_sum_to_the_difference(case: Case) -> None:
    for name in TARGETS:
        assert_explained(difference(pair_of(case, "one token", "mixed"), name))


@pytest.mark.parametrize("rule", RULES)
@each_case
def test_they_do_for_every_rule(case: Case, rule: str) -> None:
    assert_explained(difference(pair_of(case, "all tokens", rule), "scores and logits"))


@pytest.mark.parametrize(("gate", "threshold"), [("absolute", 0.05), ("signed", 0.02)])
@each_case
def test_they_do_behind_a_gate(case: Case, gate: str, threshold: float) -> None:
    pair = pair_of(case, "all tokens", "mixed")
    for name in GATED:
        assert_explained(difference(pair, name), gate, threshold)


@each_case
def test_they_do_in_float32(case: Case) -> None:
    for differs in OTHERS[:2]:
        pair = pair_of(case, differs, "mixed", torch.float32)
        for name in ("difference", "scores and logits"):
            assert_explained(difference(pair, name), threshold=0.05)


@each_case
def test_the_difference_is_that_of_two_runs(case: Case) -> None:
    """The value is not one that the secants make: it is the model's own, twice."""
    pair = pair_of(case, "all tokens")
    for name in ("difference", "feature", "direction", "score"):
        there = TARGETS[name](pair.clean)
        here = pair.other.target([term.as_data() for term in there.terms])
        assert difference(pair, name).value == there.value - here.value


@each_case
def test_equal_runs_differ_in_nothing(case: Case) -> None:
    pair = pair_of(case, "no token", "mixed")
    for name in GATED:
        target = difference(pair, name)
        swept = sweep(target, pair.sublayers)
        assert abs(target.value) <= 1e-12  # terms summed in another order
        assert swept.leaves.magnitude() == 0
        assert all(not attribution.any() for attribution in swept.attribution)


@pytest.mark.parametrize("rule", ["means", "mixed"])
@each_case
def test_interchanging_the_runs_changes_every_sign(case: Case, rule: str) -> None:
    """With a weight w of the clean run there and 1 - w here: the same split, seen from there."""
    pair = pair_of(case, "all tokens", rule)
    turned = SecantRule(*(1 - weight for weight in dataclasses.astuple(pair.rule)))
    back = RunPair(pair.other, pair.clean, turned)
    for name in ("difference", "feature", "combination"):
        one = difference(pair, name)
        two = back.difference(pair.other.target([term.as_data() for term in one.terms]))
        assert one.value == -two.value
        here, there = sweep(one, pair.sublayers), sweep(two, back.sublayers)
        within = TOLERANCE[torch.float64] * here.leaves.magnitude()
        for leaf in ("token", "error", "switch"):
            off = getattr(here.leaves, leaf) + getattr(there.leaves, leaf)
            assert off.abs().max() <= within
        for ours, theirs in zip(here.attribution, there.attribution, strict=True):
            assert bool(((ours + theirs).abs() <= within).all())


@pytest.mark.parametrize("learned", [False, True, "across"], ids=["own parts", "layers", "across"])
@each_family
def test_they_sum_in_every_family(name: str, learned: bool | str) -> None:
    """Grouped keys, rotary, windows, q/k norms, soft-caps, post-norms, parallel blocks, gates."""
    clean = run_of(name, learned)
    for differs, rule in (("one token", "means"), ("all tokens", "mixed")):
        other = clean.model.run(changed(IDS, differs, D_VOCAB))
        pair = RunPair(clean, other, RULES[rule])
        assert_explained(difference(pair, "scores and logits"))
        assert_explained(difference(pair, "combination"), threshold=0.05)


@each_family
def test_replacement_runs_of_every_family(name: str) -> None:
    clean = run_of(name, True, errors=False)
    other = clean.model.run(changed(IDS, "all tokens", D_VOCAB), errors=False)
    target = difference(RunPair(clean, other, RULES["mixed"]), "combination")
    assert_explained(target)
    assert not sweep(target, target.run.sublayers).leaves.error.any()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["neurons", "topk"])
def test_scores_a_hundred_apart(kind: str, dtype: torch.dtype) -> None:
    """Patterns that jump from one key to another, where gradients of the softmax are zero."""
    case = Case("full context", kind, seed=2)
    hf_model = random_gpt2(SHAPES[case.shape], case.seed, dtype)
    with torch.no_grad():
        for block in hf_model.transformer.h:
            block.attn.c_attn.weight[:, :8] *= 60  # queries
    model = ReplacementModel(hf_model, mlps=mlps_of(case, dtype))
    clean = model.run(random_ids(SHAPES[case.shape]))
    other = model.run(changed(clean.token_ids.tolist(), "all tokens", 13))
    pair = RunPair(clean, other, RULES["mixed"])
    scores = [run.weights.query_key(0).scores(norm_of(run)) for run in (clean, other)]
    assert (scores[0] - scores[1]).abs().max() > 100
    for name in ("difference", "combination"):
        assert_explained(difference(pair, name))


def norm_of(run: Run) -> torch.Tensor:
    """Return what attention of layer 0 reads."""
    norm, stream = run.weights.layers[0].attention_norm, run.residuals[0]
    return norm.apply(stream, norm.scale(stream))


@given(
    seed=some.integers(0, 10_000),
    weights=some.lists(some.floats(0, 1), min_size=4, max_size=4),
    threshold=some.floats(0, 0.3),
)
def test_any_two_prompts_and_any_rule(seed: int, weights: list[float], threshold: float) -> None:
    case = (Case("two layers", "neurons"), LEARNED[1], LEARNED[5])[seed % 3]
    model = random_run(case).model
    clean, other = (model.run(random_ids(SHAPES[case.shape], seed + step)) for step in (0, 1))
    pair = RunPair(clean, other, SecantRule(*weights))
    assert_explained(difference(pair, "combination"), threshold=threshold)
