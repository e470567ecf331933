"""Lorsa layers: they start from the model's own heads or from nothing, and learn either way."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from replacement.families import family_of
from replacement.layers import HeadNorm, Lorsa, QueryKey, rotary
from replacement.training import LorsaSettings, collect, measure_layers, tokens_of, train_lorsa
from replacement.training.activations import Activations, blocks_of
from replacement.training.lorsa_stack import LorsaStack, lorsa_stack
from replacement.training.restart import Given, restart_dead
from replacement.training.trainer import keep_largest, make_optimizer, one_step
from tests.replacement.training.models_made import SMALL, batches, tiny_model

SETTINGS = LorsaSettings(**SMALL.__dict__, repeats=2)


def heads(model: Any) -> list:
    return [family_of(model).heads(block, model) for block in blocks_of(model)]


def sample(step: int = 0) -> list[Activations]:
    return [collect(tiny_model(), batch, "attention") for batch in batches(step)]


def first_step(**changes: Any) -> LorsaStack:
    settings = dataclasses.replace(SETTINGS, **changes)
    return lorsa_stack(sample(), heads(tiny_model()), settings)


def test_attention_is_recorded_from_its_norm_to_its_output() -> None:
    model, batch = tiny_model(), batches(0)[0]
    data = collect(model, batch, "attention")
    with torch.no_grad():
        states = model(batch.ids, output_hidden_states=True).hidden_states
        block = model.transformer.h[1]
        normed = block.ln_1(states[1])
        wrote = block.attn(normed)[0]
    torch.testing.assert_close(data.inputs[1], normed)
    torch.testing.assert_close(data.outputs[1], wrote)
    saes = collect(model, batch, "attention output")
    assert torch.equal(saes.inputs, saes.outputs)
    assert torch.equal(saes.outputs, data.outputs)


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_first_patterns_are_the_layers_own(repeats: int) -> None:
    model = tiny_model()
    batch = batches(5)[0]
    y = collect(model, batch, "attention").inputs
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(batch.ids, output_attentions=True).attentions
    for index, fields in enumerate(first_step(repeats=repeats).fold(4)):
        query_key = Lorsa(**fields).query_key
        own = patterns[index].repeat_interleave(repeats, dim=1)
        torch.testing.assert_close(query_key.pattern(y[index]), own, atol=1e-5, rtol=1e-4)
        without = dataclasses.replace(query_key, query_bias=None, key_bias=None)
        assert (without.pattern(y[index]) - own).abs().max() > 0.05  # biases matter here


def test_the_first_features_write_what_their_heads_write() -> None:
    """Each writes into the span of its head's W_O and reads its head's output along that."""
    stack = first_step()
    for layer, (fields, weights) in enumerate(zip(stack.fold(4), heads(tiny_model()), strict=True)):
        lorsa = Lorsa(**fields)
        through = weights.value_of_head @ weights.output_of_head
        for head, matrix in enumerate(through):
            mine = (lorsa.pattern_of(torch.arange(32)) // SETTINGS.repeats) == head
            write, read = lorsa.write[mine], lorsa.read[mine]
            rest = write - write @ torch.linalg.pinv(matrix) @ matrix
            assert rest.norm() < 1e-3 * write.norm()
            torch.testing.assert_close(
                normalize(read, dim=-1), normalize(write @ matrix.T, dim=-1), atol=1e-4, rtol=1e-3
            )
        mean = (stack.pre_activation(stack.heard(sample()))[layer]).mean(0)
        assert mean.abs().max() < 1e-3  # the sample's mean is where nothing is written


def explained(layers: list[Lorsa]) -> torch.Tensor:
    metrics = measure_layers(tiny_model(), layers, batches(-100))
    return torch.tensor([layer.variance_explained for layer in metrics])


def test_training_from_the_own_heads_explains_attention(tmp_path: Path) -> None:
    model = tiny_model()
    early = train_lorsa(model, batches, SETTINGS, tmp_path / "early", stop_after=1)
    late = train_lorsa(model, batches, SETTINGS, tmp_path / "late")
    assert (explained(late) > 0.75).all()
    assert (1 - explained(late) < 0.6 * (1 - explained(early))).all()
    assert (explained(late[::-1]) < 0.3).all()  # each other's layer: no use
    assert all(layer.l0 <= SETTINGS.k for layer in measure_layers(model, late, batches(-100)))


def test_training_from_nothing_learns_where_to_look(tmp_path: Path) -> None:
    """With patterns that stay as drawn, less is explained."""
    model = tiny_model()
    settings = dataclasses.replace(SETTINGS, start="random", repeats=1, k=6, query_key_rate=3.0)
    fixed = dataclasses.replace(settings, query_key_rate=0.0)
    early = train_lorsa(model, batches, settings, tmp_path / "learned", stop_after=1)
    late = train_lorsa(model, batches, settings, tmp_path / "learned")
    still = train_lorsa(model, batches, fixed, tmp_path / "fixed")
    assert (1 - explained(late) < 0.6 * (1 - explained(early))).all()
    assert explained(late).sum() > explained(still).sum() + 0.1
    for one, other, drawn in zip(early, late, still, strict=True):
        first, last = one.query_key, other.query_key
        assert (first.query - last.query).abs().max() > 1e-2
        assert (first.query_bias - last.query_bias).abs().max() > 1e-3
        assert torch.equal(drawn.query_key.query_bias, torch.zeros(2, 4))


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=20)
    model = tiny_model()
    whole = train_lorsa(model, batches, settings, tmp_path / "whole")
    train_lorsa(model, batches, settings, tmp_path / "parts", stop_after=13)
    parts = train_lorsa(model, batches, settings, tmp_path / "parts")
    for one, other in zip(whole, parts, strict=True):
        for name in ("read", "write", "read_bias", "write_bias"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        for name in ("query", "key", "query_bias", "key_bias"):
            found = getattr(one.query_key, name)
            assert torch.equal(found, getattr(other.query_key, name)), name
            assert not found.requires_grad
    with pytest.raises(ValueError, match=r"other settings \(repeats differ\)"):
        train_lorsa(model, batches, dataclasses.replace(settings, repeats=1), tmp_path / "parts")


def test_folding_keeps_the_function_and_padding_changes_nothing() -> None:
    stack, parts = first_step(), sample()
    with torch.no_grad():
        for weight in stack.parameters():
            weight += 0.1 * torch.randn_like(weight)
        active = keep_largest(stack.pre_activation(stack.heard(parts)), 4)
        expected = (stack.decode(active) + stack.write_bias[:, None]) / stack.output_unit[
            :, None, None
        ]
    for index, fields in enumerate(stack.fold(4)):
        layer = Lorsa(**fields)
        found = torch.cat([layer.forward(part.inputs[index])[part.counts] for part in parts])
        torch.testing.assert_close(found, expected[index], rtol=1e-3, atol=1e-4)


def test_dead_heads_are_restarted_from_what_their_pattern_brings() -> None:
    parts = sample()
    stack = first_step()
    optimizer = make_optimizer(stack, SETTINGS)
    one_step(stack, optimizer, parts, settings=SETTINGS, step=0)
    stack.silent[1, 30] = SETTINGS.dead_after  # of the last group, that of query-key head 3
    heard, weight = stack.heard(parts).detach(), tokens_of(parts).weight
    left_over = torch.zeros(2, len(weight), 8)
    left_over[:, 17, 2] = 4.0
    kept, most = (torch.full(left_over.shape[:2], size) for size in (7.0, 9.0))
    given = Given(heard, left_over, kept, most, weight)
    settings = dataclasses.replace(SETTINGS, gentle_restarts=False)
    restart_dead(stack, optimizer, given, settings=settings, step=0)
    for group, same in ((3, True), (0, False)):
        there = heard[1, group, 17] - heard[1, group].mean(0)
        cosine = torch.cosine_similarity(stack.read[1, 30], there, dim=0).item()
        assert (cosine > 0.999) == same
    assert stack.pre_activation(heard)[1, 17, 30].item() == pytest.approx(7.7, rel=1e-3)


def test_restarts_bring_dead_heads_to_life(tmp_path: Path) -> None:
    """Half of the heads are silenced by their bias; without restarts they stay so."""
    model, alive = tiny_model(), []
    for share in (0.8, 0.0):
        settings = dataclasses.replace(SETTINGS, restart_share=share)
        work = tmp_path / str(share)
        train_lorsa(model, batches, settings, work, stop_after=1)
        state = torch.load(work / "lorsa.pt", weights_only=True)
        state["weights"]["read_bias"][:, ::2] = -100.0
        torch.save(state, work / "lorsa.pt")
        metrics = measure_layers(model, train_lorsa(model, batches, settings, work), batches(-100))
        alive.append([1 - layer.dead for layer in metrics])
    assert min(alive[0]) > 0.7
    assert max(alive[1]) <= 0.5


def test_norms_rotation_and_shared_keys_are_kept() -> None:
    """Heads of a family with q/k norm, rotary embedding and grouped keys, each repeated."""
    turned = rotary(4)
    made = heads(tiny_model())
    for index, one in enumerate(made):
        query_key = QueryKey(
            query=torch.randn(2, 8, 4),
            key=torch.randn(1, 8, 4),
            query_bias=None,
            key_bias=torch.randn(1, 4),
            scale=0.5,
            rotary=turned,
            query_norm=HeadNorm(torch.rand(2, 4), 1e-6),
            key_norm=HeadNorm(torch.rand(1, 4), 1e-6),
        )
        made[index] = dataclasses.replace(one, query_key=query_key)
    parts = sample()
    stack = lorsa_stack(parts, made, dataclasses.replace(SETTINGS, repeats=4))
    for index, fields in enumerate(stack.fold(4)):
        found: QueryKey = fields["query_key"]
        assert (found.n_heads, found.key.shape[0]) == (8, 4)
        y = parts[0].inputs[index]
        own = made[index].query_key.pattern(y).repeat_interleave(4, dim=1)
        torch.testing.assert_close(found.pattern(y), own, atol=1e-5, rtol=1e-4)
    assert stack.patterns.query_bias is None


def test_heads_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match="32 value-output heads cannot share 10 query-key heads"):
        first_step(repeats=5)
