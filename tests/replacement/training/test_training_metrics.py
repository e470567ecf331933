"""Metrics against hand computation and against layers whose loss is known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from replacement.families import family_of
from replacement.layers import AttentionSAE, Lorsa, Neurons, ReLU, TopK, Transcoder
from replacement.training import (
    TokenBatch,
    collect,
    measure_layers,
    measure_model,
    replaced,
    tokens_of,
)
from replacement.training.activations import blocks_of, norms_and_sublayers
from replacement.training.metrics import variance_explained


def modules(model: Any, sublayer: Any) -> list:
    return [block for _, block in norms_and_sublayers(model, sublayer)]


def tiny_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_positions=12, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    for block in modules(model, "mlp") + modules(model, "attention"):
        for weight in block.parameters():
            weight.data = 0.5 * torch.randn_like(weight)
    return model


def batches() -> list[TokenBatch]:
    torch.manual_seed(1)
    weight = torch.ones(3, 9)
    weight[:, 0] = 0.0
    return [TokenBatch(torch.randint(0, 20, (3, 9)), weight) for _ in range(2)]


def neurons(model: GPT2LMHeadModel) -> list[Neurons]:
    return [family_of(model).neurons(block, "gelu_new") for block in blocks_of(model)]


def exact_lorsa(model: GPT2LMHeadModel, offset: float = 50.0) -> list[Lorsa]:
    """Each head's values as rank-one heads, kept above zero by a bias that is taken off again."""
    layers = []
    for block in blocks_of(model):
        heads = family_of(model).heads(block, model)
        lifted = torch.full((8,), offset)
        layers.append(
            Lorsa(
                query_key=heads.query_key,
                read=heads.value.T,
                write=heads.output,
                read_bias=heads.value_bias + lifted,
                write_bias=heads.output_bias - lifted @ heads.output,
                activation=ReLU(),
            )
        )
    return layers


def exact_sae(offset: float = 50.0) -> AttentionSAE:
    eye, lifted = torch.eye(8), torch.full((8,), offset)
    return AttentionSAE(eye, eye, lifted, -lifted, ReLU())


def silent(n_features: int = 4) -> Transcoder:
    zeros = torch.zeros(n_features, 8)
    return Transcoder(zeros, zeros, torch.zeros(n_features), torch.zeros(8), TopK(2))


def test_variance_explained_by_hand() -> None:
    target = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    weight = torch.tensor([1.0, 1.0, 2.0])
    # mean = (1 + 3 + 10, 0 + 0 + 12) / 4 = (3.5, 3); spread = (6.25+9) + (.25+9) + 2(2.25+9) = 47
    predicted = target + torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    # error = 1 + 4 + 2 = 7
    assert variance_explained(predicted, target, weight) == pytest.approx(1 - 7 / 47)
    mean = torch.tensor([3.5, 3.0]).expand(3, 2)
    assert variance_explained(mean, target, weight) == pytest.approx(0)
    # twice the prediction's variance, a third of the target's: the target's is what counts
    assert variance_explained(3 * target, target, weight) < 0


def test_collect_takes_the_normed_input_and_the_output_of_every_mlp() -> None:
    model, batch = tiny_model(), batches()[0]
    data = collect(model, batch)
    assert data.inputs.shape == data.outputs.shape == (2, 3, 9, 8)
    assert tokens_of([data, data]).inputs.shape == (2, 48, 8)
    with torch.no_grad():
        states = model(batch.ids, output_hidden_states=True).hidden_states
        block = model.transformer.h[0]
        middle = states[0] + block.attn(block.ln_1(states[0]))[0]
        normed = block.ln_2(middle)
    torch.testing.assert_close(data.inputs[0], normed)
    torch.testing.assert_close(data.outputs[0], states[1] - middle)
    torch.testing.assert_close(tokens_of([data]).inputs[0], normed[:, 1:].flatten(0, 1))


def test_the_sublayers_themselves_lose_nothing() -> None:
    model = tiny_model()
    exact = {"mlp": neurons(model), "lorsa": exact_lorsa(model), "sae": [exact_sae()] * 2}
    for name, layers in exact.items():
        for metrics in measure_layers(model, layers, batches()):
            assert metrics.variance_explained == pytest.approx(1, abs=1e-4)
            assert metrics.l0 == pytest.approx(32 if name == "mlp" else 8)
            assert metrics.dead == 0
    for attentions in (exact["lorsa"], exact["sae"], None):
        found = measure_model(model, batches(), mlps=exact["mlp"], attentions=attentions)
        assert found.kl == pytest.approx(0, abs=1e-4)
        assert found.cross_entropy_replaced == pytest.approx(found.cross_entropy, abs=1e-4)


def test_layers_with_their_writes_mixed_up_lose_a_lot() -> None:
    model = tiny_model()
    for layers in (neurons(model), exact_lorsa(model), [exact_sae()] * 2):
        mixed = [replace(layer, write=layer.write.roll(1, dims=0)) for layer in layers]
        for metrics in measure_layers(model, mixed, batches()):
            assert metrics.variance_explained < 0.3
    mixed = [replace(layer, write=layer.write.roll(1, dims=0)) for layer in neurons(model)]
    assert measure_model(model, batches(), mlps=mixed).kl > 1e-3


def test_active_and_dead_are_counted_where_positions_have_weight() -> None:
    """Two heads: one answers at the first position only, whose weight is 0, one everywhere."""
    model = tiny_model()
    first = batches()[0]
    y = collect(model, first, "attention").inputs[0]
    only = torch.zeros(8, 8)
    probe = y[0, 0] / y[0, 0].norm()
    only[0] = probe
    highest = (y[:, 1:] @ probe).max()
    bias = torch.tensor([-highest - 1e-4, 1.0, *([-1.0] * 6)])
    layer = AttentionSAE(only, only, bias, torch.zeros(8), ReLU())
    reads_input = Lorsa(
        replace(exact_lorsa(model)[0].query_key, window=1),  # looks at its own position
        *(only, only, bias, torch.zeros(8)),
        activation=ReLU(),
    )
    assert (reads_input.mixed(y)[0, 0, 0] > 0) == (y[0, 0] @ probe > highest)
    found = measure_layers(model, [reads_input, reads_input], [first])[0]
    assert found.l0 == 1
    assert found.dead == pytest.approx(7 / 8)
    assert measure_layers(model, [layer, layer], [first])[0].dead >= 6 / 8


def test_cross_entropy_and_kl_by_a_plain_loop() -> None:
    model = tiny_model()
    entropy, entropy_without, kl, count = 0.0, 0.0, 0.0, 0
    without = tiny_model()
    for mlp in modules(without, "mlp"):
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
    found = measure_model(model, batches(), mlps=[silent(), silent()])
    assert found.cross_entropy == pytest.approx(entropy / count, rel=1e-4)
    assert found.cross_entropy_replaced == pytest.approx(entropy_without / count, rel=1e-4)
    assert found.kl == pytest.approx(kl / count, rel=1e-3)
    assert [layer.dead for layer in measure_layers(model, [silent()] * 2, batches())] == [1, 1]


def test_none_leaves_the_original() -> None:
    model, ids = tiny_model(), batches()[0].ids
    without = tiny_model()
    without.transformer.h[1].mlp.c_proj.weight.data.zero_()
    without.transformer.h[1].mlp.c_proj.bias.data.zero_()
    without.transformer.h[0].attn.c_proj.weight.data.zero_()
    without.transformer.h[0].attn.c_proj.bias.data.zero_()
    nothing = AttentionSAE(*(silent().read,) * 2, torch.zeros(4), torch.zeros(8), TopK(2))
    with replaced(model, mlps=[None, silent()], attentions=[nothing, None]):
        torch.testing.assert_close(model(ids).logits, without(ids).logits)
    with replaced(model, mlps=[None, None]):
        assert torch.equal(model(ids).logits, tiny_model()(ids).logits)


def test_replacing_ends_with_the_block_and_counts_layers() -> None:
    model, batch = tiny_model(), batches()[0]
    before = model(batch.ids).logits
    mixed = [replace(layer, write=-layer.write) for layer in neurons(model)]
    with replaced(model, mlps=mixed):
        assert not torch.allclose(model(batch.ids).logits, before)
    assert torch.equal(model(batch.ids).logits, before)
    with (
        pytest.raises(ValueError, match="1 mlp layers were given for a model with 2"),
        replaced(model, mlps=mixed[:1]),
    ):
        pass
    assert torch.equal(model(batch.ids).logits, before)
