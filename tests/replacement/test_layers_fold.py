"""Training scales folded away and unit decoders: the function stays, and so do the active features.

Issue 3, "must show" 1: every class × activation × decoder-norm gate × unequal scales.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from replacement.layers import FeatureLayer
from tests.replacement.layers_made import (
    ACTIVATIONS,
    CLASSES,
    D_MODEL,
    N_FEATURES,
    inputs,
    random_layer,
)

N_POS = 40
INPUT_SCALE, OUTPUT_SCALE = 0.4, 3.7
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def active_rows(layer: Any, y: Tensor) -> list[list[int]]:
    """Which features are active at every position."""
    active = layer.encode(y)
    bounds = active.offsets.tolist()
    return [active.index[start:end].tolist() for start, end in itertools.pairwise(bounds)]


def same_function(
    changed: Any, layer: Any, y: Tensor, input_scale: float, output_scale: float
) -> float:
    """How far `changed(y)` is from `layer(input_scale * y) / output_scale`, against its size.

    Infinite where other features are active.
    """
    if active_rows(changed, y) != active_rows(layer, input_scale * y):
        return float("inf")
    wanted = layer.forward(input_scale * y) / output_scale
    return float((changed.forward(y) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["no gate", "decoder-norm gate"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", CLASSES)
def test_folding_and_unit_decoders_change_no_output_and_no_gate(
    kind: str, activation: str, gated: bool, dtype: torch.dtype
) -> None:
    layer = random_layer(kind, activation, gated=gated, dtype=dtype)
    y = inputs(N_POS, dtype=dtype)
    scales = INPUT_SCALE, OUTPUT_SCALE
    within = TOLERANCE[dtype]

    rows = active_rows(layer, INPUT_SCALE * y)
    assert all(0 < len(row) < N_FEATURES for row in rows), "every position is really sparse"
    norms = layer.write.norm(dim=-1)
    assert norms.min() < 0.25 and norms.max() > 4, "write vectors are far from norm 1"

    assert layer.folded(1, 1) is layer
    folded = layer.folded(*scales)
    assert same_function(folded, layer, y, *scales) <= within
    unit = layer.unit_decoder()
    assert same_function(unit, layer, y, 1, 1) <= within
    for both in (folded.unit_decoder(), unit.folded(*scales)):
        assert same_function(both, layer, y, *scales) <= within
    assert same_function(unit.folded(*scales).unit_decoder(), layer, y, *scales) <= within

    for made in (unit, folded.unit_decoder()):
        assert torch.allclose(made.write.norm(dim=-1), torch.ones_like(norms), atol=within)
    for made in (folded, unit):
        assert type(made) is type(layer)
        assert {tensor.dtype for tensor in tensors_of(made)} == {dtype}


def tensors_of(layer: FeatureLayer) -> list[Tensor]:
    parts = [layer.read, layer.write, layer.read_bias, layer.write_bias, layer.skip]
    return [part for part in (*parts, layer.gate_scale) if part is not None]


@pytest.mark.parametrize("kind", CLASSES)
def test_activations_keep_the_scale_of_training_under_folds(kind: str) -> None:
    """And after a unit decoder they are the norm of what is written."""
    layer = random_layer(kind, "jumprelu", gated=True)
    y = inputs(N_POS)
    trained = layer.encode(INPUT_SCALE * y)
    folded = layer.folded(INPUT_SCALE, OUTPUT_SCALE)
    torch.testing.assert_close(folded.encode(y).activation, trained.activation)
    written = folded.unit_decoder().encode(y).activation
    norms = layer.write.norm(dim=-1)[trained.index] / OUTPUT_SCALE
    torch.testing.assert_close(written, trained.activation * norms)


@given(
    first=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    second=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    kind=st.sampled_from(CLASSES),
    activation=st.sampled_from(ACTIVATIONS),
    gated=st.booleans(),
)
def test_folds_compose(
    first: tuple[float, float],
    second: tuple[float, float],
    kind: str,
    activation: str,
    gated: bool,
) -> None:
    layer = random_layer(kind, activation, gated=gated)
    y = inputs(6)
    twice = layer.folded(*first).folded(*second)
    total = first[0] * second[0], first[1] * second[1]
    assert same_function(twice, layer.folded(*total), y, 1, 1) < 1e-9


def test_features_that_write_nothing_are_left_as_they_are() -> None:
    layer = random_layer("transcoder", "jumprelu", gated=True)
    write = layer.write.clone()
    write[3] = 0
    layer = dataclasses.replace(layer, write=write)
    unit = layer.unit_decoder()
    assert torch.equal(unit.write[3], torch.zeros(D_MODEL, dtype=torch.float64))
    assert torch.equal(unit.read[3], layer.read[3])
    assert same_function(unit, layer, inputs(N_POS), 1, 1) < 1e-12


def test_a_gate_scale_that_is_no_norm_is_kept_too() -> None:
    """Another gate than the decoder norm, as a unit decoder leaves it behind."""
    layer = random_layer("sae", "topk")
    scale = torch.linspace(0.1, 2, N_FEATURES, dtype=torch.float64)
    layer = dataclasses.replace(layer, gate_scale=scale)
    y = inputs(N_POS)
    changed = layer.unit_decoder().folded(INPUT_SCALE, OUTPUT_SCALE)
    assert same_function(changed, layer, y, INPUT_SCALE, OUTPUT_SCALE) < 1e-12
    assert active_rows(layer, y) != active_rows(random_layer("sae", "topk"), y)


# ------------------------------------------------------------------------- negative controls


def norm_of_the_folded_write(layer: Any) -> Any:
    """The reference implementation: a decoder-norm gate whose norm shrinks, thresholds kept."""
    return layer.folded(INPUT_SCALE, OUTPUT_SCALE).decoder_norm_gated()


def activations_in_real_units(layer: Any) -> Any:
    """Its fold of transcoders: activations leave the scale of training, thresholds do not."""
    return dataclasses.replace(
        layer,
        read_bias=layer.read_bias / INPUT_SCALE,
        write=layer.write * (INPUT_SCALE / OUTPUT_SCALE),
        write_bias=layer.write_bias / OUTPUT_SCALE,
    )


def only_write_made_unit(layer: Any) -> Any:
    """Its unit decoder of SAEs: the read vectors are forgotten."""
    norms = layer.write.norm(dim=-1, keepdim=True)
    return dataclasses.replace(
        layer, write=layer.write / norms, gate_scale=torch.ones_like(layer.read_bias)
    ).folded(INPUT_SCALE, OUTPUT_SCALE)


def one_scale_for_both(layer: Any) -> Any:
    return layer.folded(INPUT_SCALE, INPUT_SCALE)


def gate_scale_folded(layer: Any) -> Any:
    return dataclasses.replace(
        layer.folded(INPUT_SCALE, OUTPUT_SCALE), gate_scale=layer.gate_scale * INPUT_SCALE
    )


MISTAKES: dict[str, tuple[Callable[[Any], Any], str, bool]] = {
    "thresholds kept behind a norm that shrinks": (norm_of_the_folded_write, "jumprelu", True),
    "the same with one threshold": (norm_of_the_folded_write, "batchtopk", True),
    "real activations, trained thresholds": (activations_in_real_units, "jumprelu", False),
    "the same behind a gate": (activations_in_real_units, "jumprelu", True),
    "unit decoder without reading": (only_write_made_unit, "jumprelu", True),
    "one scale for both sides": (one_scale_for_both, "relu", False),
    "gate scaled with the input": (gate_scale_folded, "jumprelu", True),
}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_folds_are_found(name: str, kind: str) -> None:
    """Control: the comparison above tells each known mistake from the right fold."""
    wrong, activation, gated = MISTAKES[name]
    layer = random_layer(kind, activation, gated=gated)
    y = inputs(N_POS)
    assert same_function(wrong(layer), layer, y, INPUT_SCALE, OUTPUT_SCALE) > 0.01


def test_the_reference_fold_lets_most_features_die() -> None:
    """How it shows: L0 falls, though nothing in the weights is broken."""
    layer = random_layer("lorsa", "jumprelu", gated=True)
    y = inputs(N_POS)
    right = len(layer.folded(INPUT_SCALE, OUTPUT_SCALE).encode(y)) / N_POS
    wrong = len(norm_of_the_folded_write(layer).encode(y)) / N_POS
    assert right == len(layer.encode(INPUT_SCALE * y)) / N_POS
    assert wrong < 0.5 * right


def test_activations_without_threshold_survive_the_reference_fold() -> None:
    """ReLU and TopK order by contribution, which one factor for all leaves as it is."""
    for activation in ("relu", "topk"):
        layer = random_layer("sae", activation, gated=True)
        wrong = norm_of_the_folded_write(layer)
        assert same_function(wrong, layer, inputs(N_POS), INPUT_SCALE, OUTPUT_SCALE) < 1e-12
