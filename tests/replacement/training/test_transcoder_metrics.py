"""Metrics against hand computation and against layers whose loss is known."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from replacement.families import family_of
from replacement.layers import Neurons, TopK, Transcoder
from replacement.training import TokenBatch, collect, measure_layers, measure_model, replaced
from replacement.training.activations import mlp_modules
from replacement.training.metrics import variance_explained


def tiny_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_positions=12, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    for mlp in mlp_modules(model):
        for weight in mlp.parameters():
            weight.data = 0.5 * torch.randn_like(weight)
    return model


def batches() -> list[TokenBatch]:
    torch.manual_seed(1)
    weight = torch.ones(3, 9)
    weight[:, 0] = 0.0
    return [TokenBatch(torch.randint(0, 20, (3, 9)), weight) for _ in range(2)]


def neurons(model: GPT2LMHeadModel) -> list[Neurons]:
    return [family_of(model).neurons(mlp, "gelu_new") for mlp in mlp_modules(model)]


def test_variance_explained_by_hand() -> None:
    target = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    weight = torch.tensor([1.0, 1.0, 2.0])
    # mean = (1 + 3 + 10, 0 + 0 + 12) / 4 = (3.5, 3); spread = (6.25+9) + (.25+9) + 2(2.25+9) = 47
    predicted = target + torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    # error = 1 + 4 + 2 = 7
    assert variance_explained(predicted, target, weight) == pytest.approx(1 - 7 / 47)
    mean = torch.tensor([3.5, 3.0]).expand(3, 2)
    assert variance_explained(mean, target, weight) == pytest.approx(0)


def test_collect_takes_the_normed_input_and_the_output_of_every_mlp() -> None:
    model, batch = tiny_model(), batches()[0]
    data = collect(model, batch)
    assert data.inputs.shape == data.outputs.shape == (2, 24, 8)
    with torch.no_grad():
        states = model(batch.ids, output_hidden_states=True).hidden_states
        block = model.transformer.h[0]
        middle = states[0] + block.attn(block.ln_1(states[0]))[0]
        normed = block.ln_2(middle)
    torch.testing.assert_close(data.inputs[0], normed[:, 1:].flatten(0, 1))
    torch.testing.assert_close(data.outputs[0], (states[1] - middle)[:, 1:].flatten(0, 1))


def test_the_neurons_themselves_lose_nothing() -> None:
    model = tiny_model()
    layers = neurons(model)
    for metrics in measure_layers(model, layers, batches()):
        assert metrics.variance_explained == pytest.approx(1, abs=1e-5)
        assert metrics.l0 == pytest.approx(32)
        assert metrics.dead == 0
    in_place = measure_model(model, layers, batches())
    assert in_place.kl == pytest.approx(0, abs=1e-5)
    assert in_place.cross_entropy_replaced == pytest.approx(in_place.cross_entropy, abs=1e-5)


def test_neurons_with_their_writes_mixed_up_lose_a_lot() -> None:
    model = tiny_model()
    mixed = [replace(layer, write=layer.write.roll(1, dims=0)) for layer in neurons(model)]
    for metrics in measure_layers(model, mixed, batches()):
        assert metrics.variance_explained < 0.3
    assert measure_model(model, mixed, batches()).kl > 1e-3


def test_cross_entropy_and_kl_by_a_plain_loop() -> None:
    model = tiny_model()
    silent = [
        Transcoder(torch.zeros(4, 8), torch.zeros(4, 8), torch.zeros(4), torch.zeros(8), TopK(2))
        for _ in range(2)
    ]
    entropy, entropy_without, kl, count = 0.0, 0.0, 0.0, 0
    without = tiny_model()
    for mlp in mlp_modules(without):
        for weight in mlp.get_submodule("c_proj").parameters():
            weight.data.zero_()
    for batch in batches():
        for row in batch.ids:
            p = model(row[None]).logits[0].softmax(-1)
            q = without(row[None]).logits[0].softmax(-1)
            for pos in range(1, 8):
                entropy -= p[pos, row[pos + 1]].log().item()
                entropy_without -= q[pos, row[pos + 1]].log().item()
                kl += (p[pos] * (p[pos] / q[pos]).log()).sum().item()
                count += 1
    found = measure_model(model, silent, batches())
    assert found.cross_entropy == pytest.approx(entropy / count, rel=1e-4)
    assert found.cross_entropy_replaced == pytest.approx(entropy_without / count, rel=1e-4)
    assert found.kl == pytest.approx(kl / count, rel=1e-3)
    assert [layer.dead for layer in measure_layers(model, silent, batches())] == [1, 1]


def test_replacing_ends_with_the_block_and_counts_layers() -> None:
    model, batch = tiny_model(), batches()[0]
    before = model(batch.ids).logits
    mixed = [replace(layer, write=-layer.write) for layer in neurons(model)]
    with replaced(model, mixed):
        assert not torch.allclose(model(batch.ids).logits, before)
    assert torch.equal(model(batch.ids).logits, before)
    with (
        pytest.raises(ValueError, match="1 layers were given for a model with 2 MLPs"),
        replaced(model, mixed[:1]),
    ):
        pass
