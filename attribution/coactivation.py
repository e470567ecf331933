"""What the input brings to global weights, averaged over runs: how often both ends meet.

In a run the effect of `s` on the pre-activation of `n` is a global weight times a factor: the
activation of `s` (through a pattern, where one lies between) over the denominators of the norms on
the way. `Coactivation` sums that factor over runs for one feature and every other, wherever the
reader is active (Anthropic 2025, "Circuit Tracing": expected residual attribution; weighted by the
reader's activation, the target-weighted kind).
"""

from collections import defaultdict
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.global_weights import Way, ways_of
from attribution.places import Feature, Head, Place, Places
from replacement.held import HeldFeatures
from replacement.layers import Lorsa
from replacement.run import Run

Weighting = Literal["active", "activation"]
WEIGHTINGS = ("active", "activation")


class Coactivation:
    """Mean factors between one feature and all others, over the runs added so far."""

    def __init__(self, places: Places, feature: Feature, weighting: Weighting) -> None:
        self.places, self.feature, self.weighting = places, feature, weighting
        self.place = places.named(feature.layer, feature.sublayer)
        self.n_tokens = 0
        self._sums: dict[tuple[str, str, int, str, int], Tensor] = {}
        self._readers: dict[tuple[int, str], Tensor] = defaultdict(lambda: torch.zeros(()))

    def add(self, run: Run) -> None:
        """Add one run's tokens."""
        self.n_tokens += len(run.tokens)
        held = held_at(run, self.place)
        for place in self.places.every:
            at = held_at(run, place)
            weight = self._reader_weight(at)
            key, like = (place.layer, place.name), at.error
            total = like.new_zeros(place.n_features).index_add_(0, at.active.index, weight)
            self._readers[key] = self._readers[key].to(like) + total
        own = (held.active.index == self.feature.index).nonzero()[:, 0]
        if len(own):
            self._add_in(run, held, own)
            self._add_out(run, held, own)

    def factor(self, direction: str, way: Way, other: Place, number: int) -> Tensor:
        """Return the mean factor of every feature of `other`: [feature].

        `direction`: "in" where the other writes. `number`: which of the writer's writes.
        """
        total = self._sums.get((direction, way.via, other.layer, other.name, number))
        if total is None:
            return torch.zeros(other.n_features).to(self.places.weights.unembedding.device)
        if self.weighting == "active":
            return total / self.n_tokens
        reader = self.place if direction == "in" else other
        size = self._readers[reader.layer, reader.name]
        size = size[self.feature.index] if direction == "in" else size
        return total / torch.where(size > 0, size, 1.0)

    def _reader_weight(self, held: HeldFeatures) -> Float[Tensor, " node"]:
        activation = held.active.activation
        return (activation != 0).to(activation) if self.weighting == "active" else activation.abs()

    def _add_in(self, run: Run, held: HeldFeatures, own: Int[Tensor, " node"]) -> None:
        weight = self._reader_weight(held)[own]
        for way in ways_of(self.places, self.place):
            at = _read_at(run, self.place, way, held, own, weight)
            for writer in self.places.every:
                other = held_at(run, writer)
                for number in self._visible(writer, self.place, way):
                    amount = _sent(other, number) * at[other.active.pos]
                    self._count(("in", way.via), writer, number, other.active.index, amount)

    def _add_out(self, run: Run, held: HeldFeatures, own: Int[Tensor, " node"]) -> None:
        pos = held.active.pos[own]
        for reader in self.places.every:
            other = held_at(run, reader)
            weight = self._reader_weight(other)
            for way in ways_of(self.places, reader):
                for number in self._visible(self.place, reader, way):
                    sent = held.error.new_zeros(len(run.tokens))
                    sent.index_add_(0, pos, _sent(held, number)[own])
                    amount = weight * _arrived(run, reader, way, other, sent)
                    self._count(("out", way.via), reader, number, other.active.index, amount)

    def _visible(self, writer: Place, reader: Place, way: Way) -> list[int]:
        if way.head is None:
            return self.places.visible(writer, reader.reads_at, front=reader.replaces)
        return self.places.visible(writer, 2 * way.head.layer)

    def _count(
        self, kind: tuple[str, str], place: Place, number: int, index: Tensor, amount: Tensor
    ) -> None:
        key = (*kind, place.layer, place.name, number)
        if key not in self._sums:
            self._sums[key] = amount.new_zeros(place.n_features)
        self._sums[key].index_add_(0, index, amount)


def held_at(run: Run, place: Place) -> HeldFeatures:
    """Return the features of a place as one run holds them."""
    held = run.sublayer(place.layer, place.name)
    assert isinstance(held, HeldFeatures), "places are what is read as features"
    return held


def _sent(held: HeldFeatures, number: int) -> Float[Tensor, " node"]:
    """Activations over the denominators of the norm behind one of the writes."""
    joint, active = held.joints[number], held.active
    if joint.norm is None or joint.scale is None:
        return active.activation
    return active.activation / joint.scale[active.pos]


def _passed(run: Run, head: Head) -> Float[Tensor, "query key"]:
    """A head's pattern over the denominators of the norms before it and behind it."""
    held = run.layers[head.layer].attention
    factor = held.pattern[head.index] / held.scale
    return factor if held.post_scale is None else factor / held.post_scale[:, None]


def pattern_numbers(
    place: Place, way: Way, index: Int[Tensor, " node"]
) -> Int[Tensor, " node"] | None:
    """Return the pattern that features of an attention layer read through; None elsewhere."""
    if way.branch.head is not None:
        return torch.full_like(index, way.branch.head.index)
    features = place.features
    return features.pattern_of(index) if isinstance(features, Lorsa) else None


def denominators(run: Run, place: Place) -> Float[Tensor, " pos"]:
    """Return the denominators of the norm that a place's features read through."""
    if place.replaces:
        return torch.ones_like(run.final_scale)
    layer = run.layers[place.layer]
    return layer.attention.scale if place.name == "attn" else layer.mlp.scale


def _read_at(
    run: Run,
    place: Place,
    way: Way,
    held: HeldFeatures,
    own: Int[Tensor, " node"],
    weight: Float[Tensor, " node"],
) -> Float[Tensor, " pos"]:
    """What weighted nodes read of each position of the stream that the way reads."""
    pos, scale = held.active.pos[own], denominators(run, place)
    patterns = pattern_numbers(place, way, held.active.index[own])
    if patterns is None:
        at = torch.zeros_like(scale).index_add_(0, pos, weight) / scale
    else:
        at = weight @ run.layers[place.layer].attention.pattern[patterns, pos] / scale
    return at if way.head is None else at @ _passed(run, way.head)


def _arrived(
    run: Run, place: Place, way: Way, held: HeldFeatures, sent: Float[Tensor, " pos"]
) -> Float[Tensor, " node"]:
    """What all nodes of a place read of what was sent at each position: `_read_at` transposed."""
    if way.head is not None:
        sent = _passed(run, way.head) @ sent
    active, scaled = held.active, sent / denominators(run, place)
    patterns = pattern_numbers(place, way, active.index)
    if patterns is None:
        return scaled[active.pos]
    mixed = run.layers[place.layer].attention.pattern @ scaled
    return mixed[patterns, active.pos]
