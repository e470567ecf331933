"""Targets: arithmetic, labels, what is refused, and the way there and back through data."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attribution.sweep import sweep
from replacement.model import ReplacementModel
from replacement.run import Run
from replacement.target import Target
from tests.samples import CASES, LEARNED, TARGETS, Case, random_gpt2, random_run

NEURONS = CASES[0]
LORSA, SAE = LEARNED[3], LEARNED[5]
SPARSE = Case("two layers", "topk", skip=True)
BIASED = Case("width is vocabulary", "relu", skip=True, seed=3)
"""A model whose unembedding has a bias."""


def seeds_at(target: Target) -> float:
    """Return Σ seed · residual + bias: what a target reads."""
    residuals = target.run.residuals
    return target.bias + sum(
        float(seed.vector @ residuals[seed.stage][seed.pos]) for seed in target.seeds
    )


@pytest.mark.parametrize("case", [NEURONS, SPARSE, BIASED, LORSA, SAE], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_its_seeds_and_bias(case: Case, name: str) -> None:
    """value = Σ seed · residual + bias, for every kind and every sum of them."""
    target = TARGETS[name](random_run(case))
    assert seeds_at(target) == pytest.approx(target.value, abs=1e-12)


ARITHMETIC: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "sum": (lambda a, b: a + b, "a + b"),
    "difference": (lambda a, b: a - b, "a - b"),
    "factors": (lambda a, b: 2 * a - b * 0.5, "2·a - 0.5·b"),
    "negatives": (lambda a, b: -a - b, "-a - b"),
    "plus a negative": (lambda a, b: b + -a, "b - a"),
    "minus a negative": (lambda a, b: b - -a, "b - -a"),
    "quotient": (lambda a, b: b + a / 4, "b + 0.25·a"),
    "nothing": (lambda a, b: 0 * a + b, "0·a + b"),
    "minus a sum": (lambda a, b: -(a - b), "-(a - b)"),
    "multiple of a sum": (lambda a, b: 2 * (a + b), "2·(a + b)"),
    "nested": (lambda a, b: a - (a - b), "a - (a - b)"),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name: str) -> None:
    """Values, seeds and terms follow, and the label reads as what was written."""
    make, label = ARITHMETIC[name]
    run = random_run(NEURONS)
    a, b = run.logit(3), run.feature(0, 1, 4)
    made = make(a, b)
    assert made.value == pytest.approx(make(a.value, b.value), abs=1e-12)
    assert seeds_at(made) == pytest.approx(made.value, abs=1e-12)
    assert made.label == label.replace("b", b.label).replace("a", a.label)
    assert made.run is run
    assert made.pos == 4, "the position is the last one that is read"


@pytest.mark.parametrize(
    ("make", "label"),
    [
        (lambda run: -run.logit(3).centered(), "-centered_logit([3])"),
        (lambda run: 2 * run.logit(3).centered(), "2·centered_logit([3])"),
        (
            lambda run: run.logit(2) - run.logit(3).centered(),
            "logit([2]) - centered_logit([3])",
        ),
        (lambda run: -(run.logit(2) + run.logit(3)), "-(logit([2]) + logit([3]))"),
    ],
)
def test_labels_of_what_is_itself_a_sum(make: Any, label: str) -> None:
    """A factor is in front of the whole: sums get brackets, a centred logit a name of its own."""
    assert make(random_run(NEURONS)).label == label


def test_other_operands_are_refused() -> None:
    """Numbers are not targets, a bool is no factor, and runs do not mix."""
    run, other = random_run(NEURONS), random_run(SPARSE)
    target: Any = run.logit(1)
    for wrong in (
        lambda: target + 1,
        lambda: target - 1,
        lambda: 1 - target,
        lambda: target * target,
        lambda: target * True,
        lambda: "2" * target,
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ValueError, match="different runs"):
        target - other.logit(1)
    with pytest.raises(ZeroDivisionError):
        target / 0


def test_centered_leaves_out_the_common_offset() -> None:
    """logit - mean over the vocabulary, unembedding biases included; all centred ones sum to 0."""
    run = random_run(BIASED)
    row = run.logits[-1]
    for token in range(3):
        centered = run.logit(token).centered()
        assert centered.value == pytest.approx(float(row[token] - row.mean()), abs=1e-12)
        assert centered.label == f"centered_logit([{token}])"
        assert seeds_at(centered) == pytest.approx(centered.value, abs=1e-12)
    total = run.logit(0).centered()
    for token in range(1, run.weights.d_vocab):
        total = total + run.logit(token).centered()
    assert abs(total.value) < 1e-10
    swept = sweep(total, run.sublayers)
    assert max(float(part.abs().max()) for part in swept.attribution) < 1e-10


def test_differences_of_centered_and_raw_logits_are_the_same() -> None:
    """The offset cancels, so every attribution is the same."""
    run = random_run(BIASED)
    raw = sweep(run.logit(2) - run.logit(5), run.sublayers)
    centred = sweep(run.logit(2).centered() - run.logit(5).centered(), run.sublayers)
    for one, two in zip(raw.attribution, centred.attribution, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda run: run.logit(1) - run.logit(2),
        lambda run: 2 * run.logit(1),
        lambda run: run.feature(0, 0, 0),
        lambda run: run.logit(1).centered(),
    ],
)
def test_only_a_single_logit_can_be_centered(make: Any) -> None:
    with pytest.raises(ValueError, match="not a single logit"):
        make(random_run(NEURONS)).centered()


def test_labels_name_what_is_explained() -> None:
    run, sparse = random_run(NEURONS), random_run(SPARSE)
    assert run.logit(3).label == "logit([3])"
    assert run.feature(1, -1, 7).label == "L1.n7@4"
    assert sparse.feature(0, 2, 7).label == "L0.f7@2"
    assert run.direction(torch.ones(8, dtype=torch.float64), 2).label == "direction@L2"
    assert repr(run.logit(3)).startswith("Target(logit([3]) = ")
    mixed = random_run(SAE)
    assert mixed.feature(0, 2, 7, sublayer="attn").label == "L0.attn.f7@2"
    assert mixed.feature(1, 2, 7, sublayer="attn").label == "L1.lorsa 7@2"
    assert mixed.feature(1, 2, 7).label == mixed.feature(1, 2, 7, sublayer="mlp").label == "L1.f7@2"


@pytest.mark.parametrize("pos", [0, 4, -1, -5])
def test_positions_count_from_either_end(pos: int) -> None:
    run = random_run(NEURONS)
    assert run.logit(1, pos).pos == pos % 5
    assert run.logit(1, pos).value == float(run.logits[pos, 1])


WRONG_PLACES: list[tuple[Any, type[Exception], str]] = [
    (lambda run: run.logit(1, 5), IndexError, "position 5 is outside the prompt of 5 tokens"),
    (lambda run: run.logit(1, -6), IndexError, "position -6 is outside"),
    (lambda run: run.feature(2, 0, 0), IndexError, "layer 2 does not exist here: 0 to 1"),
    (lambda run: run.feature(-1, 0, 0), IndexError, "layer -1 does not exist"),
    (lambda run: run.feature(0, 9, 0), IndexError, "position 9 is outside"),
    (lambda run: run.feature(0, 0, 12), IndexError, "layer 0 has 12 neurons"),
    (lambda run: run.feature(0, 0, -1), IndexError, r"run\.feature\(index=-1\)"),
    (lambda run: run.direction(torch.ones(8), 3), IndexError, "layer 3 does not exist"),
    (lambda run: run.direction(torch.ones(7), 1), ValueError, r"8 numbers.*got shape \(7,\)"),
    (lambda run: run.direction(torch.full((8,), math.nan), 1), ValueError, "finite"),
    (lambda run: run.logit(13), ValueError, "id 13 is outside the vocabulary of 13"),
    (lambda run: run.target([{**term_of(run), "kind": "score"}]), ValueError, "'score' is no kind"),
    (lambda run: run.target([]), ValueError, "term"),
]  # fmt: skip


def term_of(run: Run) -> dict[str, Any]:
    return run.logit(1).terms[0].as_data()


@pytest.mark.parametrize(("make", "kind", "message"), WRONG_PLACES)
def test_what_does_not_exist_is_refused(make: Any, kind: type[Exception], message: str) -> None:
    """Out of range is an IndexError that says the range; nothing wraps around in silence."""
    with pytest.raises(kind, match=message):
        make(random_run(NEURONS))


@pytest.mark.parametrize("case", [NEURONS, SPARSE, LORSA, SAE], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_terms_make_the_target_anew(case: Case, name: str) -> None:
    """Through JSON and back: the same value, seeds and bias, to the last digit."""
    target = TARGETS[name](random_run(case))
    data = json.loads(json.dumps([term.as_data() for term in target.terms]))
    again = target.run.target(data)
    assert again.value == pytest.approx(target.value, abs=1e-12)
    assert again.bias == pytest.approx(target.bias, abs=1e-12)
    assert len(again.seeds) == len(target.seeds)
    for one, two in zip(again.seeds, target.seeds, strict=True):
        assert one[:2] == two[:2]
        torch.testing.assert_close(one.vector, two.vector, rtol=0, atol=1e-12)


def test_terms_made_in_another_run_explain_that_run() -> None:
    """A saved target is a question; asked of another prompt it has that prompt's answer."""
    model = ReplacementModel(random_gpt2())
    one, two = model.run([1, 2, 3, 4]), model.run([4, 3, 2, 1])
    target = one.logit(3) - 0.5 * one.feature(1, 0, 2)
    moved = two.target([term.as_data() for term in target.terms])
    assert moved.value == pytest.approx((two.logit(3) - 0.5 * two.feature(1, 0, 2)).value)
    assert moved.run is two


def test_an_inactive_feature_can_be_explained() -> None:
    """The target is the pre-activation: negative, and traced like any other."""
    run = random_run(SPARSE)
    active = run.layers[1].mlp.active
    here = set(active.index[active.pos == 4].tolist())
    idle = next(index for index in range(active.n_features) if index not in here)
    mlp = run.weights.layers[1].mlp
    target = run.feature(1, 4, idle)
    y = torch.nn.functional.layer_norm(
        run.residuals[3][4],
        (8,),
        run.weights.layers[1].mlp_norm.gain,
        run.weights.layers[1].mlp_norm.bias,
        run.weights.layers[1].mlp_norm.eps,
    )
    assert target.value == pytest.approx(float(mlp.read[idle] @ y + mlp.read_bias[idle]), abs=1e-12)
    swept = sweep(target, run.sublayers)
    assert swept.leaves.total() == pytest.approx(target.value, abs=1e-10)


def test_an_active_feature_is_worth_its_activation() -> None:
    """Where the gate is 1 the pre-activation is the activation."""
    run = random_run(SPARSE)
    active = run.layers[0].mlp.active
    for number in range(0, len(active), 3):
        pos, index = int(active.pos[number]), int(active.index[number])
        assert run.feature(0, pos, index).value == pytest.approx(float(active.activation[number]))
