"""Layers are trained for any family: grouped keys, rotary, windows, parallel blocks, post-norms."""

from pathlib import Path
from typing import Any

import pytest
import torch

from replacement.model import ReplacementModel
from replacement.training import (
    LorsaSettings,
    TopKSettings,
    measure_layers,
    measure_model,
    prompt_batches,
    replaced,
    train_attention_saes,
    train_lorsa,
    train_transcoders,
)
from tests.families import D_VOCAB, IDS, tiny

FAMILIES = (
    "Llama, grouped keys",
    "OPT",
    "Gemma-2, grouped keys",
    "GPT-NeoX",
    "Qwen3, grouped keys",
    "Mistral, window",
)
SETTINGS: dict[str, Any] = {"n_features": 16, "k": 4, "k_start": 8, "steps": 4, "warm_up": 1}


def batches() -> Any:
    source = torch.Generator().manual_seed(0)
    prompts = [torch.randint(D_VOCAB, (8,), generator=source).tolist() for _ in range(24)]
    return prompt_batches(prompts, batch_size=8)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_is_trained_and_fits(name: str, tmp_path: Path) -> None:
    model = tiny(name, torch.float32)
    plain = TopKSettings(**SETTINGS)
    transcoders = train_transcoders(model, batches(), plain, tmp_path)
    saes = train_attention_saes(model, batches(), plain, tmp_path)
    lorsa = train_lorsa(model, batches(), LorsaSettings(**SETTINGS), tmp_path)
    measured = batches()(0)
    for layers in (transcoders, saes, lorsa):
        assert len(measure_layers(model, layers, measured)) == len(layers)
    together = measure_model(model, measured, mlps=transcoders, attentions=lorsa)
    assert together.kl > 0
    for attentions in (lorsa, saes):
        made = ReplacementModel(model, None, transcoders, attentions)
        run = made.run(IDS, errors=False)
        ids = torch.tensor([IDS])
        with torch.no_grad(), replaced(model, mlps=transcoders, attentions=attentions):
            expected = model(ids).logits[0]
        assert torch.allclose(run.logits, expected, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_lorsa_starts_with_the_patterns_of_the_heads(name: str, tmp_path: Path) -> None:
    """Rotary, q/k norm, windows and grouped keys are those of the layer's own heads."""
    model = tiny(name, torch.float32)
    settings = LorsaSettings(**SETTINGS, query_key_rate=0.0)
    lorsa = train_lorsa(model, batches(), settings, tmp_path)
    run = ReplacementModel(model).run(IDS)
    for number, layer in enumerate(lorsa):
        block = run.weights.layers[number]
        y = block.attention_norm.apply(
            run.residuals[2 * number], run.layers[number].attention.scale
        )
        own = block.heads.query_key.pattern(y)
        assert torch.allclose(layer.query_key.pattern(y), own, atol=1e-4)
