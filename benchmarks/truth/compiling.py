"""From a wiring to a GPT-2 of transformers that computes with it.

GPT-2's norms are switched off by a huge epsilon: `x / sqrt(var x + ε) · sqrt(ε)` is `x` but for a
share of var x / 2ε, far below what float64 resolves. Their centring changes nothing because
whatever is written adds up to zero: by a spare coordinate that takes minus the sum, or, in a random
basis, because all of its directions are orthogonal to the vector of ones.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.truth.wiring import ONE, Head, Matrices, Neurons, Wiring

EPSILON = 1e20
DUMMY_WIDTH = 8
"""Directions that dummies write to."""
DUMMY_CHANNELS = 4
"""Channels of a dummy head, and dummy neurons beside each."""


def compiled(
    wiring: Wiring, *, rotated: bool = False, dummies: int = 0, seed: int = 0
) -> GPT2LMHeadModel:
    """Return the wiring as a float64 GPT-2 with ReLU, the program's heads first in every layer.

    `rotated`: the variables lie in random directions of the residual stream. `dummies`: so many
    random heads, and four times as many random neurons, in every layer read all variables, those of
    other dummies included, and write to directions that only dummies read. Layers with fewer heads
    than the widest have idle heads, or with `dummies` more of these.
    """
    source = torch.Generator().manual_seed(seed)
    n_heads = wiring.most_heads + dummies
    if dummies:
        wiring = _with_dummies(wiring, dummies, source)
    n_variables = sum(wiring.widths.values())
    looks = [wiring.reading(part) for one in wiring.heads for part in (one.query, one.value)]
    d_head = max(*(look.shape[1] for look in looks), -(-(n_variables + 1) // n_heads))
    model = _empty_model(wiring, n_heads, d_head)
    read, write = _basis(n_variables, n_heads * d_head, source if rotated else None)
    stack: Any = model.transformer
    stack.wte.weight.copy_(write[wiring.span("token")])
    stack.wpe.weight.copy_(write[wiring.span("position")])
    model.lm_head.weight.copy_(read[wiring.span("answer")])
    for layer, block in enumerate(stack.h):
        for index, head in enumerate(wiring.heads_of(layer)):
            _fill_head(block.attn, wiring, head, index * d_head, (read, write))
        _fill_mlp(block.mlp, wiring, layer, (read, write))
    return model


def _empty_model(wiring: Wiring, n_heads: int, d_head: int) -> GPT2LMHeadModel:
    neurons = [
        sum(wiring.reading(group.reads).shape[1] for group in wiring.neurons_of(layer))
        for layer in range(wiring.n_layers)
    ]
    config = GPT2Config(
        vocab_size=len(wiring.vocabulary),
        n_positions=wiring.n_positions,
        n_embd=n_heads * d_head,
        n_head=n_heads,
        n_layer=wiring.n_layers,
        n_inner=max(1, *neurons),
        activation_function="relu",
        layer_norm_epsilon=EPSILON,
        scale_attn_weights=False,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).double().eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = False
        gain = name.endswith("weight") and ".ln_" in name
        parameter.fill_(EPSILON**0.5 if gain else 0.0)
    return model


Basis = tuple[Float[Tensor, "coordinate d_model"], Float[Tensor, "coordinate d_model"]]
"""How coordinates are read of the stream, and written to it."""


def _basis(n_variables: int, d_model: int, source: torch.Generator | None) -> Basis:
    """Read and write vectors, dual to one another; what is written has mean zero."""
    if source is None:
        read = torch.eye(n_variables, d_model, dtype=torch.float64)
        write = read.clone()
        write[:, -1] = -1
        return read, write
    columns = torch.randn(d_model, n_variables + 1, generator=source, dtype=torch.float64)
    columns[:, 0] = 1
    basis = torch.linalg.qr(columns).Q[:, 1:].T.contiguous()
    return basis, basis


def _fill_head(attention: Any, wiring: Wiring, head: Head, first: int, basis: Basis) -> None:
    """Write a head's weights; `first` is its first channel among those of all heads."""
    read, write = basis
    for part, matrices in enumerate((head.query, head.key, head.value)):
        reading = wiring.reading(matrices)
        start = part * read.shape[1] + first
        channels = slice(start, start + reading.shape[1])
        attention.c_attn.weight[:, channels] = read.T @ reading
        if ONE in matrices:
            attention.c_attn.bias[channels] = matrices[ONE][0]
    writing = wiring.writing(head.writes)
    attention.c_proj.weight[first : first + len(writing)] = writing @ write


def _fill_mlp(mlp: Any, wiring: Wiring, layer: int, basis: Basis) -> None:
    read, write = basis
    first = 0
    for group in wiring.neurons_of(layer):
        reading = wiring.reading(group.reads)
        channels = slice(first, first + reading.shape[1])
        mlp.c_fc.weight[:, channels] = read.T @ reading
        if ONE in group.reads:
            mlp.c_fc.bias[channels] = group.reads[ONE][0]
        mlp.c_proj.weight[channels] = wiring.writing(group.writes) @ write
        first = channels.stop


def _with_dummies(wiring: Wiring, dummies: int, source: torch.Generator) -> Wiring:
    """The wiring and random parts that read everything and write where only they read."""
    wiring = replace(wiring, variables={**wiring.variables, "dummy": DUMMY_WIDTH})

    def random(rows: int, columns: int, scale: float = 0.3) -> Float[Tensor, "_ _"]:
        return scale * torch.randn(rows, columns, generator=source, dtype=torch.float64)

    def reading(channels: int) -> Matrices:
        return {name: random(size, channels) for name, size in wiring.widths.items()}

    heads, neurons = [*wiring.heads], [*wiring.neurons]
    for layer in range(wiring.n_layers):
        for _ in range(wiring.most_heads + dummies - len(wiring.heads_of(layer))):
            query, key, value = (reading(DUMMY_CHANNELS) for _ in range(3))
            writes = {"dummy": random(DUMMY_CHANNELS, DUMMY_WIDTH, scale=1.0)}
            heads.append(Head(layer, query, key, value, writes))
        count = DUMMY_CHANNELS * dummies
        writes = {"dummy": random(count, DUMMY_WIDTH, scale=1.0)}
        neurons.append(Neurons(layer, reading(count), writes))
    return replace(wiring, heads=heads, neurons=neurons)
