"""Edits of the real model: what stands in for a sublayer's output while everything else reacts.

A node is changed relative to what it is in the edited run itself: nodes that were not edited, and
whatever the layers miss, stay what the model makes of them.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from replacement.edits.changes import Change, Changes
from replacement.edits.held import norm_after
from replacement.edits.held_forward import changed
from replacement.held import NAMES
from replacement.layers import FeatureLayer, Lorsa
from replacement.norms import Norm
from replacement.run import Run
from replacement.tracing import Substitute
from replacement.weights import LayerWeights, ModelWeights

Place = tuple[int, str]
Parts = Mapping[str, Change]
NO_CHANGES = Changes(1, {}, {})


@dataclass(frozen=True, eq=False)
class Fill:
    """What takes the place of all nodes of one part but those kept, in every row of a batch."""

    keep: Bool[Tensor, "batch pos node"]
    """Of a skip or error: one node a position."""
    value: Float[Tensor, "#batch pos node *width"]

    def difference(
        self, live: Float[Tensor, "batch pos node *width"]
    ) -> Float[Tensor, "batch pos node *width"]:
        """Return what has to be added to what nodes are."""
        keep = self.keep.view(*self.keep.shape, *[1] * (live.dim() - 3))
        return torch.where(keep, 0.0, self.value - live)


@dataclass(eq=False)
class LiveEdits:
    """Edits of one batch of forward passes; `substitutes` are what a `Tracer` runs with."""

    weights: ModelWeights
    errors: bool
    """False for a replacement run."""
    changes: Changes = NO_CHANGES
    fills: Mapping[tuple[int, str, str], Fill] = field(default_factory=dict)
    """By layer, sublayer and "nodes", "skip" or "error"."""
    patterns_of: Run | None = None
    """The run at whose patterns attention is held; None where it is free."""
    seen: dict[int, Tensor] = field(default_factory=dict)
    """The streams that watched attention layers read so far."""
    watched: Set[int] = frozenset()
    """Attention layers of which edits need all tokens, where tokens come one after the other."""
    start: int = 0
    """Position of the first token of this pass."""
    _late: dict[int, Tensor] = field(default_factory=dict)
    """What changes of cross-layer features add to later MLPs."""
    _due: dict[int, Tensor] = field(default_factory=dict)
    """What cross-layer features write to later MLPs, before any change."""

    def substitutes(self) -> dict[Place, Substitute]:
        """Return what stands in for the sublayers in which something changes."""
        found: dict[Place, Substitute] = {}
        places = self.changes.places | {part[:2] for part in self.fills}
        if (-1, "") in places:
            found[-1, ""] = self._embedded
        for stage, sae in self.weights.streams.items():
            place = (stage // 2, NAMES[stage % 2])
            if place in places or not self.errors:
                found[place] = partial(self._stream, place, sae)
        across = any(block.mlp.n_targets > 1 for block in self.weights.layers)
        in_mlps = any(name == "mlp" for _, name in places)
        for number, block in enumerate(self.weights.layers):
            replaced = not self.errors and block.attention is not None
            held = number in self.watched or self.patterns_of is not None
            if (number, "attn") in places or replaced or held:
                found[number, "attn"] = partial(self._attention, number, block)
            replaced = not self.errors and not block.mlp.exact
            if (number, "mlp") in places or replaced or (across and in_mlps):
                found[number, "mlp"] = partial(self._mlp, number, block)
        return found

    def _embedded(self, stream: Tensor, _raw: Tensor) -> Tensor:
        changes, positions = self.changes.parts, self.weights.position_embedding
        position_writes = torch.zeros_like(stream)
        if positions is not None:
            here = slice(self.start, self.start + stream.shape[1])
            position_writes = position_writes + positions[here]
        token_writes = changed(
            stream - position_writes, changes.get((-1, "", "token")), len(stream)
        )
        return token_writes + changed(
            position_writes, changes.get((-1, "", "position")), len(stream)
        )

    def _stream(self, place: Place, sae: FeatureLayer, stream: Tensor, _raw: Tensor) -> Tensor:
        live = activations(sae, stream)
        made = live @ sae.write + sae.write_bias
        base = stream if self.errors else made
        base = self._with_error(place, base, made, stream)
        added = self._added(place, sae, live)
        return base if added is None else base + added

    def _attention(self, number: int, block: LayerWeights, stream: Tensor, raw: Tensor) -> Tensor:
        place, new = (number, "attn"), stream.shape[1]
        stream = self._all_so_far(number, stream)
        y = block.attention_norm.apply(stream, block.attention_norm.scale(stream))
        reading, lorsa = block.attention, isinstance(block.attention, Lorsa)
        heads, clamp = block.heads, self.changes.patterns.get(number)
        of_heads = reading is None and self._edits(place, "nodes")
        post = norm_after(block, "attn")
        if of_heads or (not lorsa and clamp is not None) or self.patterns_of is not None:
            pattern = heads.query_key.pattern(y)
            if self.patterns_of is not None:
                pattern = recorded_pattern(self.patterns_of, number)
            if clamp is not None and not lorsa:
                pattern = clamp.applied(pattern, len(y))
            mixed = heads.mix(pattern, y)[:, -new:]
            if clamp is not None or self.patterns_of is not None:
                raw = heads.write(mixed)
            if of_heads:
                raw = raw + (self._heads_changed(place, mixed).flatten(-2) @ heads.output)
        if reading is None:
            return joining(self._with_error(place, raw, raw, raw), post)
        if isinstance(reading, Lorsa):
            pattern = reading.query_key.pattern(y)
            if self.patterns_of is not None:
                pattern = self.patterns_of.layers[number].attention.pattern
            live = looked = lorsa_activations(reading, y, pattern)[:, -new:]
            if clamp is not None:
                looked = lorsa_activations(reading, y, clamp.applied(pattern, len(y)))[:, -new:]
        else:
            live = looked = activations(reading, raw)
        made = live @ reading.write + reading.write_bias
        after = reading.after_post_norm
        wrote = joining(raw, block.attention_post_norm) if after else raw
        base = self._with_error(place, wrote if self.errors else made, made, wrote)
        if looked is not live:
            base = base + (looked - live) @ reading.write
        added = self._added(place, reading, looked)
        return joining(base if added is None else base + added, post)

    def _all_so_far(self, number: int, stream: Tensor) -> Tensor:
        if number not in self.watched:
            return stream
        before = self.seen.get(number)
        self.seen[number] = stream if before is None else torch.cat([before, stream], dim=1)
        return self.seen[number]

    def _mlp(self, number: int, block: LayerWeights, stream: Tensor, raw: Tensor) -> Tensor:
        place, layer = (number, "mlp"), block.mlp
        post = norm_after(block, "mlp")
        y = block.mlp_reads_through.apply(stream, block.mlp_reads_through.scale(stream))
        live = activations(layer, y)
        wrote = joining(raw, block.mlp_post_norm) if layer.after_post_norm else raw
        if layer.exact:
            base = self._with_error(place, wrote, wrote, wrote)
        else:
            written = (live.flatten(0, 1) @ layer.write).unflatten(0, y.shape[:2])
            self._spread(number, self._due, written, y)
            around = torch.zeros_like(y) if layer.skip is None else y @ layer.skip.T
            made = self._due.pop(number) + layer.write_bias + around
            base = self._with_error(place, wrote if self.errors else made, made, wrote)
            skipped = changed(around, self.changes.of(*place).get("skip"), len(y))
            fill = self.fills.get((*place, "skip"))
            if fill is not None:
                skipped = around + fill.difference(around[:, :, None])[:, :, 0]
            base = base + (skipped - around)
        added = self._added(place, layer, live)
        if added is not None:
            self._spread(number, self._late, added, y)
        if number in self._late:
            base = base + self._late.pop(number)
        return joining(base, post)

    def _spread(self, number: int, onto: dict[int, Tensor], written: Tensor, y: Tensor) -> None:
        """Add what features write to this MLP and later ones."""
        parts = written.unflatten(-1, (-1, y.shape[-1])).unbind(-2)
        for target, part in enumerate(parts, start=number):
            onto[target] = onto[target] + part if target in onto else part

    def _edits(self, place: Place, part: str) -> bool:
        return (*place, part) in self.changes.parts or (*place, part) in self.fills

    def _with_error(self, place: Place, base: Tensor, made: Tensor, wrote: Tensor) -> Tensor:
        """The output with the error changed: of a run without errors nothing is missed."""
        change, fill = self.changes.of(*place).get("error"), self.fills.get((*place, "error"))
        error = wrote - made if self.errors else torch.zeros_like(made)
        if change is not None:
            base = base + (changed(error, change, len(error)) - error)
        if fill is not None:
            base = base + fill.difference(error[:, :, None])[:, :, 0]
        return base

    def _added(self, place: Place, layer: FeatureLayer, live: Tensor) -> Tensor | None:
        """What changes of features add to all they write to; None where nothing changes."""
        change, fill = self.changes.of(*place).get("nodes"), self.fills.get((*place, "nodes"))
        if fill is not None:
            return (fill.difference(live).flatten(0, 1) @ layer.write).unflatten(0, live.shape[:2])
        if change is None:
            return None
        now = live[change.row, change.pos, change.index]
        by = (change.factor - 1) * now + change.value
        added = live.new_zeros(*live.shape[:2], layer.write.shape[1])
        rows = by[:, None] * layer.write[change.index]
        return added.index_put_((change.row, change.pos), rows, accumulate=True)

    def _heads_changed(self, place: Place, mixed: Tensor) -> Tensor:
        """What changes of heads add to what they mixed."""
        change, fill = self.changes.of(*place).get("nodes"), self.fills.get((*place, "nodes"))
        if fill is not None:
            return fill.difference(mixed)
        assert change is not None
        where, by = (change.row, change.pos, change.index), torch.zeros_like(mixed)
        by[where] = (change.factor[:, None] - 1) * mixed[where] + change.value
        return by


def activations(
    layer: FeatureLayer, y: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos feature"]:
    """Return the activation of every feature, 0 where it is not active."""
    return layer.encode(y.flatten(0, 1)).spread_out().view(*y.shape[:2], -1)


def lorsa_activations(
    lorsa: Lorsa,
    y: Float[Tensor, "batch pos d_model"],
    pattern: Float[Tensor, "*batch head query key"],
) -> Float[Tensor, "batch pos feature"]:
    """Return the activation of every Lorsa head that looks by a pattern."""
    pre = lorsa.mixed(y, pattern).flatten(0, 1)
    return (lorsa.gate(pre) * pre).view(*y.shape[:2], -1)


def joining(
    raw: Float[Tensor, "batch pos d_model"], post: Norm | None
) -> Float[Tensor, "batch pos d_model"]:
    """Return what an output adds to the stream, a norm after it computing its own scale."""
    return raw if post is None else post.apply(raw, post.scale(raw))


def recorded_pattern(run: Run, number: int) -> Float[Tensor, "head query key"]:
    """Return the pattern of the model's own heads in a run, also where Lorsa reads the layer."""
    block = run.weights.layers[number]
    if not isinstance(block.attention, Lorsa):
        return run.layers[number].attention.pattern
    stream = run.residuals[2 * number]
    norm = block.attention_norm
    return block.heads.query_key.pattern(norm.apply(stream, norm.scale(stream)))
