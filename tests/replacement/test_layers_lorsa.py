"""Lorsa against its formula, head by head; and the two ways through it, fused and by pattern."""

import dataclasses

import pytest
import torch
from torch import Tensor

from replacement.layers import JumpReLU, Lorsa, TopK
from tests.replacement.layers_made import (
    ACTIVATIONS,
    N_FEATURES,
    N_HEADS,
    ROTARIES,
    inputs,
    random_layer,
    random_query_key,
)

GROUP = N_FEATURES // N_HEADS


def slow_heads(layer: Lorsa, y: Tensor, pattern: Tensor) -> Tensor:
    """Every head's scalar at every position of one prompt, by DESIGN 3's formula."""
    n_pos = len(y)
    result = torch.zeros(n_pos, N_FEATURES, dtype=y.dtype)
    for at in range(n_pos):
        looked_at = []
        for i in range(N_FEATURES):
            moved = [
                float(pattern[i // GROUP, at, s] * (y[s] @ layer.read[i])) for s in range(n_pos)
            ]
            result[at, i] = sum(moved) + float(layer.read_bias[i])
            scale = 1.0 if layer.gate_scale is None else float(layer.gate_scale[i])
            looked_at.append(float(result[at, i]) * scale)
        for i in range(N_FEATURES):
            result[at, i] *= slow_gate(layer, looked_at, i)
    return result


def slow_gate(layer: Lorsa, looked_at: list[float], i: int) -> bool:
    match layer.activation:
        case TopK(k):
            return looked_at[i] > 0 and sum(other > looked_at[i] for other in looked_at) < k
        case JumpReLU(threshold):
            return looked_at[i] > float(threshold[i])
        case other:
            return looked_at[i] > getattr(other, "threshold", 0.0)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_lorsa_is_its_formula(activation: str, gated: bool) -> None:
    heads = random_query_key(turns="partial", norm=True, window=3, n_key_heads=2)
    layer = random_layer("lorsa", activation, gated=gated, query_key=heads)
    y = inputs(6)
    wanted = slow_heads(layer, y, heads.pattern(y))
    active = layer.encode(y)
    dense = torch.zeros_like(wanted)
    dense[active.pos, active.index] = active.activation
    torch.testing.assert_close(dense, wanted, rtol=0, atol=1e-12)
    assert 0 < len(active) < wanted.numel()
    output = sum(wanted[:, i, None] * layer.write[i] for i in range(N_FEATURES))
    torch.testing.assert_close(layer.forward(y), output + layer.write_bias, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.decode(active, y), layer.forward(y), rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [1, 20, N_FEATURES + 5])
def test_top_k_keeps_fewer_where_fewer_are_positive(k: int) -> None:
    layer = dataclasses.replace(random_layer("lorsa", gated=True), activation=TopK(k))
    y = inputs(6)
    counts = layer.encode(y).offsets.diff()
    positive = (layer.mixed(y) > 0).sum(-1)
    assert torch.equal(counts, positive.clamp(max=k))
    assert (positive < 20).all() and (positive > 1).all()


@pytest.mark.parametrize("n_key_heads", [4, 1])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("turns", ROTARIES)
def test_fused_and_explicit_paths_agree(
    turns: str, norm: bool, window: int | None, n_key_heads: int
) -> None:
    heads = random_query_key(turns=turns, norm=norm, window=window, n_key_heads=n_key_heads)
    layer = random_layer("lorsa", "jumprelu", gated=True, query_key=heads)
    for n_pos in (1, 2, 7):
        y = inputs(n_pos)
        pattern = heads.pattern(y)
        explicit, fused = layer.encode(y, pattern), layer.encode(y)
        assert torch.equal(explicit.index, fused.index)
        assert torch.equal(explicit.offsets, fused.offsets)
        torch.testing.assert_close(explicit.activation, fused.activation, rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.mixed(y, pattern), layer.mixed(y), rtol=0, atol=1e-12)


def test_a_pattern_given_is_the_one_used() -> None:
    """Held patterns: where every query sees its own position only, nothing moves."""
    layer = random_layer("lorsa")
    y = inputs(5)
    own = torch.eye(5, dtype=y.dtype).expand(N_HEADS, -1, -1)
    still = y @ layer.read.T + layer.read_bias
    torch.testing.assert_close(layer.mixed(y, own), still, rtol=0, atol=1e-13)
    assert not torch.allclose(layer.mixed(y), still, atol=0.1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_prompts_of_a_batch_do_not_meet(activation: str) -> None:
    """Leading axes are prompts, padding on the right changes nothing, later tokens neither."""
    layer = random_layer("lorsa", activation, gated=True)
    y = inputs(2, 3, 7)
    output = layer.forward(y)
    assert output.shape == y.shape
    for one, each in zip(output.flatten(0, 1), y.flatten(0, 1), strict=True):
        torch.testing.assert_close(one, layer.forward(each), rtol=0, atol=1e-12)
    padded = torch.cat([y[0, 0, :4], 100 * inputs(9, seed=8)])
    real = layer.forward(y[0, 0, :4])
    torch.testing.assert_close(layer.forward(padded)[:4], real, rtol=0, atol=1e-12)


def test_consecutive_heads_share_a_pattern() -> None:
    layer = random_layer("lorsa")
    assert layer.group == GROUP
    index = torch.tensor([0, GROUP - 1, GROUP, N_FEATURES - 1])
    assert layer.pattern_of(index).tolist() == [0, 0, 1, N_HEADS - 1]
    y = inputs(6)
    other = dataclasses.replace(
        layer,
        query_key=dataclasses.replace(
            layer.query_key, query=layer.query_key.query.index_fill(0, torch.tensor([1]), 0.3)
        ),
    )
    changed = (layer.mixed(y) - other.mixed(y)).abs().amax(0) > 1e-9
    assert changed.nonzero().flatten().tolist() == list(range(GROUP, 2 * GROUP))


def test_one_head_each_and_one_head_for_all() -> None:
    """The extremes of sharing agree with the formula too."""
    heads = random_query_key(n_key_heads=1)
    alone = dataclasses.replace(
        heads, query=heads.query[:1], query_bias=None, key_bias=None, rotary=None
    )
    layer = random_layer("lorsa", query_key=alone)
    assert layer.group == N_FEATURES
    y = inputs(5)
    wanted = alone.pattern(y)[0] @ (y @ layer.read.T) + layer.read_bias
    torch.testing.assert_close(layer.mixed(y), wanted, rtol=0, atol=1e-12)
    single = dataclasses.replace(
        layer,
        query_key=heads,
        read=layer.read[:N_HEADS],
        write=layer.write[:N_HEADS],
        read_bias=layer.read_bias[:N_HEADS],
    )
    assert single.group == 1
    values = (y @ single.read.T).T[..., None]
    wanted = (heads.pattern(y) @ values)[..., 0].T + single.read_bias
    torch.testing.assert_close(single.mixed(y), wanted, rtol=0, atol=1e-12)


def test_heads_that_cannot_be_shared_equally_are_refused() -> None:
    layer = random_layer("lorsa")
    with pytest.raises(ValueError, match="23 value-output heads cannot share 4 query-key heads"):
        dataclasses.replace(
            layer, read=layer.read[1:], write=layer.write[1:], read_bias=layer.read_bias[1:]
        )


def test_folding_leaves_every_pattern_as_it_was() -> None:
    """Biases of queries and keys are not scaled: they were trained beside the scaled input."""
    layer = random_layer("lorsa")
    y = inputs(6)
    folded = layer.folded(0.4, 3.0)
    torch.testing.assert_close(
        folded.query_key.pattern(y), layer.query_key.pattern(0.4 * y), rtol=0, atol=1e-13
    )
