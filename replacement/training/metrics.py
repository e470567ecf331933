"""What transcoders lose: variance explained, dead features, cross-entropy, KL."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement.layers import FeatureLayer
from replacement.training.activations import Activations, TokenBatch, collect, join, mlp_modules


@dataclass(frozen=True)
class LayerMetrics:
    """How well one layer reproduces one MLP."""

    variance_explained: float
    """1 - weighted squared error / weighted squared distance of the target from its mean."""
    l0: float
    """Mean number of active features."""
    dead: float
    """Share of the features that are active at no position."""


@dataclass(frozen=True)
class ModelMetrics:
    """The model's predictions with all MLPs replaced, against the original's; in nats."""

    cross_entropy: float
    cross_entropy_replaced: float
    kl: float
    """KL(original || replaced)."""


def variance_explained(
    predicted: Float[Tensor, "token d_model"],
    target: Float[Tensor, "token d_model"],
    weight: Float[Tensor, " token"],
) -> float:
    """Return 1 - squared error / squared distance of the target from its own mean.

    >>> import torch
    >>> target = torch.tensor([[0.0], [2.0]])
    >>> variance_explained(torch.tensor([[0.0], [1.0]]), target, torch.ones(2))
    0.5
    """
    share = (weight / weight.sum())[:, None]
    mean = (share * target).sum(0)
    error = (share * (predicted - target).square()).sum()
    spread = (share * (target - mean).square()).sum()
    return 1 - (error / spread).item()


def reconstruct(
    layer: FeatureLayer, inputs: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Return what a layer makes of normed inputs of any leading axes."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    return layer.decode(layer.encode(flat), flat).view(inputs.shape)


@contextmanager
def replaced(model: nn.Module, layers: Sequence[FeatureLayer]) -> Iterator[nn.Module]:
    """Yield the model with every MLP's output replaced by its layer's reconstruction of it."""
    mlps = mlp_modules(model)
    if len(mlps) != len(layers):
        raise ValueError(
            f"{len(layers)} layers were given for a model with {len(mlps)} MLPs; "
            "give one layer per MLP, in order"
        )

    def hook_for(layer: FeatureLayer):
        return lambda _module, given, _output: reconstruct(layer, given[0])

    handles = [
        mlp.register_forward_hook(hook_for(layer)) for mlp, layer in zip(mlps, layers, strict=True)
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _measure_layer(layer: FeatureLayer, data: Activations, index: int) -> LayerMetrics:
    inputs, outputs = data.inputs[index], data.outputs[index]
    active = layer.encode(inputs)
    share = data.weight / data.weight.sum()
    l0 = active.sum_by_pos(torch.ones_like(active.activation)) @ share
    alive = active.index.unique().numel()
    return LayerMetrics(
        variance_explained(layer.decode(active, inputs), outputs, data.weight),
        l0.item(),
        1 - alive / layer.n_features,
    )


@torch.no_grad()
def measure_layers(
    model: nn.Module, layers: Sequence[FeatureLayer], batches: Iterable[TokenBatch]
) -> list[LayerMetrics]:
    """Return each layer's metrics on the original model's activations, positions by weight."""
    data = join([collect(model, batch) for batch in batches])
    return [_measure_layer(layer, data, index) for index, layer in enumerate(layers)]


@torch.no_grad()
def measure_model(
    model: nn.Module, layers: Sequence[FeatureLayer], batches: Iterable[TokenBatch]
) -> ModelMetrics:
    """Return the model's metrics where both a position and the next have weight, by its weight."""
    totals = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        original = model(batch.ids).logits[:, :-1].log_softmax(-1)
        with replaced(model, layers):
            other = model(batch.ids).logits[:, :-1].log_softmax(-1)
        follows = batch.ids[:, 1:, None]
        weight = batch.weight[:, :-1] * (batch.weight[:, 1:] > 0)
        columns = [
            torch.ones_like(weight),
            -original.gather(-1, follows).squeeze(-1),
            -other.gather(-1, follows).squeeze(-1),
            (original.exp() * (original - other)).sum(-1),
        ]
        totals += torch.stack([(weight * column).sum() for column in columns]).double()
    count, cross_entropy, cross_entropy_replaced, kl = totals.tolist()
    return ModelMetrics(cross_entropy / count, cross_entropy_replaced / count, kl / count)
