"""Training lowers the loss, resumes exactly, and folding keeps the function."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from replacement.layers import AttentionSAE, TopK, Transcoder
from replacement.training import (
    TopKSettings,
    collect,
    measure_layers,
    tokens_of,
    train_attention_saes,
    train_transcoders,
)
from replacement.training.restart import LEAST, Given, restart_dead
from replacement.training.stack import plain_stack
from replacement.training.trainer import keep_largest, make_optimizer, one_step
from tests.replacement.training.models_made import SMALL, batches, tiny_model

TRAIN = {Transcoder: train_transcoders, AttentionSAE: train_attention_saes}


@pytest.mark.parametrize("kind", TRAIN)
def test_training_explains_most_of_the_variance(kind: type, tmp_path: Path) -> None:
    model, train = tiny_model(), TRAIN[kind]
    early = train(model, batches, SMALL, tmp_path / "early", stop_after=1)
    late = train(model, batches, SMALL, tmp_path / "late")
    assert {type(layer) for layer in late} == {kind}
    data = batches(-100)
    before, after = measure_layers(model, early, data), measure_layers(model, late, data)
    for untrained, trained in zip(before, after, strict=True):
        assert trained.variance_explained > 0.8
        assert 1 - trained.variance_explained < 0.5 * (1 - untrained.variance_explained)
        assert trained.l0 <= SMALL.k
    swapped = measure_layers(model, late[::-1], data)  # each other's layer: no use
    assert all(layer.variance_explained < 0.5 for layer in swapped)


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, steps=20)
    model = tiny_model()
    whole = train_transcoders(model, batches, settings, tmp_path / "whole")
    train_transcoders(model, batches, settings, tmp_path / "parts", stop_after=13)
    parts = train_transcoders(model, batches, settings, tmp_path / "parts")
    for one, other in zip(whole, parts, strict=True):
        for name in ("read", "write", "read_bias", "write_bias"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    with pytest.raises(ValueError, match=r"other settings \(steps differ\)"):
        train_transcoders(model, batches, SMALL, tmp_path / "parts")


def test_folding_keeps_the_function() -> None:
    sample = [collect(tiny_model(), batch) for batch in batches(0)]
    stack = plain_stack(sample, SMALL)
    tokens = tokens_of(sample)
    with torch.no_grad():
        stack.read_bias += 0.3 * torch.randn_like(stack.read_bias)
        active = keep_largest(stack.pre_activation(stack.heard(sample)), 4)
        expected = (stack.decode(active) + stack.write_bias[:, None]) / stack.output_unit[
            :, None, None
        ]
    for index, fields in enumerate(stack.fold(4)):
        layer = Transcoder(**fields)
        assert layer.activation == TopK(4)
        found = layer.forward(tokens.inputs[index])
        torch.testing.assert_close(found, expected[index], rtol=1e-4, atol=1e-4)


def test_keep_largest_by_hand() -> None:
    pre = torch.tensor([[[3.0, -1.0, 2.0, 5.0], [-3.0, -1.0, -2.0, 0.5]]])
    assert keep_largest(pre, 2).tolist() == [[[3.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.5]]]


@pytest.fixture
def a_dead_feature() -> SimpleNamespace:
    """After one step: feature 3 of layer 0 is dead, and one token, along one axis, is missed."""
    parts = [collect(tiny_model(), batch) for batch in batches(0)]
    stack = plain_stack(parts, SMALL)
    optimizer = make_optimizer(stack, SMALL)
    one_step(stack, optimizer, parts, settings=SMALL, step=0)
    stack.silent[0, 3] = SMALL.dead_after
    tokens, heard = tokens_of(parts), stack.heard(parts)
    left_over = torch.zeros_like(tokens.outputs)
    left_over[:, 17, 2] = 4.0
    kept, most = (torch.full(left_over.shape[:2], size) for size in (7.0, 9.0))
    given = Given(heard, left_over, kept, most, tokens.weight)
    return SimpleNamespace(stack=stack, optimizer=optimizer, given=given)


def restart(case: SimpleNamespace, given: Given, *, gentle: bool = False) -> torch.Tensor:
    """Restart and return what feature 3 makes of every token."""
    settings = dataclasses.replace(SMALL, gentle_restarts=gentle)
    case.stack.silent[0, 3] = SMALL.dead_after
    restart_dead(case.stack, case.optimizer, given, settings=settings, step=0)
    with torch.no_grad():
        return case.stack.pre_activation(given.heard)[0, :, 3]


def test_only_dead_features_are_restarted_and_then_kept_at_their_token(
    a_dead_feature: SimpleNamespace,
) -> None:
    stack, optimizer, given = a_dead_feature.stack, a_dead_feature.optimizer, a_dead_feature.given
    before = stack.read.clone()
    assert restart(a_dead_feature, given)[17].item() == pytest.approx(7.7, rel=1e-3)
    assert (stack.read != before).any(-1).nonzero().tolist() == [[0, 3]]
    assert stack.write[0, 3].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert optimizer.state[stack.read]["exp_avg"][0, 3].abs().max() == 0
    assert optimizer.state[stack.read]["exp_avg"][1, 3].abs().max() > 0
    assert stack.silent[0, 3] == 0
    bounded = dataclasses.replace(given, most=given.most / 2)
    assert restart(a_dead_feature, bounded)[17].item() == pytest.approx(4.5, rel=1e-3)


def test_a_gentle_restart_is_as_strong_as_what_is_missing(a_dead_feature: SimpleNamespace) -> None:
    """Hand-made least squares: at each token a is written and m was missing: scale = Σam / Σa²."""
    given = a_dead_feature.given
    full = restart(a_dead_feature, given).relu()
    assert (full > 0.1).sum() > 5  # it answers to many, and one of them needs it
    best = (4.0 * full[17] / full.square().sum()).clamp(LEAST, 1.0)
    assert best < 0.9
    gentle = restart(a_dead_feature, given, gentle=True).relu()
    torch.testing.assert_close(gentle, best * full, rtol=1e-3, atol=1e-4)
    everywhere = dataclasses.replace(given, left_over=torch.zeros_like(given.left_over))
    everywhere.left_over[0, :, 2] = 1.5 * full  # all that it writes is missing, and more
    left = restart(a_dead_feature, everywhere, gentle=True)
    assert left.max() > 1.0


def test_more_features_kept_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="k=9 features cannot be kept of n_features=8"):
        TopKSettings(n_features=8, k=9)
