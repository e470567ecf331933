"""A tiny GPT-2 with strong MLPs and heads that look somewhere, and token batches for it."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from replacement.training import TokenBatch, TopKSettings

SMALL = TopKSettings(
    n_features=32,
    k=4,
    steps=60,
    learning_rate=5e-3,
    warm_up=5,
    k_start=8,
    dead_after=10,
    restart_every=10,
    checkpoint_every=50,
)


def tiny_model() -> GPT2LMHeadModel:
    """Return the model: the same at every call."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=12, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    for block in model.transformer.h:
        for weight in [*block.mlp.parameters(), *block.attn.parameters()]:
            weight.data = 0.5 * torch.randn_like(weight)
    model.transformer.wte.weight.data *= 20
    return model


def batches(step: int) -> list[TokenBatch]:
    """Return two batches of a step, of different lengths, one of them padded on the right."""
    generator = torch.Generator().manual_seed(1000 + step)
    long = torch.randint(0, 12, (16, 6), generator=generator)
    short = torch.randint(0, 12, (24, 4), generator=generator)
    weight = torch.ones(short.shape)
    short[:8, 3], weight[:8, 3] = 0, 0.0
    return [TokenBatch(long, torch.ones(long.shape)), TokenBatch(short, weight)]
