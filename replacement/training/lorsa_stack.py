"""Lorsa layers while they are trained: features that listen through patterns, patterns as well.

Given its pattern `A`, a Lorsa head is a feature that reads `sum over s of A[t, s] · y[s]`, so that
everything else is as in a transcoder.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement.families import HeadWeights
from replacement.layers import HeadNorm, QueryKey
from replacement.training.activations import Activations, tokens_of
from replacement.training.settings import LorsaSettings
from replacement.training.stack import (
    Stack,
    Start,
    Units,
    draw_tokens,
    mean_listened,
    measure_units,
    start_at_tokens,
    weighted_mean,
)


class Patterns(nn.Module):
    """The query and key weights of all layers; norms, rotation and windows stay the model's."""

    unit: Tensor

    def __init__(self, query_keys: Sequence[QueryKey], unit: Float[Tensor, " layer"]) -> None:
        """Take weights that are for inputs times `unit`."""
        super().__init__()
        self.register_buffer("unit", unit)
        self.fixed = list(query_keys)
        self.query = nn.ParameterList([one.query for one in query_keys])
        self.key = nn.ParameterList([one.key for one in query_keys])
        self.query_bias = _biases([one.query_bias for one in query_keys])
        self.key_bias = _biases([one.key_bias for one in query_keys])

    def query_key(self, layer: int) -> QueryKey:
        """Return the query and key weights of a layer as they are now."""
        return dataclasses.replace(
            self.fixed[layer],
            query=self.query[layer],
            key=self.key[layer],
            query_bias=self.query_bias[layer] if self.query_bias else None,
            key_bias=self.key_bias[layer] if self.key_bias else None,
        )

    def mixed(self, parts: Sequence[Activations]) -> Float[Tensor, "layer group token d_model"]:
        """Return the inputs as every head mixes them, at the positions that count."""
        layers = []
        for layer, query_key in enumerate(map(self.query_key, range(len(self.fixed)))):
            heard = []
            for part in parts:
                y = part.inputs[layer]
                mixed = query_key.pattern(self.unit[layer] * y) @ y[:, None]
                heard.append(mixed.movedim(1, 0)[:, part.counts])
            layers.append(torch.cat(heard, dim=1))
        return torch.stack(layers)


def _biases(biases: Sequence[Tensor | None]) -> nn.ParameterList | None:
    given = [bias for bias in biases if bias is not None]
    return nn.ParameterList(given) if given else None


class LorsaStack(Stack):
    """A stack whose groups are query-key heads; their weights are parameters beside the others."""

    def __init__(self, start: Start, units: Units, patterns: Patterns) -> None:
        super().__init__(start, units)
        self.patterns = patterns

    def listened(self, parts: Sequence[Activations]) -> Float[Tensor, "layer group token d_model"]:
        """Return what every pattern makes of the input at the positions that count."""
        return self.patterns.mixed(parts)

    @torch.no_grad()
    def fold(self, k: int) -> list[dict[str, Any]]:
        """Return the fields of every layer in the model's own units: the same function."""
        folded = super().fold(k)
        for layer, fields in enumerate(folded):
            query_key = self.patterns.query_key(layer)
            fields["query_key"] = _copied(query_key, self.patterns.unit[layer].item())
        return folded


def lorsa_stack(
    sample: Sequence[Activations], heads: Sequence[HeadWeights], settings: LorsaSettings
) -> LorsaStack:
    """Return Lorsa layers at the first step.

    Raises ValueError unless the query-key heads divide the value-output heads.
    """
    n_query_key = heads[0].query_key.n_heads * settings.repeats
    if settings.n_features % n_query_key:
        raise ValueError(
            f"n_features={settings.n_features} value-output heads cannot share {n_query_key} "
            f"query-key heads ({settings.repeats} for each head of the model) equally; give a "
            f"multiple of {n_query_key}."
        )
    tokens = tokens_of(sample)
    outputs, weight = tokens.outputs, tokens.weight
    norm = (tokens.inputs.norm(dim=-1) * weight).sum(-1) / weight.sum()
    unit = tokens.inputs.shape[-1] ** 0.5 / norm
    own = settings.start == "attention"
    generator = torch.Generator().manual_seed(settings.seed + 1)
    repeated = [_repeated(one.query_key, settings.repeats) for one in heads]
    first = [
        _copied(one, 1 / size.item()) if own else _random(one, generator)
        for one, size in zip(repeated, unit, strict=True)
    ]
    patterns = Patterns(first, unit)
    with torch.no_grad():
        listened = patterns.mixed(sample)
    units = measure_units(listened, outputs, weight, centred=settings.centred)
    heard, outputs = units.heard(listened), outputs * units.output[:, None, None]
    if not own:
        return LorsaStack(start_at_tokens(heard, outputs, weight, settings), units, patterns)
    through = torch.stack(
        [
            one.value_of_head.repeat_interleave(one.group, dim=0) @ one.output_of_head
            for one in heads
        ]
    )
    through = through.repeat_interleave(settings.repeats, dim=1)
    through = through * (units.output[:, None] / units.input)[:, :, None, None]
    start = start_in_heads(heard, outputs, weight, through, settings)
    return LorsaStack(start, units, patterns)


def start_in_heads(
    heard: Float[Tensor, "layer group token d_model"],
    outputs: Float[Tensor, "layer token d_model"],
    weight: Float[Tensor, " token"],
    through: Float[Tensor, "layer group d_model d_model_out"],
    settings: LorsaSettings,
) -> Start:
    """Return features that begin within what a head of the model reads and writes.

    Each begins at a token: it writes in the direction of what its head wrote there, from the mean,
    and reads how much the head writes in that direction, through `W_V W_O`.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = draw_tokens(weight, heard.shape[0], settings, generator)
    written = heard @ through
    written = written - mean_listened(written, weight)[:, :, None]
    group = torch.arange(settings.n_features) // (settings.n_features // heard.shape[1])
    noise = torch.randn(settings.n_features, heard.shape[-1], generator=generator).to(heard)
    # the k features kept are of several heads, and answer at once to tokens that are alike
    share = min(1.0, heard.shape[1] / settings.k_at(0))
    reads, writes = [], []
    for layer, head_writes in enumerate(written):
        spread = torch.einsum("fd,fde->fe", noise, through[layer, group])
        typical = head_writes.square().sum(-1).mean(-1).sqrt()[group]
        spread = 0.3 * typical[:, None] * nn.functional.normalize(spread, dim=-1)
        write = nn.functional.normalize(head_writes[group, chosen[layer]] + spread, dim=-1)
        writes.append(write)
        reads.append(share * torch.einsum("fde,fe->fd", through[layer, group], write))
    read = torch.stack(reads)
    bias = -(read * mean_listened(heard, weight)[:, group]).sum(-1)
    return Start(read, bias, torch.stack(writes), weighted_mean(outputs, weight))


def _repeated(query_key: QueryKey, times: int) -> QueryKey:
    """Every head `times` times in its place, its keys, biases and norm gains with it."""

    def several(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.repeat_interleave(times, dim=0)

    def norm(of: HeadNorm | None) -> HeadNorm | None:
        return None if of is None else HeadNorm(of.gain.repeat_interleave(times, dim=0), of.eps)

    return dataclasses.replace(
        query_key,
        query=several(query_key.query),
        key=several(query_key.key),
        query_bias=several(query_key.query_bias),
        key_bias=several(query_key.key_bias),
        query_norm=norm(query_key.query_norm),
        key_norm=norm(query_key.key_norm),
    )


def _copied(query_key: QueryKey, input_scale: float) -> QueryKey:
    """Copies of the weights that make of inputs what the given ones make of scaled inputs."""

    def copied(bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias.detach().clone()

    return dataclasses.replace(
        query_key,
        query=query_key.query.detach() * input_scale,
        key=query_key.key.detach() * input_scale,
        query_bias=copied(query_key.query_bias),
        key_bias=copied(query_key.key_bias),
    )


def _random(query_key: QueryKey, generator: torch.Generator) -> QueryKey:
    """Weights of the same shapes from nothing (Xavier), biases zero."""

    def drawn(weight: Tensor) -> Tensor:
        limit = (6 / (weight.shape[1] + weight.shape[2])) ** 0.5
        return limit * (2 * torch.rand(weight.shape, generator=generator).to(weight) - 1)

    return dataclasses.replace(
        query_key,
        query=drawn(query_key.query),
        key=drawn(query_key.key),
        query_bias=None if query_key.query_bias is None else query_key.query_bias.clone() * 0,
        key_bias=None if query_key.key_bias is None else query_key.key_bias.clone() * 0,
    )
