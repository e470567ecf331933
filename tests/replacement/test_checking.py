"""The check at load: every family passes, and a row that is wrong somewhere does not."""

import copy
import dataclasses
from typing import Any

import pytest
import torch

from circuits import load
from replacement.checking import check_rebuilt
from replacement.families.family import Family
from replacement.model import ReplacementModel
from tests.families import CONFIGS, tiny


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_family_passes(name: str, dtype: torch.dtype) -> None:
    check_rebuilt(ReplacementModel(tiny(name, dtype)))


def changed(model: ReplacementModel, **parts: Any) -> ReplacementModel:
    """The model as a wrong row would have read its last layer."""
    other = copy.copy(model)
    block = dataclasses.replace(model.weights.layers[-1], **parts)
    layers = [*model.weights.layers[:-1], block]
    other.weights = dataclasses.replace(model.weights, layers=layers)
    return other


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("scale", "patterns of layer 1"),
        ("rotary", "patterns of layer 1"),
        ("value", "values of layer 1"),
        ("output", "heads of layer 1"),
        ("norm", "patterns of layer 1"),
        ("neurons", "neurons of layer 1"),
    ],
)
def test_a_wrong_row_is_noticed(part: str, message: str) -> None:
    model = ReplacementModel(tiny("Llama, grouped keys"))
    block = model.weights.layers[-1]
    looks = block.heads.query_key
    wrong: dict[str, Any] = {
        "scale": {"heads": _with_query_key(block.heads, scale=1.0)},
        "rotary": {"heads": _with_query_key(block.heads, rotary=None)},
        "value": {"heads": dataclasses.replace(block.heads, value=block.heads.value.flip(1))},
        "output": {"heads": dataclasses.replace(block.heads, output=block.heads.output.flip(1))},
        "norm": {"attention_norm": dataclasses.replace(block.attention_norm, centred=True)},
        "neurons": {"mlp": dataclasses.replace(block.mlp, gate_read=block.mlp.read)},
    }
    assert looks.rotary is not None
    with pytest.raises(ValueError, match=rf"the {message}, rebuilt .* are off by .*LlamaForCausal"):
        check_rebuilt(changed(model, **wrong[part]))


def _with_query_key(heads: Any, **parts: Any) -> Any:
    return dataclasses.replace(heads, query_key=dataclasses.replace(heads.query_key, **parts))


def test_load_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that takes a parallel block for a sequential one is refused at the door."""
    from replacement import families

    row: Family = families.FAMILIES["GPTJForCausalLM"]
    wrong = dataclasses.replace(row, parallel=lambda _config: False)
    monkeypatch.setitem(families.FAMILIES, "GPTJForCausalLM", wrong)
    with pytest.raises(ValueError, match=r"neurons of layer 0.*GPTJForCausalLM.*architectures\.md"):
        load(tiny("GPT-J"))


def test_sublayers_must_add_up_to_the_stream() -> None:
    """A hook that doubles what an MLP adds is nothing the held map knows of."""
    model = tiny("Llama, grouped keys")
    check_rebuilt(ReplacementModel(model))
    hook = model.model.layers[0].register_forward_hook(lambda _module, _given, out: 2 * out)
    try:
        with pytest.raises(ValueError, match=r"residual stream after layer 0, rebuilt .* are off"):
            check_rebuilt(ReplacementModel(model))
    finally:
        hook.remove()
