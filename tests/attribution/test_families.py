"""Every model family: the same logits, the identities, and autograd on a frozen copy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.direct_effects import direct_effects
from attribution.score_pairs import score_pairs
from attribution.sweep import sweep
from circuits import trace
from replacement.families import FAMILIES, family_of
from replacement.layers import HeadNorm, Lorsa, QueryKey, TopK, Transcoder, rotary
from replacement.model import ReplacementModel
from replacement.precision import KeepDouble
from replacement.run import Run
from tests.families import CONFIGS, IDS, tiny
from tests.frozen_family import attributions

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


def run_of(name: str, learned: bool, errors: bool = True) -> Run:
    model = tiny(name)
    mlps, attentions = layers_for(model) if learned else (None, None)
    return ReplacementModel(model, None, mlps, attentions).run(IDS, errors=errors)


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
        # GPT-J's table of sines is stored in float32
        assert (rebuilt - recorded.pattern).abs().max() <= (1e-6 if "GPT-J" in name else EXACT)
        assert (recorded.pattern.sum(-1) - 1).abs().max() <= EXACT


@each_family
@pytest.mark.parametrize(
    ("learned", "errors"),
    [(False, True), (True, True), (True, False)],
    ids=["own parts", "layers", "replacement run"],
)
def test_identities(name: str, learned: bool, errors: bool) -> None:
    """1 and 2 for a logit, a feature and a score, gated and not; held knock-outs; 3; 5."""
    run = run_of(name, learned, errors)
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
    split = direct_effects(run, list(targets[:3]), via="head")
    size = abs(split.matrix()).sum(axis=1)
    values = np.array([target.value for target in targets[:3]])
    assert (abs(split.sums.numpy() - values) <= EXACT * size).all()
    for block in split.blocks:
        assert (block.split.sum(0) - block.values).abs().max() <= EXACT * size.max()
    direct = trace(targets[0], 0.02, edges="direct", progress=False)
    assert max(direct.meta["checks"].values()) <= EXACT
    assert direct.test(progress=False).deviation <= EXACT
    pairs = score_pairs(run, last, 0, len(IDS) - 1, len(IDS) - 1)
    assert abs(pairs.matrix.sum() - pairs.value) <= EXACT * abs(pairs.matrix).sum()
    if errors:
        plain = run_of(name, learned=False)
        assert torch.equal(run.logits, plain.logits)
    else:
        assert not torch.allclose(run.logits, run_of(name, learned=False).logits)


@each_family
def test_attribution_is_value_times_gradient_of_a_frozen_copy(name: str) -> None:
    """Heads, neurons and what enters layer 0, of a difference of logits before any soft-cap."""
    run = run_of(name, learned=False)
    cap = run.weights.logit_soft_cap

    def difference(logits: Tensor) -> Tensor:
        raw = logits if cap is None else cap * torch.atanh(logits / cap)
        return raw[3] - raw[5]

    n_heads = run.weights.layers[0].heads.n_heads
    expected = attributions(tiny(name), family_of(tiny(name)), IDS, difference, n_heads)
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
