"""Loading, running and tracing leave a model in memory as it was, and explain its own logits."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuits import load, trace
from replacement.layers import Transcoder
from replacement.model import ReplacementModel
from tests.random_layers import random_transcoder
from tests.samples import (
    SHAPES,
    TARGETS,
    random_gpt2,
    random_ids,
)


def tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in a value made of dataclasses, lists and dicts, the model left out."""
    if id(value) in seen or isinstance(value, ReplacementModel):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part, seen)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part, seen)
    elif dataclasses.is_dataclass(value):
        yield from tensors(vars(value), seen)


def learning_transcoders() -> list[Transcoder]:
    """Layers as training holds them: every tensor requires a gradient."""
    layers = [random_transcoder("jumprelu", skip=True, seed=number) for number in range(2)]
    for tensor in tensors(layers, set()):
        tensor.requires_grad_()
    return layers


@pytest.mark.parametrize("mlp", ["neurons", "transcoders"])
def test_nothing_carries_an_autograd_graph(mlp: str) -> None:
    model = random_gpt2().requires_grad_()
    layers = None if mlp == "neurons" else learning_transcoders()
    run = load(model, mlp=layers).run(random_ids(SHAPES["two layers"]))
    direction = nn.Parameter(torch.ones(8, dtype=torch.float64))
    for target in (TARGETS["combination"](run), run.direction(direction, 1)):
        found = list(tensors(target, set()))
        assert len(found) > 20
        assert not any(tensor.requires_grad for tensor in found)
        trace(target, progress=False).test(progress=False)
    assert all(parameter.grad is None for parameter in model.parameters())


def state(model: nn.Module) -> dict[str, Any]:
    """All that a caller could find changed."""
    config: Any = model.config
    parameters = dict(model.named_parameters())
    return {
        "weights": {name: weight.detach().clone() for name, weight in parameters.items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: weight.requires_grad for name, weight in parameters.items()},
        "where": {name: weight.data_ptr() for name, weight in parameters.items()},
        "dtype": {weight.dtype for weight in parameters.values()},
        "config": copy.deepcopy(config.to_dict()),
        "attention": config._attn_implementation,
        "hooks": sum(len(module._forward_hooks) for module in model.modules()),
        "forward": {name: type(module).forward for name, module in model.named_modules()},
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, weight in before.pop("weights").items():
        assert torch.equal(weight, after["weights"][name]), name
    after.pop("weights")
    assert before == after


@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_in_memory_is_left_as_it_was(attention: str, dtype: str | None) -> None:
    model = random_gpt2(dtype=torch.float32, attention=attention)
    model.train()
    model.transformer.h[0].eval()
    model.transformer.wte.weight.requires_grad_(False)
    before = state(model)
    loaded = load(model, dtype=dtype)
    circuit = trace(loaded.run([1, 2, 3]).logit(4), 0.05, progress=False)
    circuit.test(progress=False)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        loaded.run([99])
    assert_same_state(before, state(model))


def test_a_run_that_breaks_leaves_the_model_as_it_was() -> None:
    model = random_gpt2(attention="sdpa")
    model.train()
    loaded = load(model)
    before, expected = state(model), loaded.run([1, 2, 3]).logits

    def breaks(*_: object) -> None:
        raise ArithmeticError("in the middle of a pass")

    hook = model.transformer.ln_f.register_forward_pre_hook(breaks)
    with pytest.raises(Exception, match="in the middle of a pass"):
        loaded.run([1, 2, 3])
    hook.remove()
    assert_same_state(before, state(model))
    assert torch.equal(loaded.run([1, 2, 3]).logits, expected)


def test_one_model_can_be_loaded_twice_and_copied() -> None:
    model = random_gpt2(dtype=torch.float32)
    runs = [load(model, dtype=dtype).run([1, 2, 3]) for dtype in (None, "float64", None)]
    assert torch.equal(runs[0].logits, runs[2].logits)
    assert runs[1].logits.dtype == torch.float64
    torch.testing.assert_close(runs[1].logits.float(), runs[0].logits, atol=1e-5, rtol=1e-5)
    assert model(torch.tensor([[1, 2, 3]])).logits.requires_grad
    again = copy.deepcopy(model)
    assert torch.equal(load(again).run([1, 2, 3]).logits, runs[0].logits)


def test_dropout_of_a_model_in_training_changes_nothing() -> None:
    model = random_gpt2()
    expected = load(model).run([1, 2, 3]).logits
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert torch.equal(load(model.train()).run([1, 2, 3]).logits, expected)


def test_the_logit_explained_is_the_one_hugging_face_computes() -> None:
    model = random_gpt2()
    ids = random_ids(SHAPES["two layers"])
    logits = model(torch.tensor([ids])).logits[0, -1].detach()
    run = load(model).run(ids)
    assert run.logit(3).value == pytest.approx(float(logits[3]), rel=1e-12)
    assert run.logit(3).centered().value == pytest.approx(float(logits[3] - logits.mean()))
    assert (2 * run.logit(3) - run.logit(1) / 4).value == pytest.approx(
        float(2 * logits[3] - logits[1] / 4)
    )


def test_a_row_of_the_table_can_be_explained() -> None:
    """NumPy's whole numbers are whole numbers: the natural second step after a trace."""
    run = load(random_gpt2()).run(random_ids(SHAPES["two layers"]))
    circuit = trace(run.logit(run.logits[-1].argmax()))
    nodes = circuit.nodes
    row = nodes[nodes["kind"] == "neuron"].iloc[0]
    feature = run.feature(row["layer"], row["pos"], row["index"])
    assert feature.value == run.feature(int(row["layer"]), int(row["pos"]), int(row["index"])).value
    assert run.logit(nodes.iloc[0]["index"]).terms[0].index == int(nodes.iloc[0]["index"])
