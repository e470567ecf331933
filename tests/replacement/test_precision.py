"""Weights kept in bfloat16: the numbers of the same weights in float32, at half the memory."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from circuits import load, trace
from circuits.loading_plan import loading_plan
from replacement import precision
from replacement.checkpoints import load_transcoders, save_lorsa, save_transcoders
from replacement.layers import FeatureLayer, TopK
from replacement.layers.active import active_from_gates
from replacement.model import ReplacementModel
from replacement.precision import Narrow, kept_in, kept_type
from tests.families import IDS, tiny
from tests.random_layers import LORSAS, random_lorsa, random_transcoder

FAMILIES = ("GPT-2", "Llama, grouped keys", "Gemma-2, grouped keys")
SAME = 1e-6
HALF = torch.bfloat16


def half_folder(folder: Path, family: str, *, layers: bool) -> Callable[[str], ReplacementModel]:
    """Write a model, and layers for all its sublayers, in bfloat16; return how to load them."""
    half: Any = copy.deepcopy(tiny(family, torch.float32)).to(HALF)
    half.save_pretrained(folder / "model")
    if not layers:
        return lambda dtype: load(folder / "model", dtype=dtype)
    kinds = ("lorsa rotary", "lorsa window")
    sets = [
        [random_transcoder(kind, skip=True, seed=i) for i, kind in enumerate(("jumprelu", "topk"))],
        [random_lorsa(LORSAS[kind], seed=i) for i, kind in enumerate(kinds)],
    ]
    save_transcoders(sets[0], folder / "mlp", dtype=HALF)
    save_lorsa(sets[1], folder / "attention", dtype=HALF)
    return lambda dtype: load(
        folder / "model", mlp=folder / "mlp", attention=folder / "attention", dtype=dtype
    )


def assert_same(found: object, true: object, scale: float = 0.0) -> None:
    """Equal to 1e-6 of the largest, or of `scale` where that is more."""
    one, two = np.asarray(found, dtype=float), np.asarray(true, dtype=float)
    assert one.shape == two.shape
    off, most = np.abs(one - two).max(initial=0.0), np.abs(two).max(initial=scale)
    assert off <= SAME * most


@pytest.mark.parametrize("layers", [False, True], ids=["own parts", "transcoders and Lorsa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_weights_give_the_numbers_of_the_same_weights_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, layers: bool
) -> None:
    monkeypatch.setattr(precision, "CHUNK", 40)  # so that products are made in parts
    loaded = half_folder(tmp_path, family, layers=layers)
    found, true = loaded("bfloat16"), loaded("float32")
    circuits = []
    for model in (found, true):
        assert model.dtype == torch.float32
        run = model.run(IDS)
        target = run.logit(3) - 2 * run.logit(4).centered() + run.attention_score(1, 1, 7, 6)
        circuits.append((run, trace(target, threshold=0.001, progress=False)))
    (run, circuit), (true_run, true_circuit) = circuits

    assert_same(run.logits, true_run.logits)
    for one, two in zip(run.layers, true_run.layers, strict=True):
        for part, true_part in ((one.attention, two.attention), (one.mlp, two.mlp)):
            assert_same(part.output, true_part.output)
            largest = float(true_part.output.abs().max())
            assert_same(part.error, true_part.error, largest)
    keys = ["kind", "layer", "sublayer", "pos", "index"]
    assert circuit.nodes[keys].equals(true_circuit.nodes[keys])
    scale = float(np.abs(true_circuit.nodes["attribution"].to_numpy()).max())
    for name in ("attribution", "activation", "ungated", "in_bias", "in_error", "in_pruned"):
        assert_same(circuit.nodes[name], true_circuit.nodes[name], scale)
    assert circuit.edges[["source", "target"]].equals(true_circuit.edges[["source", "target"]])
    assert_same(circuit.edges["flow"], true_circuit.edges["flow"], scale)
    tested, true_tested = circuit.test().table, true_circuit.test().table
    for name in ("predicted", "held", "free"):
        assert_same(tested[name], true_tested[name])
    replaced, true_replaced = (model.run(IDS, errors=False).logits for model in (found, true))
    assert_same(replaced, true_replaced)
    assert (circuit.meta["dtype"], circuit.meta["weights"]) == ("float32", "bfloat16")
    assert (true_circuit.meta["dtype"], true_circuit.meta["weights"]) == ("float32", "float32")
    assert "bfloat16" in repr(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_is_kept_in_bfloat16(tmp_path: Path, family: str) -> None:
    model = half_folder(tmp_path, family, layers=True)("bfloat16")

    kept = {name: weight for name, weight in model.hf_model.named_parameters() if weight.dim() > 1}
    assert len(kept) > 8
    for layer in model.weights.layers:
        assert isinstance(layer.mlp, FeatureLayer) and layer.attention is not None
        skip = layer.mlp.skip
        assert skip is not None
        heads = layer.heads
        for one in (layer.mlp, layer.attention):
            kept |= {f"{one.kind} read": one.read, f"{one.kind} write": one.write, "skip": skip}
        kept |= {"query": heads.query_key.query, "value": heads.value, "output": heads.output}
        assert {name: kept_type(weight) for name, weight in kept.items()} == dict.fromkeys(
            kept, HALF
        )


def test_a_model_in_memory_is_shared_and_left_alone() -> None:
    half = copy.deepcopy(tiny("GPT-2", torch.float32)).to(HALF)
    before = {name: weight.data_ptr() for name, weight in half.named_parameters()}

    model = load(half, dtype="bfloat16")
    model.run(IDS)

    assert {name: weight.data_ptr() for name, weight in half.named_parameters()} == before
    assert all(weight.dtype == HALF and weight.requires_grad for weight in half.parameters())
    for name, weight in model.hf_model.named_parameters():
        if weight.dim() > 1:
            assert isinstance(weight, Narrow)
            assert weight.held.data_ptr() == before[name]
    tied = dict(model.hf_model.named_parameters(remove_duplicate=False))
    assert tied["lm_head.weight"] is tied["transformer.wte.weight"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float32_model_is_rounded_alike_in_memory_and_from_a_folder(
    tmp_path: Path, family: str
) -> None:
    """Its weights, biases and gains; not the frequencies of its rotary embedding."""
    whole: Any = copy.deepcopy(tiny(family, torch.float32))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in whole.parameters():
            if weight.dim() < 2:  # many are round numbers as they are made
                weight.add_(0.1 * torch.randn(weight.shape, generator=source))
    whole.save_pretrained(tmp_path)
    rounded = copy.deepcopy(whole)
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_(weight.to(HALF))
    true = load(rounded).run(IDS).logits

    for found in (load(whole, dtype="bfloat16"), load(tmp_path, dtype="bfloat16")):
        assert_same(found.run(IDS).logits, true)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_kept_in_bfloat16_can_be_copied_and_loaded_again(
    tmp_path: Path, family: str
) -> None:
    model = load(tiny(family, torch.float32), dtype="bfloat16")
    true = model.run(IDS).logits

    assert load(model.hf_model).hf_model is model.hf_model
    copied = copy.deepcopy(model.hf_model)
    held = [vars(one)["held"].data_ptr() for one in copied.parameters() if isinstance(one, Narrow)]
    assert len(held) > 8
    assert not {
        vars(one)["held"].data_ptr()
        for one in model.hf_model.parameters()
        if isinstance(one, Narrow)
    }.intersection(held)
    tied = dict(copied.named_parameters(remove_duplicate=False)).values()
    before = dict(model.hf_model.named_parameters(remove_duplicate=False)).values()
    assert len(set(map(id, tied))) == len(set(map(id, before)))
    assert_same(load(copied).run(IDS).logits, true)
    for dtype in ("float32", "float64"):
        again = load(model.hf_model, dtype=dtype)
        assert str(again.weights_dtype) == f"torch.{dtype}"
        assert loading_plan(model.hf_model, dtype=dtype).model_bytes == sum(
            weight.nbytes for weight in again.hf_model.parameters()
        )
        assert not any(isinstance(weight, Narrow) for weight in again.hf_model.parameters())
        assert_same(again.run(IDS).logits, true)
    saved: Any = load(model.hf_model, dtype="float32").hf_model
    saved.save_pretrained(tmp_path)
    assert_same(load(tmp_path).run(IDS).logits, true)


def test_layers_in_memory_may_be_bfloat16() -> None:
    half = [random_transcoder("relu", seed=i, dtype=HALF) for i in range(2)]
    model = load(tiny("GPT-2", torch.float32), mlp=half)

    run = model.run(IDS)

    assert run.layers[0].mlp.output.dtype == torch.float32
    assert kept_type(model.weights.layers[0].mlp.write) == HALF


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "right": lambda weight, x: x[:, :5] @ weight,
    "right, turned": lambda weight, x: x @ weight.T,
    "left": lambda weight, x: weight @ x.T,
    "left of a vector": lambda weight, x: weight @ x[0],
    "with a bias for each": lambda weight, x: torch.addmm(x[0], x[:, :5], weight),
    "with one bias": lambda weight, x: torch.addmm(x[0, :1], x[:, :5], weight),
    "with a scaled bias": lambda weight, x: torch.addmm(x, x[:, :5], weight, beta=2.0),
    "linear": lambda weight, x: nn.functional.linear(x[None], weight),
    "of narrow and narrow": lambda weight, _: weight @ weight.T,
    "batched": lambda weight, x: x[None] @ weight.unflatten(1, (3, 3)).movedim(1, 0).mT,
    "sum": lambda weight, _: weight.sum(0),
    "rows": lambda weight, _: weight[torch.tensor([3, 1])],
    "one row": lambda weight, _: 1 * weight[3],
    "embedding": lambda weight, _: nn.functional.embedding(torch.tensor([[3, 1]]), weight),
    "norm": lambda weight, _: weight.norm(dim=-1),
    "added": lambda weight, _: weight + 1,
    "copied": lambda weight, _: torch.zeros(5, 9).copy_(weight),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_narrow_weight_acts_as_the_float32_tensor(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(precision, "CHUNK", 12)
    source = torch.Generator().manual_seed(0)
    half = torch.randn(5, 9, generator=source).to(HALF)
    x = torch.randn(4, 9, generator=source)
    narrow = kept_in(half, HALF)
    if name == "batched":
        x = x[:, :3]

    found, true = PRODUCTS[name](narrow, x), PRODUCTS[name](half.float(), x)

    assert narrow.dtype == torch.float32
    assert type(found) is Tensor
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, true, rtol=1e-6, atol=1e-6)


def test_products_of_active_features_are_those_of_the_float32_rows() -> None:
    source = torch.Generator().manual_seed(0)
    half = torch.randn(50, 6, generator=source).to(HALF)
    pre, vectors = torch.randn(3, 50, generator=source), torch.randn(3, 6, generator=source)
    active = active_from_gates(pre, TopK(4).gate(pre), dense=False)

    dots = active.dots(kept_in(half, HALF), vectors)
    written = active.combine(kept_in(half, HALF), active.activation)

    torch.testing.assert_close(dots, active.dots(half.float(), vectors))
    torch.testing.assert_close(written, active.combine(half.float(), active.activation))


def test_small_parts_stay_exact(tmp_path: Path) -> None:
    """Biases and thresholds stored in float32 are not rounded; matrices are."""
    made = random_transcoder("jumprelu", dtype=torch.float32)
    save_transcoders([made], tmp_path)

    (loaded,) = load_transcoders(tmp_path, dtype=HALF)

    assert loaded is not None
    assert loaded.read_bias.equal(made.read_bias)
    assert vars(loaded.activation)["threshold"].equal(vars(made.activation)["threshold"])
    assert not (1 * loaded.read).equal(made.read)
    assert (1 * loaded.read).equal(made.read.to(HALF).float())


def test_weights_that_are_not_finite_are_still_found() -> None:
    half = copy.deepcopy(tiny("GPT-2", torch.float32)).to(HALF)
    with torch.no_grad():
        half.get_parameter("transformer.h.1.mlp.c_fc.weight")[2, 3] = torch.nan

    with pytest.raises(ValueError, match=r"c_fc\.weight holds 1 NaN"):
        load(half, dtype="bfloat16")
