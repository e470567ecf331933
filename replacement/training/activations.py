"""What a model's MLPs read and write on batches of tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replacement.families import family_of


@dataclass(frozen=True)
class TokenBatch:
    """Token ids, padded on the right, and how much every position counts (0 leaves it out)."""

    ids: Int[Tensor, "batch pos"]
    weight: Float[Tensor, "batch pos"]


@dataclass(frozen=True)
class Activations:
    """Normed MLP inputs and MLP outputs of all layers at the positions that count."""

    inputs: Float[Tensor, "layer token d_model"]
    outputs: Float[Tensor, "layer token d_model"]
    weight: Float[Tensor, " token"]


def mlp_modules(model: nn.Module) -> list[nn.Module]:
    """Return the MLP of every layer, in order: its input is normed, its output joins the stream."""
    family = family_of(model)
    layers = model.get_submodule(family.layers)
    return [layer.get_submodule(family.mlp) for layer in layers.children()]


@contextmanager
def recorded(
    model: nn.Module,
) -> Iterator[list[tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]]]]:
    """Yield a list that forward passes inside the block extend by (input, output) of each MLP."""
    pairs: list[tuple[Tensor, Tensor]] = []

    def record(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        pairs.append((given[0].detach(), output.detach()))

    handles = [mlp.register_forward_hook(record) for mlp in mlp_modules(model)]
    try:
        yield pairs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def collect(model: nn.Module, batch: TokenBatch) -> Activations:
    """Return what all MLPs read and wrote at the positions of a batch whose weight is not 0."""
    with recorded(model) as pairs:
        model(batch.ids)
    counts = batch.weight > 0
    inputs = torch.stack([given[counts] for given, _ in pairs])
    outputs = torch.stack([output[counts] for _, output in pairs])
    return Activations(inputs, outputs, batch.weight[counts])


def join(parts: list[Activations]) -> Activations:
    """Return several batches' activations as one."""
    return Activations(
        torch.cat([part.inputs for part in parts], dim=1),
        torch.cat([part.outputs for part in parts], dim=1),
        torch.cat([part.weight for part in parts]),
    )
