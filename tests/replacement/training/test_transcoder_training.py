"""Training lowers the loss, resumes exactly, and folding keeps the function."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from replacement.layers import TopK
from replacement.training import (
    TokenBatch,
    TranscoderSettings,
    collect,
    measure_layers,
    train_transcoders,
)
from replacement.training.activations import mlp_modules
from replacement.training.restart import Given, restart_dead
from replacement.training.stack import Stack
from replacement.training.trainer import keep_largest, one_step

SETTINGS = TranscoderSettings(
    n_features=48,
    k=4,
    steps=120,
    learning_rate=5e-3,
    warm_up=5,
    k_start=8,
    dead_after=10,
    restart_every=10,
    checkpoint_every=50,
)


def tiny_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=12, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    for mlp in mlp_modules(model):
        for weight in mlp.parameters():
            weight.data = 0.5 * torch.randn_like(weight)
    model.transformer.wte.weight.data *= 20
    return model


def batches(step: int) -> list[TokenBatch]:
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(0, 12, (32, 6), generator=generator)
    return [TokenBatch(ids, torch.ones(ids.shape))]


def test_training_explains_most_of_the_variance(tmp_path: Path) -> None:
    model = tiny_model()
    early = train_transcoders(model, batches, SETTINGS, tmp_path / "early", stop_after=1)
    late = train_transcoders(model, batches, SETTINGS, tmp_path / "late")
    data = batches(-100)
    before, after = measure_layers(model, early, data), measure_layers(model, late, data)
    for untrained, trained in zip(before, after, strict=True):
        assert trained.variance_explained > 0.8 > untrained.variance_explained
        assert trained.l0 <= SETTINGS.k
    swapped = measure_layers(model, late[::-1], data)  # each other's layer: no use
    assert all(layer.variance_explained < 0.3 for layer in swapped)


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    settings = TranscoderSettings(**{**SETTINGS.__dict__, "steps": 20})
    model = tiny_model()
    whole = train_transcoders(model, batches, settings, tmp_path / "whole")
    train_transcoders(model, batches, settings, tmp_path / "parts", stop_after=13)
    parts = train_transcoders(model, batches, settings, tmp_path / "parts")
    for one, other in zip(whole, parts, strict=True):
        for name in ("read", "write", "read_bias", "write_bias"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    with pytest.raises(ValueError, match=r"other settings \(steps differ\)"):
        train_transcoders(model, batches, SETTINGS, tmp_path / "parts")


def test_folding_keeps_the_function() -> None:
    model = tiny_model()
    data = collect(model, batches(0)[0])
    stack = Stack(data, SETTINGS)
    with torch.no_grad():
        stack.read_bias += 0.3 * torch.randn_like(stack.read_bias)
        inputs = data.inputs * stack.input_unit[:, None, None]
        active = keep_largest(stack.pre_activation(inputs), 4)
        expected = (stack.decode(active) + stack.write_bias[:, None]) / stack.output_unit[
            :, None, None
        ]
    for index, layer in enumerate(stack.fold(4)):
        assert layer.activation == TopK(4)
        found = layer.decode(layer.encode(data.inputs[index]), data.inputs[index])
        torch.testing.assert_close(found, expected[index], rtol=1e-4, atol=1e-4)


def test_keep_largest_by_hand() -> None:
    pre = torch.tensor([[[3.0, -1.0, 2.0, 5.0], [-3.0, -1.0, -2.0, 0.5]]])
    assert keep_largest(pre, 2).tolist() == [[[3.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.5]]]


def test_only_dead_features_are_restarted_and_then_kept_at_their_token() -> None:
    data = collect(tiny_model(), batches(0)[0])
    stack = Stack(data, SETTINGS)
    optimizer = torch.optim.Adam(stack.parameters())
    one_step(stack, optimizer, data, settings=SETTINGS, step=0)
    before = {name: weight.clone() for name, weight in stack.named_parameters()}
    stack.silent[0, 3] = SETTINGS.dead_after
    left_over = torch.zeros_like(data.outputs)
    left_over[:, 17, 2] = 4.0  # everything is left over at one token, along one direction
    kept, most = (torch.full(data.inputs.shape[:2], size) for size in (7.0, 9.0))
    given = Given(data.inputs, left_over, kept, most, data.weight)
    restart_dead(stack, optimizer, given, settings=SETTINGS, step=0)
    changed = (stack.read != before["read"]).any(-1).nonzero().tolist()
    assert changed == [[0, 3]]
    assert stack.write[0, 3].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    pre = stack.pre_activation(data.inputs)[0, 17, 3]
    assert pre.item() == pytest.approx(7.7, rel=1e-3)
    assert optimizer.state[stack.read]["exp_avg"][0, 3].abs().max() == 0
    assert optimizer.state[stack.read]["exp_avg"][1, 3].abs().max() > 0
    assert stack.silent[0, 3] == 0
    stack.silent[0, 3] = SETTINGS.dead_after
    bounded = Given(data.inputs, left_over, kept, most / 2, data.weight)
    restart_dead(stack, optimizer, bounded, settings=SETTINGS, step=0)
    assert stack.pre_activation(data.inputs)[0, 17, 3].item() == pytest.approx(4.5, rel=1e-3)


def test_more_features_kept_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="k=9 features cannot be kept of n_features=8"):
        TranscoderSettings(n_features=8, k=9)
