"""The transcoders of all layers while they are trained: stacked, in normalised units."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replacement.layers import TopK, Transcoder
from replacement.training.activations import Activations
from replacement.training.settings import TranscoderSettings


@dataclass(frozen=True)
class Units:
    """Per layer: the factor that brings inputs to norm √d_model, outputs to variance d_model."""

    input: Float[Tensor, " layer"]
    output: Float[Tensor, " layer"]


def weighted_mean(
    values: Float[Tensor, "layer token d_model"], weight: Float[Tensor, " token"]
) -> Float[Tensor, "layer d_model"]:
    """Return the mean over tokens, each counted by its weight."""
    return torch.einsum("ltd,t->ld", values, weight / weight.sum())


def measure_units(sample: Activations) -> Units:
    """Return the units of a sample of activations."""
    root = sample.inputs.shape[-1] ** 0.5
    norm = torch.einsum("lt,t->l", sample.inputs.norm(dim=-1), sample.weight / sample.weight.sum())
    mean = weighted_mean(sample.outputs, sample.weight)
    spread = (sample.outputs - mean[:, None]).square().sum(-1)
    variance = torch.einsum("lt,t->l", spread, sample.weight / sample.weight.sum())
    return Units(root / norm, root / variance.sqrt())


class Stack(nn.Module):
    """Read and write vectors of every layer's features; write vectors are kept at norm 1.

    With write vectors of one length, the k largest activations are the k largest contributions.
    """

    input_unit: Tensor
    output_unit: Tensor
    silent: Int[Tensor, "layer feature"]

    def __init__(self, sample: Activations, settings: TranscoderSettings) -> None:
        """Start every feature at a token of the sample: its input, what the MLP wrote there."""
        super().__init__()
        units = measure_units(sample)
        inputs = sample.inputs * units.input[:, None, None]
        outputs = sample.outputs * units.output[:, None, None]
        input_mean = weighted_mean(inputs, sample.weight)
        output_mean = weighted_mean(outputs, sample.weight)
        generator = torch.Generator().manual_seed(settings.seed)
        n_layers = inputs.shape[0]
        chosen = [
            torch.multinomial(sample.weight, settings.n_features, True, generator=generator)
            for _ in range(n_layers)
        ]
        layers = range(n_layers)
        listens = torch.stack([inputs[i, chosen[i]] - input_mean[i] for i in layers])
        writes = torch.stack([outputs[i, chosen[i]] - output_mean[i] for i in layers])
        noise = torch.randn(writes.shape, generator=generator)
        writes = writes + 0.1 * noise
        size = writes.norm(dim=-1, keepdim=True)
        squared = listens.square().sum(-1, keepdim=True) + 1.0
        # k features answer at once to tokens that resemble each other: each starts with its share
        read = listens * size / squared / settings.k_at(0)
        self.read = nn.Parameter(read)
        self.read_bias = nn.Parameter(-torch.einsum("lfd,ld->lf", read, input_mean))
        self.write = nn.Parameter(writes / size)
        self.write_bias = nn.Parameter(output_mean)
        self.register_buffer("input_unit", units.input)
        self.register_buffer("output_unit", units.output)
        self.register_buffer("silent", torch.zeros(read.shape[:2], dtype=torch.long))

    def pre_activation(
        self, inputs: Float[Tensor, "layer token d_model"]
    ) -> Float[Tensor, "layer token feature"]:
        """Return all pre-activations on normalised inputs."""
        return torch.baddbmm(self.read_bias[:, None], inputs, self.read.transpose(1, 2))

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
    def fold(self, k: int) -> list[Transcoder]:
        """Return the layers in the model's own units: the same function, the same features kept."""
        output = 1 / self.output_unit
        return [
            Transcoder(
                read=self.read[layer] * self.input_unit[layer],
                write=self.write[layer] * output[layer],
                read_bias=self.read_bias[layer].clone(),
                write_bias=self.write_bias[layer] * output[layer],
                activation=TopK(k),
            )
            for layer in range(self.read.shape[0])
        ]
