"""Every model family: the same logits, the identities, and autograd on a frozen copy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.direct_effects import direct_effects
from attribution.score_pairs import score_pairs
from attribution.sweep import sweep
from circuits import load, trace
from replacement.families import FAMILIES, family_of
from replacement.held import HeldHalves
from replacement.layers import (
    CrossLayerTranscoder,
    HeadNorm,
    Lorsa,
    QueryKey,
    ResidualSAE,
    TopK,
    Transcoder,
    rotary,
)
from replacement.model import ReplacementModel
from replacement.precision import KeepDouble
from replacement.run import Run
from replacement.target import Target
from tests.families import CONFIGS, IDS, tiny
from tests.frozen_family import attributions
from tests.random_layers import random_sae

EXACT = 1e-9
each_family = pytest.mark.parametrize("name", CONFIGS)


def layers_for(model: Any) -> tuple[list[Any], list[Any]]:
    """Return random transcoders (one with a skip) and Lorsa (one layer left to the heads)."""
    family = family_of(model)
    n_layers = len(model.get_submodule(family.layers))
    d_model = model.get_submodule(family.unembedding).weight.shape[1]
    source = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Tensor:
        return 0.5 * torch.randn(shape, generator=source, dtype=torch.float64)

    mlps = [
        Transcoder(
            noise(20, d_model),
            noise(20, d_model),
            noise(20),
            noise(d_model),
            TopK(5),
            skip=noise(d_model, d_model) if number == 0 else None,
        )
        for number in range(n_layers)
    ]
    turned = rotary(4, dtype=torch.float64)
    lorsa = [
        Lorsa(
            QueryKey(
                noise(4, d_model, 4),
                noise(2, d_model, 4),
                noise(4, 4),
                noise(2, 4),
                0.5,
                turned,
                HeadNorm(1 + noise(4, 4), 1e-6),
                HeadNorm(1 + noise(2, 4), 1e-6),
                window=4,
            ),
            noise(20, d_model),
            noise(20, d_model),
            noise(20),
            noise(d_model),
            TopK(5),
        )
        for _ in range(n_layers)
    ]
    return mlps, [None, *lorsa[1:]]


def run_of(name: str, learned: bool | str, errors: bool = True) -> Run:
    model = tiny(name)
    mlps, attentions = layers_for(model) if learned else (None, None)
    if learned == "across":
        mlps = across(mlps)
    return ReplacementModel(model, None, mlps, attentions).run(IDS, errors=errors)


def across(mlps: Any) -> list[CrossLayerTranscoder]:
    """Return transcoders whose features write to every later MLP as well."""
    return [
        CrossLayerTranscoder(
            one.read,
            torch.cat([0.7**step * later.write for step, later in enumerate(mlps[number:])], dim=1),
            one.read_bias,
            one.write_bias,
            one.activation,
            one.skip,
        )
        for number, one in enumerate(mlps)
    ]


def test_every_family_has_two_shapes() -> None:
    classes = [type(tiny(name)).__name__ for name in CONFIGS]
    assert set(classes) == set(FAMILIES)
    assert all(classes.count(one) == 2 for one in FAMILIES)


@each_family
def test_logits_are_the_models(name: str) -> None:
    """To 1e-9 with float64 kept, to 1e-5 against the untouched class; the model is left alone."""
    model: Any = tiny(name)
    run = run_of(name, learned=False)
    with torch.no_grad():
        untouched = model(torch.tensor([IDS])).logits[0]
        with KeepDouble():
            kept = model(torch.tensor([IDS])).logits[0]
    assert (run.logits - kept).abs().max() <= EXACT * kept.abs().max()
    assert (run.logits - untouched).abs().max() <= 1e-5 * kept.abs().max()


@each_family
def test_patterns_are_rebuilt_from_queries_and_keys(name: str) -> None:
    """Rotary, q/k norm, windows, grouped keys, scales and soft-caps are those of the model."""
    run = run_of(name, learned=False)
    for number, block in enumerate(run.weights.layers):
        recorded = run.layers[number].attention
        y = block.attention_norm.apply(run.residuals[2 * number], recorded.scale)
        rebuilt = block.heads.query_key.pattern(y)
        assert (rebuilt - recorded.pattern).abs().max() <= EXACT
        assert (recorded.pattern.sum(-1) - 1).abs().max() <= EXACT


@each_family
@pytest.mark.parametrize(
    ("learned", "errors"),
    [(False, True), (True, True), (True, False), ("across", True)],
    ids=["own parts", "layers", "replacement run", "across layers"],
)
def test_identities(name: str, learned: bool | str, errors: bool) -> None:
    """1 and 2 for a logit, a feature and a score, gated and not; held knock-outs; 3; 5."""
    assert_identities(name, run_of(name, learned, errors))


@pytest.mark.parametrize("errors", [True, False])
@pytest.mark.parametrize(
    "name",
    ["GPT-NeoX", "GPT-NeoX, not parallel", "Gemma-2, grouped keys", "Qwen3, grouped keys"],
)
def test_identities_where_the_stream_is_read_as_features(name: str, errors: bool) -> None:
    """At every place there is: a parallel block has none between attention and MLP."""
    model: Any = tiny(name)
    mlps, attentions = layers_for(model)
    streams = residuals_for(model)
    run = ReplacementModel(model, None, mlps, attentions, streams).run(IDS, errors=errors)
    assert {layer.name for layer in run.sublayers if layer.replaces} == (
        {"resid"} if name == "GPT-NeoX" else {"resid", "mid"}
    )
    assert_identities(name, run)


def residuals_for(model: Any) -> list[ResidualSAE | None]:
    """Return random SAEs of the residual stream at every third stage there is."""
    family = family_of(model)
    d_model = model.get_submodule(family.unembedding).weight.shape[1]
    n_stages = 2 * len(model.get_submodule(family.layers)) + 1
    places = range(0, n_stages, 2 if family.parallel(model.config) else 3)
    made = {place: random_sae("relu", d_model, seed=place, make=ResidualSAE) for place in places}
    return [made.get(stage) for stage in range(n_stages)]


def assert_identities(name: str, run: Run) -> None:
    last = run.weights.n_layers - 1
    targets = (
        run.logit(3) - run.logit(5),
        run.logit(2).centered(),
        run.feature(last, -1, 3),
        run.attention_score(last, 1 % run.weights.query_key(last).n_heads, -1, len(IDS) - 2),
    )
    for target, threshold in zip(targets, (0.0, 0.05, 0.02, 0.0), strict=True):
        circuit = trace(target, threshold, progress=False)
        assert circuit.meta["checks"]["closure"] <= EXACT
        assert circuit.meta["checks"]["conservation"] <= EXACT
    assert trace(targets[0], 0.05, progress=False).test(progress=False).deviation <= EXACT
    if any(layer.replaces or isinstance(layer, HeldHalves) for layer in run.sublayers):
        with pytest.raises(ValueError, match=r"direct_effects: .*edges=\"flow\""):
            direct_effects(run, list(targets[:3]))
    else:
        assert_direct_effects(run, targets)
    pairs = score_pairs(run, last, 0, len(IDS) - 1, len(IDS) - 1)
    assert abs(pairs.matrix.sum() - pairs.value) <= EXACT * abs(pairs.matrix).sum()
    if run.errors:
        plain = run_of(name, learned=False)
        assert torch.equal(run.logits, plain.logits)
    else:
        assert not torch.allclose(run.logits, run_of(name, learned=False).logits)


def assert_direct_effects(run: Run, targets: Sequence[Target]) -> None:
    """Rows sum to their targets, splits by head to the effects; direct edges are conserved."""
    split = direct_effects(run, list(targets[:3]), via="head")
    size = abs(split.matrix()).sum(axis=1)
    values = np.array([target.value for target in targets[:3]])
    assert (abs(split.sums.numpy() - values) <= EXACT * size).all()
    for block in split.blocks:
        assert (block.split.sum(0) - block.values).abs().max() <= EXACT * size.max()
    direct = trace(targets[0], 0.02, edges="direct", progress=False)
    assert max(direct.meta["checks"].values()) <= EXACT
    assert direct.test(progress=False).deviation <= EXACT


@each_family
def test_attribution_is_value_times_gradient_of_a_frozen_copy(name: str) -> None:
    """Heads, neurons and what enters layer 0, of a difference of logits before any soft-cap."""
    assert_attributions(name, run_of(name, learned=False), half=False)


GATED = ("Llama 3", "Llama, grouped keys", "Gemma-2, grouped keys", "Qwen2, grouped keys")


@pytest.mark.parametrize("name", GATED)
def test_halved_products_are_half_the_gradient_of_each_branch(name: str) -> None:
    """`split="half"`: the same neurons, other edges; exact as before."""
    model = load(tiny(name), split="half")
    assert model.read_as == {"mlp": "neurons", "attention": "heads", "split": "half"}
    run = model.run(IDS)
    assert_attributions(name, run, half=True)
    assert_identities(name, run)
    plain = run_of(name, learned=False)
    whole = sweep(plain.logit(3), plain.sublayers)
    halves = sweep(run.logit(3), run.sublayers)
    off = (whole.leaves.token - halves.leaves.token).abs().max()
    assert off > 1e-3 * whole.leaves.magnitude(), "control: the default reads one branch only"


def assert_attributions(name: str, run: Run, *, half: bool) -> None:
    """Assert that a sweep is value times gradient of the frozen copy."""
    cap = run.weights.logit_soft_cap

    def difference(logits: Tensor) -> Tensor:
        raw = logits if cap is None else cap * torch.atanh(logits / cap)
        return raw[3] - raw[5]

    n_heads = run.weights.layers[0].heads.n_heads
    expected = attributions(tiny(name), family_of(tiny(name)), IDS, difference, n_heads, half=half)
    target = run.logit(3) - run.logit(5)
    assert target.value == pytest.approx(expected.value, rel=1e-9)
    swept = sweep(target, run.sublayers)
    size = swept.leaves.magnitude()
    entering = swept.leaves.token + swept.leaves.position
    assert (entering - expected.embedding).abs().max() <= EXACT * size
    for layer in range(run.weights.n_layers):
        heads = swept.attribution[2 * layer].view(len(IDS), -1)
        assert (heads - expected.heads[layer]).abs().max() <= EXACT * size
        active = run.layers[layer].mlp.active
        neurons = torch.zeros_like(expected.neurons[layer])
        neurons[active.pos, active.index] = swept.attribution[2 * layer + 1]
        assert (neurons - expected.neurons[layer]).abs().max() <= EXACT * size
