"""Controls for Lorsa, attention autoencoders and scores: one mistake each, which must show.

The same identities that hold to 1e-9 must be off by far more when one constant, head or held
denominator is wrong, or the tests that they hold would show nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attribution.flow import flow_edges
from attribution.sweep import sweep
from replacement.layers import HeldSide, Lorsa, QueryKey
from replacement.run import Run
from replacement.target import Target
from tests.attribution.frozen import FrozenGPT2, Held, attributions
from tests.samples import (
    LEARNED,
    SHAPES,
    TARGETS,
    Case,
    attentions_of,
    mlps_of,
    random_gpt2,
    random_ids,
    random_run,
)

TOLERANCE = 1e-9
WELL_ABOVE = 1e-4
"""Of Σ|terms|: five orders above the tolerance."""
LORSA, NORMED, GROUPED, SAE = LEARNED[0], LEARNED[1], LEARNED[3], LEARNED[6]


def closure(target: Target) -> float:
    """Return how far all leaves are from the target's value, as a share of Σ|leaf|."""
    leaves = sweep(target, target.run.sublayers).leaves
    return abs(leaves.total() - target.value) / leaves.magnitude()


def conservation(target: Target) -> float:
    """Return the largest difference of any kept node's inflow from its attribution."""
    sublayers = target.run.sublayers
    swept = sweep(target, sublayers)
    flow = flow_edges(target, sublayers, swept)
    inflow = (flow.in_bias + flow.in_error + flow.in_pruned).index_add(0, flow.target, flow.amount)
    kept = [part[keep] for part, keep in zip(swept.attribution, swept.keep, strict=True)]
    start = 2 * len(target.run.tokens)
    return float((inflow[start:-1] - torch.cat(kept)).abs().max()) / swept.leaves.magnitude()


def changed(run: Run, change: Callable[[Any], Any]) -> Run:
    """Return the run with every block's weights changed, nothing recomputed."""
    blocks = [change(block) for block in run.weights.layers]
    return dataclasses.replace(run, weights=dataclasses.replace(run.weights, layers=blocks))


def recorded_otherwise(run: Run, **change: Callable[[Any], Tensor]) -> Run:
    """Return the run with one recorded tensor of every attention layer changed."""
    layers = []
    for layer in run.layers:
        new = {name: make(layer.attention) for name, make in change.items()}
        attention = dataclasses.replace(layer.attention, **new)
        layers.append(dataclasses.replace(layer, attention=attention))
    return dataclasses.replace(run, layers=layers)


def without_bias(name: str) -> Callable[[Any], Any]:
    """Return what forgets one bias of what attention is read through."""

    def change(block: Any) -> Any:
        zero = torch.zeros_like(getattr(block.attention, name))
        layer = dataclasses.replace(block.attention, **{name: zero})
        return dataclasses.replace(block, attention=layer)

    return change


def without_head_bias(name: str) -> Callable[[Any], Any]:
    """Return what forgets one bias of the heads that an autoencoder reads through."""

    def change(block: Any) -> Any:
        zero = torch.zeros_like(getattr(block.heads, name))
        return dataclasses.replace(block, heads=dataclasses.replace(block.heads, **{name: zero}))

    return change


def without_norm_bias(block: Any) -> Any:
    norm = block.attention_norm
    norm = dataclasses.replace(norm, bias=torch.zeros_like(norm.bias))
    return dataclasses.replace(block, attention_norm=norm)


FORGOTTEN = [
    (LORSA, "b_V", without_bias("read_bias")),
    (LORSA, "b_D", without_bias("write_bias")),
    (LORSA, "norm bias", without_norm_bias),
    (NORMED, "norm bias", without_norm_bias),
    (SAE, "encoder bias", without_bias("read_bias")),
    (SAE, "decoder bias", without_bias("write_bias")),
    (SAE, "b_V of heads", without_head_bias("value_bias")),
    (SAE, "b_O of heads", without_head_bias("output_bias")),
    (SAE, "norm bias", without_norm_bias),
]


@pytest.mark.parametrize(
    ("case", "change"),
    [(case, change) for case, _, change in FORGOTTEN],
    ids=[f"{name}, {case.attention}" for case, name, _ in FORGOTTEN],
)
def test_a_constant_forgotten(case: Case, change: Callable[[Any], Any]) -> None:
    run = random_run(case)
    assert closure(TARGETS["difference"](run)) <= TOLERANCE
    assert closure(TARGETS["difference"](changed(run, change))) > WELL_ABOVE


@pytest.mark.parametrize("case", [LORSA, GROUPED, SAE], ids=str)
def test_an_attention_error_left_out(case: Case) -> None:
    run = recorded_otherwise(random_run(case), error=lambda part: torch.zeros_like(part.error))
    assert closure(TARGETS["difference"](run)) > WELL_ABOVE


@pytest.mark.parametrize("case", [LORSA, GROUPED, SAE], ids=str)
def test_patterns_of_other_heads(case: Case) -> None:
    """Every head reads by its neighbour's pattern."""
    run = recorded_otherwise(random_run(case), pattern=lambda part: part.pattern.roll(1, 0))
    assert closure(TARGETS["difference"](run)) > WELL_ABOVE


def test_query_key_heads_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lorsa head i by pattern i % heads instead of i // group."""
    run = random_run(LORSA)
    target, of_lorsa = run.logit(3), run.feature(1, -1, 7, sublayer="attn")
    assert conservation(target) <= TOLERANCE and closure(of_lorsa) <= TOLERANCE
    monkeypatch.setattr(Lorsa, "pattern_of", lambda lorsa, index: index % lorsa.query_key.n_heads)
    assert conservation(target) > WELL_ABOVE
    assert closure(run.feature(1, -1, 7, sublayer="attn")) > WELL_ABOVE


# ---------------------------------------------------------------- scores


def off_the_pattern(run: Run) -> float:
    """Return how far differences of scores are from log ratios of the recorded patterns."""
    worst = 0.0
    for layer in range(run.weights.n_layers):
        pattern = run.layers[layer].attention.pattern[:, -1, -2:].log()
        for head in range(run.weights.query_key(layer).n_heads):
            one, two = (run.attention_score(layer, head, -1, key).value for key in (-1, -2))
            worst = max(worst, abs(one - two - float(pattern[head, 1] - pattern[head, 0])))
    return worst


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("case", [LORSA, NORMED, SAE], ids=str)
def test_a_bias_dropped_from_a_score(
    case: Case, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held query, or key, without what no node wrote of it."""
    target = random_run(case).attention_score(1, 1, -1, -2, side=side)
    assert closure(target) <= TOLERANCE
    held = getattr(QueryKey, f"held_{side}")

    def unbiased(heads: QueryKey, *place: Any) -> HeldSide:
        whole = held(heads, *place)
        return HeldSide(whole.read, torch.zeros_like(whole.constant))

    monkeypatch.setattr(QueryKey, f"held_{side}", unbiased)
    assert closure(random_run(case).attention_score(1, 1, -1, -2, side=side)) > WELL_ABOVE


@pytest.mark.parametrize("name", ["query_bias", "key_bias", "query_norm", "key_norm", "rotary"])
def test_a_part_of_the_scores_left_out(name: str) -> None:
    """Scores would no longer be those that the pattern was made of."""
    run = random_run(NORMED)
    assert off_the_pattern(run) <= TOLERANCE

    def change(block: Any) -> Any:
        heads = dataclasses.replace(block.attention.query_key, **{name: None})
        return dataclasses.replace(
            block, attention=dataclasses.replace(block.attention, query_key=heads)
        )

    assert off_the_pattern(changed(run, change)) > 1e-3


def test_key_heads_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped keys: head h by key head h % n instead of h // (heads / n)."""
    run = random_run(GROUPED)
    assert off_the_pattern(run) <= TOLERANCE
    monkeypatch.setattr(QueryKey, "key_head", lambda heads, head: head % heads.key.shape[0])
    assert off_the_pattern(run) > 1e-3


# ---------------------------------------------------------------- against the frozen model


def frozen(case: Case, **settings: Any) -> tuple[FrozenGPT2, Held]:
    """Return the oracle of a case, perhaps with a mistake, and what its run fixes."""
    shape = SHAPES[case.shape]
    given = {"mlps": mlps_of(case), "attentions": attentions_of(case), **settings}
    oracle = FrozenGPT2(random_gpt2(shape, case.seed), **given, errors=case.errors)
    return oracle, oracle.freeze(random_ids(shape, case.seed))


def token_deviation(target: Target, oracle: FrozenGPT2, held: Held) -> float:
    """Return the largest difference of any token's attribution, as a share of Σ|terms|."""
    expected = attributions(target, oracle.forward(held))
    found = sweep(target, target.run.sublayers).leaves.token
    return float((found - expected.token).abs().max()) / expected.magnitude()


@pytest.mark.parametrize("side", ["query", "key", "both"])
def test_query_key_norms_not_held(side: str) -> None:
    """Live denominators give another gradient; without q/k norm there is nothing to hold."""
    for case, differs in ((NORMED, True), (LORSA, False)):
        target = random_run(case).attention_score(1, 1, -1, 2, side=side)
        assert token_deviation(target, *frozen(case)) <= TOLERANCE
        live = token_deviation(target, *frozen(case, hold_query_key_norms=False))
        assert live > WELL_ABOVE if differs else live <= TOLERANCE


def test_a_gate_scale_forgotten() -> None:
    """Without the decoder norm other heads are active."""
    layers = [
        dataclasses.replace(layer, gate_scale=None)
        for layer in attentions_of(NORMED) or []
        if layer is not None
    ]
    target = TARGETS["difference"](random_run(NORMED))
    assert token_deviation(target, *frozen(NORMED)) <= TOLERANCE
    assert token_deviation(target, *frozen(NORMED, attentions=layers)) > WELL_ABOVE


def test_patterns_of_lorsa_not_held() -> None:
    """Live patterns give another gradient."""
    target = TARGETS["difference"](random_run(LORSA))
    assert token_deviation(target, *frozen(LORSA, hold_patterns=False)) > WELL_ABOVE


def test_a_replacement_run_taken_for_the_original() -> None:
    """With errors and without are different graphs."""
    case = dataclasses.replace(NORMED, errors=False)
    target = TARGETS["difference"](random_run(case))
    assert token_deviation(target, *frozen(case)) <= TOLERANCE
    assert token_deviation(target, *frozen(NORMED)) > WELL_ABOVE
