"""Dead features start again at tokens that the living ones explain badly."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.training.settings import TopKSettings
from replacement.training.stack import Stack, mean_listened

LEAST = 0.5
"""A gently restarted feature is never made weaker than this share of what its token needs."""


@dataclass(frozen=True)
class Given:
    """What a step saw and what it left over, in normalised units."""

    heard: Float[Tensor, "layer group token d_model"]
    left_over: Float[Tensor, "layer token d_model"]
    lowest_kept: Float[Tensor, "layer token"]
    """The smallest activation that was kept at each token."""
    most: Float[Tensor, "layer token"]
    """Norm of all that is to be written at each token, the bias aside."""
    weight: Float[Tensor, " token"]


@torch.no_grad()
def restart_dead(
    stack: Stack,
    optimizer: torch.optim.Optimizer,
    given: Given,
    *,
    settings: TopKSettings,
    step: int,
) -> None:
    """Set dead features to write what is left over at tokens drawn by how much is left over there.

    A restarted feature listens in the direction of its token's input (for Lorsa: mixed by its
    pattern) from the mean, strongly enough to be kept at that token but never to write more than
    the sublayer did there: without that bound, features restarted where restarted ones wrote too
    much would grow without end. A gentle restart also weakens it to what is left over at all the
    tokens that it answers to. Adam's memory of the old weights is cleared.
    """
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + step)
    mean = mean_listened(given.heard, given.weight)
    for layer in range(stack.read.shape[0]):
        dead = (stack.silent[layer] >= settings.dead_after).nonzero().flatten()
        if len(dead) == 0:
            continue
        missing = given.left_over[layer].square().sum(-1) * given.weight
        tokens = torch.multinomial(missing.cpu(), len(dead), True, generator=generator)
        group = stack.group_of(dead)
        listens = given.heard[layer, group, tokens] - mean[layer, group]
        writes = given.left_over[layer, tokens]
        enough = torch.maximum(writes.norm(dim=-1), 1.1 * given.lowest_kept[layer, tokens])
        size = torch.minimum(enough, given.most[layer, tokens])
        read = listens * (size / listens.square().sum(-1).clamp_min(1e-6))[:, None]
        at_mean = (read @ mean[layer].T).gather(1, group[:, None])[:, 0]
        stack.read[layer, dead] = read
        stack.read_bias[layer, dead] = -at_mean
        stack.write[layer, dead] = torch.nn.functional.normalize(writes, dim=-1)
        if settings.gentle_restarts:
            _scale_to_what_is_missing(stack, given, layer, dead)
        stack.silent[layer, dead] = 0
        _forget(stack, optimizer, layer, dead)


def _scale_to_what_is_missing(
    stack: Stack, given: Given, layer: int, features: Int[Tensor, " feature"]
) -> None:
    """Weaken features to the strength that leaves the least squared error, each by itself."""
    pre = stack.pre_activation(given.heard)[layer][:, features]
    active = pre.relu() * given.weight[:, None].sqrt()
    missing = given.left_over[layer] @ stack.write[layer, features].T
    best = (active * missing * given.weight[:, None].sqrt()).sum(0)
    scale = (best / active.square().sum(0).clamp_min(1e-12)).clamp(LEAST, 1.0)
    stack.read[layer, features] *= scale[:, None]
    stack.read_bias[layer, features] *= scale


def _forget(
    stack: Stack, optimizer: torch.optim.Optimizer, layer: int, features: Int[Tensor, " feature"]
) -> None:
    """Clear the optimiser's moments of some features."""
    for weight in (stack.read, stack.read_bias, stack.write):
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[weight][moment][layer, features] = 0.0
