"""Rotary embeddings: the same turns as Hugging Face's own modules make, in every layout."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.models.gpt_neox import modeling_gpt_neox as neox
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama

from replacement.layers import Llama3Scaling, Rotary, rotary

N_POS, WIDTH = 40, 16
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
CLOSE = {"rtol": 0.0, "atol": 2e-5}
"""Hugging Face computes angles in float32, which is off by 1e-6 of the angle."""


def heads(width: int = WIDTH, seed: int = 0) -> Tensor:
    """Queries or keys [batch, head, pos, width]."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, N_POS, width, generator=source, dtype=torch.float64)


def llama_module(settings: dict[str, Any]) -> Any:
    return llama.LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=WIDTH, num_attention_heads=1, rope_parameters=settings)
    )


def turned_by_llama(module: Any, x: Tensor) -> Tensor:
    cos, sin = module(x, torch.arange(x.shape[-2])[None])
    return llama.apply_rotary_pos_emb(x, x, cos, sin)[0]


def test_plain_rotation_is_llamas() -> None:
    turns = rotary(WIDTH, 10000.0, dtype=torch.float64)
    wanted = turned_by_llama(llama_module(PLAIN), heads())
    torch.testing.assert_close(turns.turned(heads()), wanted, **CLOSE)
    other = rotary(WIDTH, 10000.0, adjacent=True, dtype=torch.float64)
    assert not torch.allclose(other.turned(heads()), wanted, atol=0.1), "pairing matters"


def test_scaled_rotation_is_llama_3s() -> None:
    """Frequencies of all three bands: left, mixed, stretched."""
    module = llama_module(STRETCHED)
    turns = rotary(
        WIDTH,
        500000.0,
        scaling=Llama3Scaling(factor=8, low=1, high=4, old_context=256),
        dtype=torch.float64,
    )
    torch.testing.assert_close(
        turns.inverse_frequency, module.inv_freq.double(), rtol=1e-6, atol=0.0
    )
    torch.testing.assert_close(turns.turned(heads()), turned_by_llama(module, heads()), **CLOSE)
    stretch = rotary(WIDTH, 500000.0, dtype=torch.float64).inverse_frequency
    stretch = (stretch / turns.inverse_frequency).tolist()
    assert min(stretch) == 1 and math.isclose(max(stretch), 8)
    assert any(1.01 < each < 7.99 for each in stretch), "one is mixed"


def test_an_amplitude_is_yarns() -> None:
    module = llama_module(YARN)
    assert module.attention_scaling > 1.1
    turns = Rotary(module.inv_freq.double(), amplitude=module.attention_scaling)
    torch.testing.assert_close(turns.turned(heads()), turned_by_llama(module, heads()), **CLOSE)


def test_adjacent_pairs_are_gpt_js() -> None:
    turns = rotary(WIDTH, adjacent=True, dtype=torch.float64)
    sin, cos = gptj.create_sinusoidal_positions(N_POS, WIDTH).chunk(2, dim=-1)
    wanted = gptj.apply_rotary_pos_emb(heads().transpose(1, 2), sin[None], cos[None])
    torch.testing.assert_close(turns.turned(heads()), wanted.transpose(1, 2), **CLOSE)


def test_a_partial_rotation_is_neoxs() -> None:
    """A quarter of the coordinates turn, the others pass untouched."""
    settings = {**PLAIN, "partial_rotary_factor": 0.25}
    config = GPTNeoXConfig(hidden_size=WIDTH, num_attention_heads=1, rope_parameters=settings)
    module: Any = neox.GPTNeoXRotaryEmbedding(config)
    cos, sin = module(heads(), torch.arange(N_POS)[None])
    wanted = neox.apply_rotary_pos_emb(heads(), heads(), cos, sin)[0]
    turns = rotary(WIDTH // 4, dtype=torch.float64)
    assert turns.width == WIDTH // 4
    torch.testing.assert_close(turns.turned(heads()), wanted, **CLOSE)
    assert torch.equal(turns.turned(heads())[..., turns.width :], heads()[..., turns.width :])


@pytest.mark.parametrize("adjacent", [False, True])
def test_scores_depend_on_distances_only(adjacent: bool) -> None:
    turns = rotary(WIDTH, 50.0, adjacent=adjacent, dtype=torch.float64)
    query, key = heads(seed=1)[0, 0, :1], heads(seed=2)[0, 0, :1]

    def score(at: int, seen: int) -> Tensor:
        return (turns.turned(query, start=at) * turns.turned(key, start=seen)).sum()

    torch.testing.assert_close(score(9, 4), score(1005, 1000))
    assert (score(9, 4) - score(9, 5)).abs() > 0.01
    torch.testing.assert_close(turns.turned(query, start=77).norm(), query.norm())


@pytest.mark.parametrize("adjacent", [False, True])
def test_a_start_is_the_position_of_the_first(adjacent: bool) -> None:
    turns = rotary(WIDTH - 4, 50.0, adjacent=adjacent, dtype=torch.float64)
    whole = turns.turned(heads())
    for start in (0, 1, 17):
        later = turns.turned(heads()[..., start:, :], start=start)
        assert torch.equal(later, whole[..., start:, :])
    assert torch.equal(whole[..., 0, :], heads()[..., 0, :]), "position 0 is not turned"


def test_angles_of_far_positions_are_those_of_the_model_in_float32() -> None:
    """A model's angles are products in its own type: far positions are rounded as it rounds."""
    config = LlamaConfig(hidden_size=WIDTH, num_attention_heads=1, rope_parameters=PLAIN)
    module: Any = llama.LlamaRotaryEmbedding(config)
    x = heads().float()
    places = torch.arange(100_000, 100_000 + N_POS)[None]
    cos, sin = module(x, places)
    wanted = llama.apply_rotary_pos_emb(x, x, cos, sin)[0]
    turns = Rotary(module.inv_freq)
    torch.testing.assert_close(turns.turned(x, start=100_000), wanted, rtol=0, atol=1e-5)
    exact = rotary(WIDTH, PLAIN["rope_theta"], dtype=torch.float64).turned(heads(), start=100_000)
    assert (wanted.double() - exact).abs().max() > 1e-4, "there is a rounding to follow"


@pytest.mark.parametrize("width", [0, 5, -2])
def test_odd_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match="turns in pairs"):
        rotary(width)
