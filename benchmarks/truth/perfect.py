"""Replacement layers that miss nothing of a model: its own neurons and channels, as if trained."""

import torch

from replacement.layers import Lorsa, Transcoder
from replacement.layers.activation import ReLU
from replacement.model import ReplacementModel
from replacement.weights import LayerWeights


def perfect_transcoders(model: ReplacementModel) -> list[Transcoder]:
    """Return every MLP of a model with ReLU neurons as a transcoder, one feature a neuron."""
    return [
        Transcoder(one.mlp.read, one.mlp.write, one.mlp.read_bias, one.mlp.write_bias, ReLU())
        for one in model.weights.layers
    ]


def perfect_lorsa(model: ReplacementModel) -> list[Lorsa]:
    """Return every attention layer as Lorsa, two one-dimensional heads a channel of a head.

    One reads the channel and one its negative, so that together they pass what it moves with ReLU:
    `relu(x) · write − relu(−x) · write = x · write`. For models whose heads share no values.
    """
    return [_lorsa(block) for block in model.weights.layers]


def _lorsa(block: LayerWeights) -> Lorsa:
    heads = block.heads
    assert heads.group == 1, "every head has values of its own"
    assert heads.value_bias is not None
    assert heads.output_bias is not None
    value = heads.value_of_head.transpose(1, 2)  # head d_head d_model
    bias = heads.value_bias.unflatten(0, (heads.n_heads, -1))
    write = heads.output_of_head
    return Lorsa(
        query_key=heads.query_key,
        read=torch.cat([value, -value], dim=1).flatten(0, 1),
        write=torch.cat([write, -write], dim=1).flatten(0, 1),
        read_bias=torch.cat([bias, -bias], dim=1).flatten(),
        write_bias=heads.output_bias,
        activation=ReLU(),
    )
