"""Query-key heads: patterns as Hugging Face's own modules make them, fused or not, held or not."""

import dataclasses
import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from replacement.checkpoints.query_keys import (
    query_key_from,
    query_key_settings,
    query_key_tensors,
)
from replacement.families import family_of
from replacement.layers import HeadNorm, QueryKey, rotary
from tests.replacement.layers_made import (
    D_HEAD,
    N_HEADS,
    ROTARIES,
    inputs,
    random_query_key,
)

CASES = [
    {"turns": turns, "norm": norm, "window": window, "n_key_heads": n_key_heads, "bias": bias}
    for (turns, norm, window, n_key_heads), bias in zip(
        itertools.product(ROTARIES, (False, True), (None, 1, 3, 50), (4, 2, 1)),
        itertools.cycle((True, False)),
        strict=False,
    )
]
LENGTHS = (1, 2, 7)


def slow_pattern(heads: QueryKey, y: Tensor) -> Tensor:
    """The pattern of one prompt [head, query, key], number by number; pairs as complex numbers."""
    n_pos = len(y)
    result = torch.zeros(heads.n_heads, n_pos, n_pos, dtype=y.dtype)
    for head in range(heads.n_heads):
        key_head = head // (heads.n_heads // len(heads.key))
        for at in range(n_pos):
            seen = range(0 if heads.window is None else max(0, at - heads.window + 1), at + 1)
            query = slow_side(y, at, heads, "query", head)
            scores = [
                heads.scale * float(query @ slow_side(y, key, heads, "key", key_head))
                for key in seen
            ]
            total = sum(math.exp(score) for score in scores)
            for key, score in zip(seen, scores, strict=True):
                result[head, at, key] = math.exp(score) / total
    return result


def slow_side(y: Tensor, pos: int, heads: QueryKey, side: str, head: int) -> Tensor:
    vector = y[pos] @ getattr(heads, side)[head]
    bias, norm = getattr(heads, f"{side}_bias"), getattr(heads, f"{side}_norm")
    if bias is not None:
        vector = vector + bias[head]
    if norm is not None:
        mean_square = sum(float(x) ** 2 for x in vector) / len(vector)
        vector = norm.gain[head] * vector / math.sqrt(mean_square + norm.eps)
    if heads.rotary is None:
        return vector
    turned = vector.tolist()
    frequencies = heads.rotary.inverse_frequency.tolist()
    for pair, frequency in enumerate(frequencies):
        first, second = pair, pair + len(frequencies)
        if heads.rotary.adjacent:
            first, second = 2 * pair, 2 * pair + 1
        angle = pos * frequency
        point = complex(turned[first], turned[second])
        point *= complex(math.cos(angle), math.sin(angle))
        turned[first], turned[second] = point.real, point.imag
    return torch.tensor(turned, dtype=y.dtype)


@pytest.mark.parametrize("turns", ROTARIES)
def test_patterns_are_those_of_the_formula(turns: str) -> None:
    for norm, window, n_key_heads in ((False, None, 4), (True, 3, 2), (True, 1, 1)):
        heads = random_query_key(turns=turns, norm=norm, window=window, n_key_heads=n_key_heads)
        y = inputs(6)
        torch.testing.assert_close(heads.pattern(y), slow_pattern(heads, y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("turns", ROTARIES)
def test_the_fused_kernel_mixes_by_the_same_pattern(turns: str, norm: bool) -> None:
    """Every rotary × norm × window × grouped keys × length, over a batch of prompts."""
    for case in CASES:
        if (case["turns"], case["norm"]) != (turns, norm):
            continue
        heads = random_query_key(**case)
        for n_pos in LENGTHS:
            y = inputs(2, n_pos)
            values = inputs(2, N_HEADS, n_pos)
            pattern = heads.pattern(y)
            torch.testing.assert_close(
                heads.mixed(y, values), pattern @ values, rtol=0, atol=1e-12, msg=str(case)
            )
            assert torch.allclose(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
            assert torch.equal(pattern > 0, heads.visible(n_pos).expand_as(pattern))


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_prompts_of_a_batch_do_not_meet(case: dict) -> None:
    """Leading axes are prompts; padding on the right changes nothing at real positions."""
    heads = random_query_key(**case)
    y = inputs(2, 3, 7)
    pattern = heads.pattern(y)
    for where in itertools.product(range(2), range(3)):
        torch.testing.assert_close(pattern[where], heads.pattern(y[where]), rtol=0, atol=1e-13)
    padded = torch.cat([y[0, 0, :4], 100 * inputs(3, seed=5)])
    torch.testing.assert_close(
        heads.pattern(padded)[:, :4, :4], heads.pattern(y[0, 0, :4]), rtol=0, atol=1e-13
    )
    assert (heads.pattern(padded)[:, :4, 4:] == 0).all()
    values = inputs(1, N_HEADS, 7, seed=3)
    torch.testing.assert_close(
        heads.mixed(padded[None], values)[..., :4, :],
        heads.mixed(y[0, :1, :4], values[..., :4, :]),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("turns", ROTARIES)
def test_positions_may_start_later(turns: str) -> None:
    heads = random_query_key(turns=turns, norm=True, n_key_heads=2)
    y = inputs(2, 7)
    for side in (heads.queries, heads.keys):
        torch.testing.assert_close(side(y[:, 3:], 3), side(y)[..., 3:, :], rtol=0, atol=1e-13)


def test_windows_are_those_of_transformers() -> None:
    """Mistral's and Gemma's masks: a window of w is the query's own position and w - 1 before."""
    for config_class in (MistralConfig, Gemma3TextConfig):
        for window, n_pos in itertools.product((1, 2, 3, 8), (1, 3, 6)):
            config = config_class(sliding_window=window, attn_implementation="eager")
            made: Any = create_sliding_window_causal_mask(
                config=config,
                inputs_embeds=torch.zeros(1, n_pos, 4),
                attention_mask=None,
                past_key_values=None,
                position_ids=torch.arange(n_pos)[None],
            )
            seen = random_query_key(window=window).visible(n_pos)
            assert torch.equal(made[0, 0] == 0, seen), (config_class, window, n_pos)


# ------------------------------------------------------------------------ against whole modules


@pytest.mark.parametrize("divided", [True, False], ids=["by √d_head", "undivided"])
@pytest.mark.parametrize("by_layer", [False, True], ids=["plain", "by layer"])
def test_patterns_are_gpt2s(divided: bool, by_layer: bool) -> None:
    config = GPT2Config(
        n_layer=3,
        n_head=2,
        n_embd=8,
        vocab_size=11,
        n_positions=9,
        scale_attn_weights=divided,
        scale_attn_by_inverse_layer_idx=by_layer,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn_like(parameter))
        ran = model(torch.arange(7)[None], output_attentions=True, output_hidden_states=True)
    for layer, block in enumerate(model.transformer.h):
        heads = family_of(model).heads(block, model).query_key
        with torch.no_grad():
            y = block.ln_1(ran.hidden_states[layer])
        torch.testing.assert_close(heads.pattern(y), ran.attentions[layer], rtol=0, atol=1e-12)


def grouped_attention(attention: Any, turning: Any, config: Any, y: Tensor) -> Tensor:
    """The weights that a module with rotary embedding and grouped keys reports."""
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter) + (parameter.dim() == 1))
        places = torch.arange(y.shape[1])[None]
        mask = create_causal_mask(
            config=config,
            inputs_embeds=y,
            attention_mask=None,
            past_key_values=None,
            position_ids=places,
        )
        return attention(y, position_embeddings=turning(y, places), attention_mask=mask)[1]


def of_each_head(projection: nn.Linear, d_head: int) -> Tensor:
    return projection.weight.detach().unflatten(0, (-1, d_head)).transpose(1, 2)


@pytest.mark.parametrize("normed", [False, True], ids=["Llama", "Qwen3"])
def test_grouped_keys_and_norms_are_llamas_and_qwens(normed: bool) -> None:
    """Four heads on two key heads; Qwen3 norms both sides before turning."""
    settings: dict[str, Any] = {
        "hidden_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": D_HEAD,
        "attention_bias": True,
        "attn_implementation": "eager",
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }
    config = Qwen3Config(**settings) if normed else LlamaConfig(**settings)
    kinds: tuple[Any, Any] = (LlamaAttention, LlamaRotaryEmbedding)
    if normed:
        kinds = (Qwen3Attention, Qwen3RotaryEmbedding)
    attention = kinds[0](config, layer_idx=0).double().eval()
    y = inputs(2, 6)
    wanted = grouped_attention(attention, kinds[1](config), config, y)
    norms: dict[str, HeadNorm] = {}
    if normed:
        for name, module, count in (
            ("query_norm", attention.q_norm, 4),
            ("key_norm", attention.k_norm, 2),
        ):
            gain = module.weight.detach().expand(count, -1)
            norms[name] = HeadNorm(gain, module.variance_epsilon)
    heads = QueryKey(
        query=of_each_head(attention.q_proj, D_HEAD),
        key=of_each_head(attention.k_proj, D_HEAD),
        query_bias=attention.q_proj.bias.detach().unflatten(0, (-1, D_HEAD)),
        key_bias=attention.k_proj.bias.detach().unflatten(0, (-1, D_HEAD)),
        scale=D_HEAD**-0.5,
        rotary=rotary(D_HEAD, 100.0, dtype=torch.float64),
        **norms,
    )
    torch.testing.assert_close(heads.pattern(y), wanted, rtol=0, atol=1e-5)  # theirs is float32
    shuffled = dataclasses.replace(heads, key=heads.key.flip(0))
    assert not torch.allclose(shuffled.pattern(y), wanted, atol=0.01), "which key head matters"


# --------------------------------------------------------------------------- both sides held


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_held_sides_make_the_score(case: dict) -> None:
    heads = random_query_key(**case)
    y = inputs(6)
    scores = heads.scores(y)
    for head, at, seen in itertools.product(range(N_HEADS), (0, 3, 5), (0, 2, 5)):
        query = heads.held_query(head, at, y[at])
        key = heads.held_key(head, seen, y[seen])
        read = query.read @ y[at] + query.constant, key.read @ y[seen] + key.constant
        torch.testing.assert_close(
            heads.scale * read[0] @ read[1], scores[head, at, seen], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("turns", ROTARIES)
def test_held_sides_are_linear_with_the_denominator_of_the_run(turns: str, side: str) -> None:
    """At other inputs they give what the side would be, if its norm were that of the run."""
    heads = random_query_key(turns=turns, norm=True, n_key_heads=2)
    plain = dataclasses.replace(heads, query_norm=None, key_norm=None)
    pos, own, other = 4, *inputs(2)
    for head in range(N_HEADS):
        index = head if side == "query" else heads.key_head(head)
        held = getattr(heads, f"held_{side}")(head, pos, own)
        norm = getattr(heads, f"{side}_norm")
        bias, weight = getattr(heads, f"{side}_bias")[index], getattr(heads, side)[index]
        denominator = math.sqrt(float((own @ weight + bias).square().mean()) + norm.eps)
        wanted = norm.gain[index] * (other @ weight + bias) / denominator
        if heads.rotary is not None:
            wanted = heads.rotary.turned(wanted[None], start=pos)[0]
        torch.testing.assert_close(held.read @ other + held.constant, wanted)

        free = getattr(plain, f"held_{side}")(head, pos, own)
        sides = getattr(plain, "queries" if side == "query" else "keys")
        prompt = other.expand(pos + 1, -1)
        torch.testing.assert_close(free.read @ other + free.constant, sides(prompt)[index, pos])


def test_a_held_norm_is_not_the_norm_of_another_input() -> None:
    """Control: without holding, the norm would be another."""
    heads = random_query_key(turns="no", norm=True)
    own, other = inputs(2)
    held = heads.held_query(1, 0, own)
    assert not torch.allclose(held.read @ other + held.constant, heads.queries(other[None])[1, 0])


def test_a_soft_cap_squeezes_scores_before_the_softmax() -> None:
    """As Gemma-2 does; the fused path knows it too, and our files keep it."""
    source = torch.Generator().manual_seed(0)
    noise = partial(torch.randn, generator=source, dtype=torch.float64)
    plain = QueryKey(noise(2, 5, 4), noise(2, 5, 4), None, None, 0.5)
    capped = dataclasses.replace(plain, soft_cap=0.7)
    y = noise(1, 6, 5)
    hidden = torch.ones(6, 6).triu(1).bool()
    by_hand = (0.7 * torch.tanh(plain.scores(y) / 0.7)).masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(capped.pattern(y), by_hand)
    values = noise(1, 2, 6, 3)
    torch.testing.assert_close(capped.mixed(y, values), by_hand @ values)
    assert not torch.allclose(plain.mixed(y, values), by_hand @ values)
    settings, tensors = query_key_settings(capped), query_key_tensors(capped)
    there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    assert query_key_from(settings, there).soft_cap == 0.7
    with pytest.raises(ValueError, match="soft_cap is -1"):
        query_key_from({**settings, "soft_cap": -1}, there)
