"""`model.run(prompt, errors=False)`: layers in place of what they replace, nothing left over."""

import copy
import dataclasses
from functools import lru_cache
from typing import Any

import jaxtyping
import pytest
import torch

from replacement.layers import AttentionSAE, FeatureLayer, Lorsa
from replacement.model import ReplacementModel
from replacement.run import Run
from tests.hooked import (
    Hooked,
    activations,
    arriving_at,
    hooked_pass,
    layers_of,
    lorsa_sides,
    pre_activations,
    rebuilt,
)
from tests.samples import (
    HEADS,
    LEARNED,
    REPLACED,
    RESIDUAL,
    SHAPES,
    Case,
    attentions_of,
    mlps_of,
    random_gpt2,
    random_ids,
    random_run,
)

EXACT = 1e-9
WITHOUT = [
    *REPLACED,
    *(dataclasses.replace(case, errors=False) for case in LEARNED),
    Case("two layers", "relu gated", skip=True, errors=False),
]
"""Replacement runs of every kind of layer."""


@lru_cache(maxsize=64)
def by_hooks(case: Case) -> Hooked:
    """The same through hooks on a model that the library never saw."""
    shape = SHAPES[case.shape]
    ids = torch.tensor(random_ids(shape, case.seed))
    layers = {} if case.errors else layers_of(case)
    return hooked_pass(random_gpt2(shape, case.seed), ids, layers, {})


@pytest.mark.parametrize("case", WITHOUT, ids=str)
def test_a_replacement_run_is_a_model_with_its_outputs_replaced(case: Case) -> None:
    """Logits and every residual are those of plain hooks, and not those of the model."""
    run, expected = random_run(case), by_hooks(case)
    torch.testing.assert_close(run.logits, expected.logits, rtol=0, atol=EXACT)
    for number, stream in expected.entering.items():
        torch.testing.assert_close(run.residuals[2 * number], stream, rtol=0, atol=EXACT)
    original = by_hooks(dataclasses.replace(case, errors=True)).logits
    assert float((run.logits - original).abs().max()) > 0.1


@pytest.mark.parametrize("case", WITHOUT, ids=str)
def test_a_replacement_run_leaves_nothing_over(case: Case) -> None:
    """Every error row is exactly 0, and the reconstruction is what was added to the stream."""
    run = random_run(case)
    assert not run.errors
    for number, layer in enumerate(run.layers):
        for part, stage in ((layer.attention, 2 * number), (layer.mlp, 2 * number + 1)):
            assert float(part.error.abs().max()) == 0
            after = run.residuals[stage] + part.output
            found = arriving_at(run, stage + 1)
            torch.testing.assert_close(found, after, rtol=0, atol=1e-12)
    for stage, part in run.streams.items():
        assert float(part.error.abs().max()) == 0
        assert torch.equal(run.residuals[stage], part.output)


def assert_read_as(run: Run, stage: int, layer: FeatureLayer, stream: torch.Tensor) -> None:
    """The features, the error and the pre-activations of a residual SAE on a stream."""
    part, expected = run.streams[stage], activations(layer, stream, stream)
    table = torch.zeros_like(expected)
    table[part.active.pos, part.active.index] = part.active.activation
    torch.testing.assert_close(table, expected, rtol=0, atol=EXACT)
    assert 0 < len(part.active) < table.numel()
    missed = stream - expected @ layer.write - layer.write_bias
    assert float(missed.abs().max()) > 0.1
    error = missed if run.errors else torch.zeros_like(missed)
    torch.testing.assert_close(part.error, error, rtol=0, atol=EXACT)
    name = "mid" if stage % 2 else "resid"
    pre = pre_activations(layer, stream, stream)
    for index in range(layer.n_features):
        found = run.feature(stage // 2, -1, index, sublayer=name)
        assert found.value == pytest.approx(float(pre[-1, index]), abs=EXACT)


@pytest.mark.parametrize("case", LEARNED, ids=str)
def test_with_errors_it_is_the_original_that_runs(case: Case) -> None:
    """Logits are the model's own, and errors are what each layer misses of what was written."""
    run, expected = random_run(case), by_hooks(case)
    assert run.errors
    torch.testing.assert_close(run.logits, expected.logits, rtol=0, atol=EXACT)
    layers = layers_of(case)
    for number, name in layers:
        recorded = run.layers[number]
        part = recorded.attention if name == "attn" else recorded.mlp
        missed = expected.wrote[number, name] - rebuilt(layers, (number, name), expected)
        torch.testing.assert_close(part.error, missed, rtol=0, atol=EXACT)
        assert float(missed.abs().max()) > 0.1


@pytest.mark.parametrize("case", [*LEARNED, *RESIDUAL, *WITHOUT], ids=str)
def test_patterns_and_activations_are_those_of_the_layer(case: Case) -> None:
    """By hand, from what the sublayer read in the run; and the same through `encode`."""
    run, seen = random_run(case), by_hooks(case)
    for (number, name), layer in layers_of(case).items():
        if name in ("resid", "mid"):
            assert_read_as(run, 2 * number + (name == "mid"), layer, seen.front[number, name])
            continue
        recorded, block = run.layers[number], run.weights.layers[number]
        y, wrote = seen.normed[number, name], seen.wrote[number, name]
        active = recorded.mlp.active if name == "mlp" else recorded.attention.active
        assert active is not None
        table = torch.zeros(len(run.tokens), layer.n_features, dtype=torch.float64)
        table[active.pos, active.index] = active.activation
        expected = activations(layer, y, wrote)
        torch.testing.assert_close(table, expected, rtol=0, atol=EXACT)
        assert 0 < len(active) < table.numel()
        if isinstance(layer, Lorsa):
            pattern = lorsa_sides(layer, y)[1]
            torch.testing.assert_close(recorded.attention.pattern, pattern, rtol=0, atol=EXACT)
            assert recorded.attention.mixed is None
        stored = block.mlp if name == "mlp" else block.attention
        assert stored is not None
        again = stored.encode(wrote if isinstance(layer, AttentionSAE) else y)
        assert torch.equal(again.index, active.index) and torch.equal(again.offsets, active.offsets)
        torch.testing.assert_close(again.activation, active.activation, rtol=0, atol=EXACT)


@pytest.mark.parametrize("case", [*LEARNED, *REPLACED], ids=str)
def test_features_of_attention_are_worth_their_pre_activation(case: Case) -> None:
    """`run.feature(sublayer="attn")`, active or not, by hand."""
    run, seen = random_run(case), by_hooks(case)
    for (number, name), layer in layers_of(case).items():
        if name == "attn":
            pre = pre_activations(layer, seen.normed[number, name], seen.wrote[number, name])
            for pos, index in ((0, 0), (-1, 7), (len(run.tokens) // 2, layer.n_features - 1)):
                found = run.feature(number, pos, index, sublayer="attn")
                assert found.value == pytest.approx(float(pre[pos, index]), abs=EXACT)


def test_heads_and_neurons_need_no_replacing() -> None:
    """Where the model's own parts are the nodes both runs are the same, bit for bit."""
    model = random_run(HEADS[0]).model
    one, other = model.run([1, 2, 3]), model.run([1, 2, 3], errors=False)
    assert torch.equal(one.logits, other.logits)
    assert model.substitutes() == {}
    assert not other.errors


def test_one_model_runs_both_ways_and_is_left_as_it_was() -> None:
    """In any order, with the weights untouched and no hook left behind."""
    case = REPLACED[0]
    hf_model = random_gpt2(SHAPES[case.shape], case.seed, attention="sdpa").train()
    weights = copy.deepcopy(hf_model.state_dict())
    model = ReplacementModel(hf_model, mlps=mlps_of(case), attentions=attentions_of(case))
    ids = random_ids(SHAPES[case.shape], case.seed)
    runs: list[Run] = [model.run(ids, errors=errors) for errors in (False, True, False)]
    assert torch.equal(runs[0].logits, runs[2].logits)
    torch.testing.assert_close(runs[0].logits, by_hooks(case).logits, rtol=0, atol=EXACT)
    original = by_hooks(dataclasses.replace(case, errors=True))
    torch.testing.assert_close(runs[1].logits, original.logits, rtol=0, atol=EXACT)
    assert hf_model.training and hf_model.config._attn_implementation == "sdpa"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in hf_model.state_dict().items())
    assert not any(module._forward_hooks for module in hf_model.modules())


def test_later_tokens_change_nothing_before_them() -> None:
    """A replacement run is causal: a longer prompt has the same logits at the same positions."""
    model = random_run(REPLACED[0]).model
    short, long = model.run([1, 2, 3], errors=False), model.run([1, 2, 3, 4, 5], errors=False)
    torch.testing.assert_close(long.logits[:3], short.logits, rtol=0, atol=EXACT)


@pytest.mark.parametrize("errors", [None, 0, 1, "no", torch.tensor(False)])
def test_errors_is_true_or_false(errors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users see it, without the checks of annotations that tests run under."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"model\.run\(errors=.*True \(the default\) or False"):
        random_run(HEADS[0]).model.run([1, 2], errors=errors)


def test_a_run_says_which_kind_it_is() -> None:
    assert repr(random_run(REPLACED[0])).startswith("Run(replacement run, 5 tokens, ")
    assert repr(random_run(HEADS[0])).startswith("Run(5 tokens, ")
