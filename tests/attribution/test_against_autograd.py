"""The sweep against autograd on an independent frozen model, and controls that must fail."""

import dataclasses
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from attribution.sweep import Sweep, sweep
from replacement.held import Sublayer
from replacement.layers import Active
from replacement.run import Run
from replacement.target import Target
from tests.attribution.frozen import Attributions, FrozenGPT2, Held, attributions, measure
from tests.samples import (
    CASES,
    RESIDUAL,
    SHAPES,
    TARGETS,
    Case,
    attentions_of,
    mlps_of,
    random_gpt2,
    random_ids,
    random_run,
    residuals_of,
)

TOLERANCE = 1e-9
WELL_ABOVE = 1e-4
"""Of Σ|terms|: what a mistake must at least show as, five orders above the tolerance."""
CONSTANTS = (
    "value_bias",
    "output_bias",
    "attention norm bias",
    "mlp norm bias",
    "final norm bias",
    "read_bias",
    "write_bias",
    "position",
)
SMOOTH = CASES[0]
SPARSE = Case("two layers", "jumprelu", skip=True)


@lru_cache(maxsize=64)
def frozen_of(case: Case) -> tuple[FrozenGPT2, Held]:
    """Return the oracle of a case and what its run fixes, from weights made once more."""
    shape = SHAPES[case.shape]
    oracle = FrozenGPT2(
        random_gpt2(shape, case.seed),
        mlps_of(case),
        attentions_of(case),
        residuals_of(case),
        errors=case.errors,
    )
    return oracle, oracle.freeze(random_ids(shape, case.seed))


def active_of(run: Run, layer: Sublayer) -> Active | None:
    """Return the active features of a sublayer, None for heads."""
    if layer.replaces:
        return run.streams[layer.reads_at].active
    recorded = run.layers[layer.layer]
    return recorded.mlp.active if layer.name == "mlp" else recorded.attention.active


def dense(run: Run, layer: Sublayer, values: Tensor) -> Tensor:
    """Return per-node values of a sublayer as a [pos, head] or [pos, feature] table."""
    active = active_of(run, layer)
    if active is None:
        return values.view(len(run.tokens), -1)
    table = values.new_zeros(len(run.tokens), active.n_features)
    table[active.pos, active.index] = values[: len(active)]
    return table


def skips(run: Run, layer: Sublayer, values: Tensor) -> Tensor | None:
    """Return the entries of a sublayer's skip nodes."""
    return None if layer.always is None else values[len(run.layers[layer.layer].mlp.active) :]


def deviation(run: Run, swept: Sweep, expected: Attributions) -> float:
    """Return the largest difference of any node, as a share of Σ|terms|."""
    pairs = [(swept.leaves.token, expected.token), (swept.leaves.position, expected.position)]
    for number, layer in enumerate(run.sublayers):
        found = swept.attribution[number]
        pairs.append((dense(run, layer, found), expected.nodes[number]))
        pairs.append((swept.leaves.error[number], expected.errors[number]))
        around, skip = skips(run, layer, found), expected.skips[number]
        assert (around is None) == (skip is None)
        if around is not None and skip is not None:
            pairs.append((around, skip))
    worst = max(float((found - right).abs().max()) for found, right in pairs)
    return worst / expected.magnitude()


def masks_of(run: Run, swept: Sweep) -> list[Tensor]:
    """Return the kept nodes of a sweep as dense masks for the frozen model."""
    return [dense(run, layer, keep) for layer, keep in zip(run.sublayers, swept.keep, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attribution_is_value_times_gradient(case: Case) -> None:
    """Heads, features, skips, tokens, positions, errors: a·u = value · d target / d value."""
    run, (oracle, held) = random_run(case), frozen_of(case)
    made = oracle.forward(held)
    for make in TARGETS.values():
        target = make(run)
        expected = attributions(target, made)
        assert deviation(run, sweep(target, run.sublayers), expected) <= TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_frozen_model_computes_the_logits(case: Case) -> None:
    """The oracle itself: with errors added it gives the logits of plain Hugging Face.

    Without, those of the replacement run (which tests/replacement checks with hooks).
    """
    shape, (oracle, held) = SHAPES[case.shape], frozen_of(case)
    logits = random_run(case).logits
    if case.errors:
        with torch.no_grad():
            logits = oracle.model(torch.tensor([random_ids(shape, case.seed)])).logits[0]
    torch.testing.assert_close(oracle.forward(held).logits.detach(), logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("rule", "cutoff"), [("absolute", 0.05), ("signed", 0.05)])
def test_gated_sweep_stops_gradients_at_pruned_nodes(case: Case, rule: str, cutoff: float) -> None:
    """Gated attribution is value · gradient where no gradient passes through what was not kept."""
    run, (oracle, held) = random_run(case), frozen_of(case)
    for name in ("difference", "combination", "scores and logits"):
        target = TARGETS[name](run)
        swept = sweep(target, run.sublayers, cutoff, rule=rule)
        expected = attributions(target, oracle.forward(held, keep=masks_of(run, swept)))
        assert deviation(run, swept, expected) <= TOLERANCE
        for layer, nodes, keep in zip(
            run.sublayers, expected.nodes, masks_of(run, swept), strict=True
        ):
            strength = nodes.abs() if rule == "absolute" else nodes
            assert torch.equal(keep, strength >= cutoff), f"another choice in {layer.name}"


@pytest.mark.parametrize(
    "case", [SMOOTH, SPARSE, Case("deep", "topk", seed=2), RESIDUAL[-1]], ids=str
)
def test_frozen_model_is_linear(case: Case) -> None:
    """f(ax + by) = a f(x) + b f(y) without constants, and second derivatives vanish with them."""
    oracle, held = frozen_of(case)
    target = TARGETS["combination"](random_run(case))
    x, y = torch.randn(2, *held.token.shape, dtype=torch.float64)

    def value(entering: Tensor, constants: bool = False) -> Tensor:
        return measure(target, oracle.forward(held, entering=entering, constants=constants))

    left, right = value(2.5 * x - 0.75 * y), 2.5 * value(x) - 0.75 * value(y)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    hessian = torch.autograd.functional.hessian(lambda point: value(point, True), x)
    assert isinstance(hessian, Tensor)
    assert float(hessian.abs().max()) == 0


def test_live_model_is_not_linear() -> None:
    """Control: with norms, patterns and gates live the second derivatives do not vanish."""
    oracle, held = frozen_of(SMOOTH)
    target = TARGETS["combination"](random_run(SMOOTH))
    for free in ("hold_scales", "hold_patterns", "hold_gates"):
        live = FrozenGPT2(oracle.model, None, **{free: False})

        def value(entering: Tensor, live: FrozenGPT2 = live) -> Tensor:
            return measure(target, live.forward(held, entering=entering))

        hessian = torch.autograd.functional.hessian(value, held.token + held.position)
        assert float(hessian.abs().max()) > WELL_ABOVE, free


class TestControls:
    """One mistake each: the comparison or the closure must notice it, far above the tolerance."""

    @pytest.mark.parametrize("free", ["hold_scales", "hold_patterns", "hold_gates"])
    def test_something_not_held(self, free: str) -> None:
        """Value · gradient of a model with live norms, patterns or gates is something else."""
        run, (oracle, held) = random_run(SMOOTH), frozen_of(SMOOTH)
        target = TARGETS["difference"](run)
        live = FrozenGPT2(oracle.model, None, **{free: False})
        expected = attributions(target, live.forward(held))
        assert deviation(run, sweep(target, run.sublayers), expected) > WELL_ABOVE

    def test_an_error_dropped(self) -> None:
        """Without errors the transcoders' model computes another number, and errors count 0."""
        run, (oracle, held) = random_run(SPARSE), frozen_of(SPARSE)
        target = TARGETS["difference"](run)
        without = FrozenGPT2(oracle.model, oracle.mlps, add_errors=False).forward(held)
        assert off(measure(target, without), target) > WELL_ABOVE
        expected = attributions(target, without)
        assert deviation(run, sweep(target, run.sublayers), expected) > WELL_ABOVE

    @pytest.mark.parametrize("left_out", CONSTANTS)
    @pytest.mark.parametrize("case", [SMOOTH, SPARSE], ids=str)
    def test_a_constant_left_out_of_the_sweep(self, case: Case, left_out: str) -> None:
        """Closure breaks when the held run forgets one constant that the model has."""
        run = random_run(case)
        broken = without(run, left_out)
        target = TARGETS["difference"](broken)
        swept = sweep(target, broken.sublayers)
        assert abs(swept.leaves.total() - target.value) > WELL_ABOVE * swept.leaves.magnitude()

    def test_a_decoder_error_left_out_of_the_sweep(self) -> None:
        """Closure breaks when what transcoders miss is not booked."""
        broken = without(random_run(SPARSE), "mlp error")
        target = TARGETS["difference"](broken)
        swept = sweep(target, broken.sublayers)
        assert abs(swept.leaves.total() - target.value) > WELL_ABOVE * swept.leaves.magnitude()

    def test_a_wrong_pattern(self) -> None:
        """Closure breaks when one pattern entry is not that of the run."""
        run = random_run(SMOOTH)
        attention = run.layers[0].attention
        pattern = attention.pattern.clone()
        pattern[0, -1, 0] += 0.1
        attention = dataclasses.replace(attention, pattern=pattern)
        first = dataclasses.replace(run.layers[0], attention=attention)
        broken = dataclasses.replace(run, layers=[first, *run.layers[1:]])
        target = TARGETS["difference"](broken)
        swept = sweep(target, broken.sublayers)
        assert abs(swept.leaves.total() - target.value) > WELL_ABOVE * swept.leaves.magnitude()


def off(value: Tensor, target: Target) -> float:
    """Return the distance from a target's value, as a share of it."""
    return abs(float(value.detach()) - target.value) / abs(target.value)


def without(run: Run, what: str) -> Run:
    """Return the run with one constant set to zero in every layer, nothing recomputed."""

    def unbiased(norm):
        return dataclasses.replace(norm, bias=torch.zeros_like(norm.bias))

    weights = run.weights
    blocks, layers = weights.layers, run.layers
    match what:
        case "position":
            return dataclasses.replace(run, position_writes=torch.zeros_like(run.position_writes))
        case "mlp error":
            layers = [
                dataclasses.replace(
                    layer,
                    mlp=dataclasses.replace(layer.mlp, error=torch.zeros_like(layer.mlp.error)),
                )
                for layer in layers
            ]
        case "final norm bias":
            weights = dataclasses.replace(weights, final_norm=unbiased(weights.final_norm))
        case "attention norm bias":
            blocks = [
                dataclasses.replace(block, attention_norm=unbiased(block.attention_norm))
                for block in blocks
            ]
        case "mlp norm bias":
            blocks = [
                dataclasses.replace(block, mlp_norm=unbiased(block.mlp_norm)) for block in blocks
            ]
        case "value_bias" | "output_bias":
            blocks = [
                dataclasses.replace(
                    block,
                    heads=dataclasses.replace(
                        block.heads, **{what: torch.zeros_like(getattr(block.heads, what))}
                    ),
                )
                for block in blocks
            ]
        case _:
            blocks = [
                dataclasses.replace(
                    block,
                    mlp=dataclasses.replace(
                        block.mlp, **{what: torch.zeros_like(getattr(block.mlp, what))}
                    ),
                )
                for block in blocks
            ]
    weights = dataclasses.replace(weights, layers=blocks)
    return dataclasses.replace(run, weights=weights, layers=layers)
