"""What replacement layers lose: variance explained, dead features, cross-entropy, KL."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement.layers import AttentionSAE, FeatureLayer, Lorsa
from replacement.training.activations import (
    Activations,
    Place,
    Sublayer,
    TokenBatch,
    collect,
    norms_and_sublayers,
    tokens_of,
    watching,
)

Layers = Sequence[FeatureLayer | None]
"""One layer for every layer of the model; None leaves the original."""


@dataclass(frozen=True)
class LayerMetrics:
    """How well one layer reproduces one sublayer."""

    variance_explained: float
    """1 - weighted squared error / weighted squared distance of the target from its mean."""
    l0: float
    """Mean number of active features."""
    dead: float
    """Share of the features that are active at no position."""


@dataclass(frozen=True)
class ModelMetrics:
    """The model's predictions with layers in place, against the original's; in nats."""

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


@contextmanager
def replaced(
    model: nn.Module, *, mlps: Layers | None = None, attentions: Layers | None = None
) -> Iterator[nn.Module]:
    """Yield the model with the outputs of sublayers replaced by their layers' reconstructions.

    A Lorsa layer or a transcoder reads the sublayer's normed input in the replaced model, an SAE
    the original output for that input.
    """
    with ExitStack() as stack:
        if mlps is not None:
            stack.enter_context(_in_place(model, "mlp", mlps))
        if attentions is not None:
            stack.enter_context(_in_place(model, "attention", attentions))
        yield model


@contextmanager
def _in_place(model: nn.Module, sublayer: Sublayer, layers: Layers) -> Iterator[None]:
    there = len(norms_and_sublayers(model, sublayer))
    if there != len(layers):
        raise ValueError(
            f"{len(layers)} {sublayer} layers were given for a model with {there}; "
            "give one per layer of the model, in order, None where the original shall stay"
        )

    def reconstruct(index: int, normed: Tensor, output: Tensor) -> Tensor | None:
        layer = layers[index]
        if layer is None:
            return None
        return layer.forward(output if isinstance(layer, AttentionSAE) else normed)

    with watching(model, sublayer, reconstruct):
        yield


def _place_of(layers: Sequence[FeatureLayer]) -> Place:
    if isinstance(layers[0], Lorsa):
        return "attention"
    return "attention output" if isinstance(layers[0], AttentionSAE) else "mlp"


@torch.no_grad()
def measure_layers(
    model: nn.Module, layers: Sequence[FeatureLayer], batches: Iterable[TokenBatch]
) -> list[LayerMetrics]:
    """Return each layer's metrics on the original model's activations, positions by weight.

    The layers are of one kind: all Lorsa, all attention SAEs, or all of MLPs.
    """
    place = _place_of(layers)
    parts = [collect(model, batch, place) for batch in batches]
    return [_measure_layer(layer, parts, index) for index, layer in enumerate(layers)]


def _measure_layer(layer: FeatureLayer, parts: Sequence[Activations], index: int) -> LayerMetrics:
    tokens = tokens_of(parts)
    predicted, counts = [], []
    alive = torch.zeros(layer.n_features, dtype=torch.bool, device=tokens.weight.device)
    for part in parts:
        for y, counted in zip(part.inputs[index], part.counts, strict=True):
            active = layer.encode(y)
            predicted.append(layer.decode(active, y)[counted])
            counts.append(active.sum_by_pos(torch.ones_like(active.activation))[counted])
            alive[active.index[counted[active.pos]]] = True
    l0 = torch.cat(counts) @ (tokens.weight / tokens.weight.sum())
    explained = variance_explained(torch.cat(predicted), tokens.outputs[index], tokens.weight)
    return LayerMetrics(explained, l0.item(), 1 - alive.float().mean().item())


@torch.no_grad()
def measure_model(
    model: nn.Module,
    batches: Iterable[TokenBatch],
    *,
    mlps: Layers | None = None,
    attentions: Layers | None = None,
) -> ModelMetrics:
    """Return the model's metrics where both a position and the next have weight, by its weight."""
    totals = torch.zeros(4, dtype=torch.float64)
    for batch in (batch.beside(model) for batch in batches):
        original = model(batch.ids).logits[:, :-1].log_softmax(-1)
        with replaced(model, mlps=mlps, attentions=attentions):
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
    if not count:
        raise ValueError(
            "no position counts whose next counts too, so there is nothing to measure; give longer "
            "prompts."
        )
    return ModelMetrics(cross_entropy / count, cross_entropy_replaced / count, kl / count)
