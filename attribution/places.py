"""Where features read and write, by the weights alone: the input-invariant half of an edge (2.7).

Norm gains and centring are folded in, before a sublayer and behind it; what a run would bring
(denominators, patterns, activations, gates) is left out. What a feature reads it reads `via` the
residual stream, via the other branch of a gated MLP ("gate"), or via one of the model's heads.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from graphs.names import row_names
from graphs.nodes import node_table
from replacement.families import HeadWeights
from replacement.held import NAMES
from replacement.layers import AttentionSAE, FeatureLayer, HalvedNeurons
from replacement.norms import NO_NORM, Norm
from replacement.prompts import whole_number
from replacement.weights import LayerWeights, ModelWeights

RESIDUAL, GATE = "residual", "gate"
_NAME = re.compile(r"L(\d+)\.(?:(attn|mlp|resid|mid)\.)?(f|n|lorsa )(\d+)(?:@\d+)?")


class Feature(NamedTuple):
    """A feature, neuron or Lorsa head, at no position in particular."""

    layer: int
    sublayer: str
    index: int


class Head(NamedTuple):
    """One of the model's own heads."""

    layer: int
    index: int

    @property
    def via(self) -> str:
        return f"L{self.layer}.head {self.index}"


class Branch(NamedTuple):
    """One way in which the features of a sublayer read: `rows` of the normed stream."""

    via: str
    norm: Norm
    rows: Float[Tensor, "feature d_model"]
    head: Head | None
    """The model's head that an attention SAE's features read through, in their own layer."""


@dataclass(frozen=True, eq=False)
class Place:
    """The features of one sublayer: at which stage they read, and at which they write."""

    layer: int
    name: str
    features: FeatureLayer
    reads_at: int
    write_stages: tuple[int, ...]
    joints: tuple[Norm | None, ...]
    """The norm behind each of the sublayers written to."""
    branches: tuple[Branch, ...]
    replaces: bool = False
    """True if the stream behind it is what it wrote (a residual SAE)."""

    @property
    def n_features(self) -> int:
        return self.features.n_features

    def rows(self, index: Sequence[int] | np.ndarray) -> pd.DataFrame:
        """Return kind, layer, sublayer, index and name of some of its features."""
        count = len(index)
        table = node_table(
            {
                "kind": [self.features.kind] * count,
                "layer": np.full(count, self.layer),
                "sublayer": [self.name] * count,
                "index": np.asarray(index, dtype=np.int64),
            }
        )
        named = table[["kind", "layer", "sublayer", "index"]].reset_index(drop=True)
        return named.assign(name=row_names(table))


class Places:
    """All places of a model, and which writer's output is there at which stage."""

    def __init__(self, weights: ModelWeights) -> None:
        self.weights = weights
        self.every = sorted(_places(weights), key=lambda one: (one.write_stages[0], one.replaces))

    def named(self, layer: Any, sublayer: Any) -> Place:
        """Return the place of a layer and sublayer; ValueError where it has no features."""
        for place in self.every:
            if (place.layer, place.name) == (whole_number(layer), sublayer):
                return place
        there = ", ".join(f"({place.layer}, {place.name!r})" for place in self.every)
        raise ValueError(
            f"layer {layer!r}, sublayer {sublayer!r}: no features are there. This model has "
            f"features in {there or 'no sublayer'}; heads and skips have no weight of their own."
        )

    def feature(self, given: Any) -> Feature:
        """Return the feature meant by a name ("L1.f512"), a row of a node table, or numbers.

        Numbers are (layer, index), of an MLP, or (layer, sublayer, index). Raises ValueError or
        TypeError for what is no feature of this model, IndexError for a number it does not have.
        """
        layer, sublayer, index = _parts(given)
        place, number = self.named(layer, sublayer), whole_number(index)
        if number is None or not 0 <= number < place.n_features:
            raise IndexError(
                f"{_shown(given)}: {place.name} of layer {place.layer} has {place.n_features} "
                "features, numbered from 0."
            )
        return Feature(place.layer, place.name, number)

    def heads(self) -> Iterator[Head]:
        """Yield the model's heads, where they are what attention is read as."""
        for layer, block in enumerate(self.weights.layers):
            if block.attention is None:
                yield from (Head(layer, number) for number in range(block.heads.n_heads))

    def visible(self, place: Place, stage: int, *, front: bool = False) -> list[int]:
        """Return which of a place's writes are in the stream that is read at `stage`.

        `front`: of the stream in front of what replaces it there.
        """
        replaced = [one for one in self.weights.streams if one < stage + (not front)]
        last = max(replaced, default=-1)
        if place.replaces:
            return [0] if place.write_stages[0] == last else []
        return [number for number, own in enumerate(place.write_stages) if last < own <= stage]

    def sees(self, head: Head, place: Place) -> bool:
        """Whether what a head wrote is in the stream that a place's features read."""
        written, front = 2 * head.layer + 1, place.replaces
        last = max(
            (one for one in self.weights.streams if one < place.reads_at + (not front)), default=-1
        )
        return last < written <= place.reads_at

    def pulled(self, branch: Branch, rows: Tensor) -> Float[Tensor, "row d_model"]:
        """Return how rows of a branch read the stream that its place reads."""
        if branch.head is None:
            return branch.norm.pull(rows)
        return self._before(branch.head, rows)

    def before(
        self, head: Head, vectors: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row d_model"]:
        """Return how vectors that read what a head added to the stream read what it read."""
        post = self.weights.layers[head.layer].attention_writes_through
        return self._before(head, vectors if post is None else post.pull(vectors))

    def behind(
        self, head: Head, vectors: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row d_model"]:
        """Return what a head adds to the stream of what was written: `before` transposed."""
        post = self.weights.layers[head.layer].attention_writes_through
        moved = self._behind(head, vectors)
        return moved if post is None else post.unscaled(moved)

    def read(
        self, branch: Branch, vectors: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row feature"]:
        """Return what all features of a branch's place read of vectors in the stream."""
        if branch.head is None:
            return branch.norm.unscaled(vectors) @ branch.rows.T
        return self._behind(branch.head, vectors) @ branch.rows.T

    def added(
        self, place: Place, index: Int[Tensor, " row"], number: int
    ) -> Float[Tensor, "row d_model"]:
        """Return what features add to the stream by one of their writes."""
        joint, rows = place.joints[number], place.features.write_to(number)[index]
        return rows if joint is None else joint.unscaled(rows)

    def met(
        self, place: Place, number: int, vectors: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row feature"]:
        """Return what reading vectors get of one of the writes of all features of a place."""
        joint = place.joints[number]
        seen = vectors if joint is None else joint.pull(vectors)
        return seen @ place.features.write_to(number).T

    def _before(self, head: Head, at_output: Tensor) -> Tensor:
        block, heads, of_values = self._head(head)
        reading = at_output @ heads.output_of_head[head.index].T
        return block.attention_norm.pull(reading @ of_values.T)

    def _behind(self, head: Head, vectors: Tensor) -> Tensor:
        block, heads, of_values = self._head(head)
        values = block.attention_norm.unscaled(vectors) @ of_values
        return values @ heads.output_of_head[head.index]

    def _head(self, head: Head) -> tuple[LayerWeights, HeadWeights, Tensor]:
        block = self.weights.layers[head.layer]
        of_values = block.heads.value_of_head[head.index // block.heads.group]
        return block, block.heads, of_values


def _parts(given: Any) -> tuple[Any, Any, Any]:
    """Layer, sublayer and index of whatever names a feature."""
    match given:
        case str():
            found = _NAME.fullmatch(given)
            if found is not None:
                usual = "attn" if found[3] == "lorsa " else "mlp"
                return int(found[1]), found[2] or usual, int(found[4])
        case pd.Series() if {"layer", "sublayer", "index"} <= set(given.index):
            return given["layer"], given["sublayer"], given["index"]
        case (layer, index):
            return layer, "mlp", index
        case (layer, sublayer, index):
            return layer, sublayer, index
    raise TypeError(
        f"{_shown(given)} names no feature. Give (layer, index) of an MLP, (layer, sublayer, "
        'index), a row of circuit.nodes, or a name: "L1.f512", "L1.n7", "L1.lorsa 3", "L1.attn.f5".'
    )


def _shown(given: Any) -> str:
    """What was given, in one line that is not long."""
    return " ".join(repr(given).split())[:80]


def _places(weights: ModelWeights) -> Iterator[Place]:
    for stage, sae in weights.streams.items():
        branch = Branch(RESIDUAL, NO_NORM, sae.read, None)
        name = NAMES[stage % 2]
        yield Place(stage // 2, name, sae, stage, (stage,), (None,), (branch,), replaces=True)
    for layer, block in enumerate(weights.layers):
        if block.attention is not None:
            yield _attention_place(layer, block)
        yield _mlp_place(layer, weights.layers)


def _attention_place(layer: int, block: LayerWeights) -> Place:
    features = block.attention
    assert features is not None
    norm = block.attention_norm
    branches = [Branch(RESIDUAL, norm, features.read, None)]
    if isinstance(features, AttentionSAE):
        heads = [Head(layer, number) for number in range(block.heads.n_heads)]
        branches = [Branch(head.via, norm, features.read, head) for head in heads]
    joints = (block.attention_writes_through,)
    stages = (2 * layer + 1,)
    return Place(layer, "attn", features, 2 * layer, stages, joints, tuple(branches))


def _mlp_place(layer: int, blocks: Sequence[LayerWeights]) -> Place:
    block, features = blocks[layer], blocks[layer].mlp
    reached = range(layer, layer + features.n_targets)
    branches = [Branch(RESIDUAL, block.mlp_reads_through, features.read, None)]
    if isinstance(features, HalvedNeurons):
        branches.append(Branch(GATE, block.mlp_reads_through, features.gate_read, None))
    return Place(
        layer,
        "mlp",
        features,
        2 * layer if block.parallel else 2 * layer + 1,
        tuple(2 * other + 2 for other in reached),
        tuple(blocks[other].mlp_writes_through for other in reached),
        tuple(branches),
    )
