"""The layers of one kind while they are trained: stacked, in normalised units.

Features come in groups that listen to the same thing. The features of a transcoder or an SAE are
one group, which listens to the input; those of a Lorsa layer one group per query-key head, which
listens to the input mixed by that head's pattern (lorsa_stack.py). All else is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replacement.layers import TopK
from replacement.training.activations import Activations, tokens_of
from replacement.training.settings import TopKSettings


def weighted_mean(
    values: Float[Tensor, "layer token d_model"], weight: Float[Tensor, " token"]
) -> Float[Tensor, "layer d_model"]:
    """Return the mean over tokens, each counted by its weight."""
    return torch.einsum("ltd,t->ld", values, weight / weight.sum())


def mean_listened(
    listened: Float[Tensor, "layer group token d_model"], weight: Float[Tensor, " token"]
) -> Float[Tensor, "layer group d_model"]:
    """Return the mean over tokens of what every group listens to."""
    return weighted_mean(listened.flatten(0, 1), weight).unflatten(0, listened.shape[:2])


@dataclass(frozen=True)
class Units:
    """How what is heard and written is brought to one size, as measured on a sample."""

    centre: Float[Tensor, "layer group d_model"]
    """What is taken from what a group listens to: its mean, or zero."""
    input: Float[Tensor, "layer group"]
    """The factor that brings the rest to norm √d_model."""
    output: Float[Tensor, " layer"]
    """The factor that brings outputs to variance d_model."""

    def heard(
        self, listened: Float[Tensor, "layer group token d_model"]
    ) -> Float[Tensor, "layer group token d_model"]:
        """Return what groups listen to, normalised."""
        return (listened - self.centre[:, :, None]) * self.input[:, :, None, None]


def measure_units(
    listened: Float[Tensor, "layer group token d_model"],
    outputs: Float[Tensor, "layer token d_model"],
    weight: Float[Tensor, " token"],
    *,
    centred: bool,
) -> Units:
    """Return the units of a sample: of what groups listen to and what is to be written."""
    root, share = outputs.shape[-1] ** 0.5, weight / weight.sum()
    centre = mean_listened(listened, weight)
    centre = centre if centred else torch.zeros_like(centre)
    norms = (listened - centre[:, :, None]).norm(dim=-1).flatten(0, 1)
    norm = torch.einsum("lt,t->l", norms, share).view(centre.shape[:2])
    mean = weighted_mean(outputs, weight)
    spread = (outputs - mean[:, None]).square().sum(-1)
    variance = torch.einsum("lt,t->l", spread, share)
    return Units(centre, root / norm, root / variance.sqrt())


@dataclass(frozen=True)
class Start:
    """The weights of the first step, in normalised units; write vectors of norm 1."""

    read: Float[Tensor, "layer feature d_model"]
    read_bias: Float[Tensor, "layer feature"]
    write: Float[Tensor, "layer feature d_model"]
    write_bias: Float[Tensor, "layer d_model"]


def start_at_tokens(
    heard: Float[Tensor, "layer group token d_model"],
    outputs: Float[Tensor, "layer token d_model"],
    weight: Float[Tensor, " token"],
    settings: TopKSettings,
) -> Start:
    """Return features that each begin at a token: what its group hears, what was written there."""
    input_mean = mean_listened(heard, weight)
    output_mean = weighted_mean(outputs, weight)
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = draw_tokens(weight, heard.shape[0], settings, generator)
    n_groups = heard.shape[1]
    group = torch.arange(settings.n_features) // (settings.n_features // n_groups)
    layers = range(heard.shape[0])
    listens = torch.stack([heard[i, group, chosen[i]] - input_mean[i, group] for i in layers])
    writes = torch.stack([outputs[i, chosen[i]] - output_mean[i] for i in layers])
    noise = torch.randn(writes.shape, generator=generator).to(writes)
    writes = writes + 0.1 * noise
    size = writes.norm(dim=-1, keepdim=True)
    squared = listens.square().sum(-1, keepdim=True) + 1.0
    # k features answer at once to tokens that resemble each other: each starts with its share
    read = listens * size / squared / settings.k_at(0)
    grouped = read.view(-1, settings.n_features // n_groups, read.shape[-1])
    bias = -torch.einsum("lfd,ld->lf", grouped, input_mean.flatten(0, 1)).view(read.shape[:2])
    return Start(read, bias, writes / size, output_mean)


def draw_tokens(
    weight: Float[Tensor, " token"],
    n_layers: int,
    settings: TopKSettings,
    generator: torch.Generator,
) -> list[Int[Tensor, " feature"]]:
    """Return the tokens, drawn by weight, at which every layer's features begin."""
    return [
        torch.multinomial(weight.cpu(), settings.n_features, True, generator=generator)
        for _ in range(n_layers)
    ]


class Stack(nn.Module):
    """Read and write vectors of every layer's features; write vectors are kept at norm 1.

    With write vectors of one length, the k largest activations are the k largest contributions.
    """

    centre: Tensor
    input_unit: Tensor
    output_unit: Tensor
    silent: Int[Tensor, "layer feature"]

    def __init__(self, start: Start, units: Units) -> None:
        super().__init__()
        self.read = nn.Parameter(start.read)
        self.read_bias = nn.Parameter(start.read_bias)
        self.write = nn.Parameter(start.write)
        self.write_bias = nn.Parameter(start.write_bias)
        self.register_buffer("centre", units.centre)
        self.register_buffer("input_unit", units.input)
        self.register_buffer("output_unit", units.output)
        silent = torch.zeros_like(start.read_bias, dtype=torch.long)
        self.register_buffer("silent", silent)

    @property
    def units(self) -> Units:
        return Units(self.centre, self.input_unit, self.output_unit)

    @property
    def n_groups(self) -> int:
        return self.centre.shape[1]

    @property
    def n_layers(self) -> int:
        return self.read.shape[0]

    def group_of(self, features: Int[Tensor, " feature"]) -> Int[Tensor, " feature"]:
        """Return the group of features, by their index in a layer."""
        return features // (self.read.shape[1] // self.n_groups)

    def listened(self, parts: Sequence[Activations]) -> Float[Tensor, "layer group token d_model"]:
        """Return what every group listens to at the positions that count, in the model's units."""
        return tokens_of(parts).inputs[:, None]

    def heard(self, parts: Sequence[Activations]) -> Float[Tensor, "layer group token d_model"]:
        """Return the same, normalised."""
        return self.units.heard(self.listened(parts))

    def pre_activation(
        self, heard: Float[Tensor, "layer group token d_model"]
    ) -> Float[Tensor, "layer token feature"]:
        """Return all pre-activations from what the groups listen to, normalised."""
        read = einops.rearrange(self.read, "l (g f) d -> (l g) d f", g=self.n_groups)
        bias = einops.rearrange(self.read_bias, "l (g f) -> (l g) 1 f", g=self.n_groups)
        pre = torch.baddbmm(bias, heard.flatten(0, 1), read)
        return einops.rearrange(pre, "(l g) t f -> l t (g f)", g=self.n_groups)

    def decode(
        self, active: Float[Tensor, "layer token feature"]
    ) -> Float[Tensor, "layer token d_model"]:
        """Return what activations write, without the bias."""
        return torch.bmm(active, self.write)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Bring every write vector back to norm 1."""
        self.write /= self.write.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def fold(self, k: int) -> list[dict[str, Any]]:
        """Return the fields of every layer in the model's own units: the same function."""
        output = 1 / self.output_unit
        read = self.read.unflatten(1, (self.n_groups, -1)) * self.input_unit[:, :, None, None]
        read_bias = self.read_bias - torch.einsum("lgfd,lgd->lgf", read, self.centre).flatten(1, 2)
        return [
            {
                "read": read[layer].flatten(0, 1),
                "write": self.write[layer] * output[layer],
                "read_bias": read_bias[layer],
                "write_bias": self.write_bias[layer] * output[layer],
                "activation": TopK(k),
            }
            for layer in range(self.n_layers)
        ]


def plain_stack(sample: Sequence[Activations], settings: TopKSettings) -> Stack:
    """Return layers that listen to their input, at the first step."""
    tokens = tokens_of(sample)
    listened, weight = tokens.inputs[:, None], tokens.weight
    units = measure_units(listened, tokens.outputs, weight, centred=settings.centred)
    outputs = tokens.outputs * units.output[:, None, None]
    return Stack(start_at_tokens(units.heard(listened), outputs, weight, settings), units)
