"""Small models as components, for the tests of edges and of the methods that score them."""

import dataclasses
from functools import lru_cache

import torch

from benchmarks.edges import EdgeModel, Pairs
from replacement.model import ReplacementModel
from replacement.norms import NO_NORM
from tests.families import D_VOCAB, tiny


@lru_cache(maxsize=16)
def edge_model(family: str) -> EdgeModel:
    """Return the tiny model of a family, in float64."""
    return EdgeModel(ReplacementModel(tiny(family)))


def random_pairs(count: int = 3, length: int = 6, *, probability: bool = False) -> Pairs:
    """Return random prompts of different lengths whose counterfactuals differ in two tokens."""
    source = torch.Generator().manual_seed(count)
    clean = torch.randint(D_VOCAB, (count, length), generator=source)
    corrupt = clean.clone()
    corrupt[:, 1:3] = (corrupt[:, 1:3] + 1 + torch.arange(count)[:, None]) % D_VOCAB
    weights = torch.randn(count, D_VOCAB, generator=source)
    end = length - 1 - torch.arange(count) % 3
    return Pairs(clean, corrupt, end, weights, probability)


@lru_cache(maxsize=2)
def linear_model(*, one_path: bool = False) -> EdgeModel:
    """Return a model that is linear in its input: no norms, patterns that depend on nothing, and
    MLPs whose ReLUs are all on.

    With `one_path` nothing is left of it but the values of layer 0's head 1.
    """
    source = ReplacementModel(tiny("GPT-2, scores scaled by layer"))
    layers = []
    for number, block in enumerate(source.weights.layers):
        heads, look = block.heads, block.heads.query_key
        nothing = torch.zeros_like(look.query)
        look = dataclasses.replace(look, query=nothing, key=nothing)
        output, neurons = heads.output, block.mlp
        bias = torch.full_like(neurons.read_bias, 1e3)
        if one_path:
            rows = torch.arange(len(output)) // (len(output) // heads.n_heads)
            output = output * ((rows == 1) & (number == 0))[:, None]
            neurons = dataclasses.replace(neurons, write=torch.zeros_like(neurons.write))
        layers.append(
            dataclasses.replace(
                block,
                attention_norm=NO_NORM,
                mlp_norm=NO_NORM,
                heads=dataclasses.replace(heads, query_key=look, output=output),
                mlp=dataclasses.replace(neurons, read_bias=bias),
            )
        )
    source.weights = dataclasses.replace(source.weights, layers=layers, final_norm=NO_NORM)
    return EdgeModel(source)
