"""The effect of every edge of a small model, one by one: the truth that scores are compared with.

An edge is cut by giving its reader, in place of what the writer wrote in this very pass, what it
wrote for the counterfactual ("resample") or nothing ("zero"); every other reader gets the writer's
own, and everything downstream reacts. All positions of an edge are cut together.

This is the slow reference: a forward pass of components, written without hooks, that keeps every
component's output apart, and one row of the batch per edge. Small models and float64 only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.truth.components import Component, Edge, edges_of, writers_of
from benchmarks.truth.program import Pair
from replacement.families import HeadWeights
from replacement.model import ReplacementModel
from replacement.norms import Norm
from replacement.run import Run
from replacement.weights import LayerWeights

Ablation = Literal["resample", "zero"]
AT_ONCE = 256
"""Edges cut in one pass, each in a row of its own."""


class Pass(NamedTuple):
    """One forward pass of a batch."""

    logits: Float[Tensor, "batch d_vocab"]
    """At the last position."""
    outputs: Float[Tensor, "writer batch pos d_model"]
    patterns: list[Float[Tensor, "batch head query key"]]
    """One a layer."""


@dataclass(frozen=True, eq=False)
class ComponentModel:
    """A model as components, each of which reads sums of what the components before it wrote."""

    model: ReplacementModel

    def __post_init__(self) -> None:
        """Raise ValueError unless every part of the model is a head or neurons that add up."""
        weights = self.model.weights
        for block in weights.layers:
            if block.attention is not None or not block.mlp.exact or weights.streams:
                raise ValueError(
                    f"{self.model!r} is read through trained layers; its components are heads and "
                    'MLPs. Load it with attention="heads", mlp="neurons".'
                )
            if block.parallel or block.attention_post_norm or block.mlp_post_norm:
                raise ValueError(
                    f"{self.model!r} has parallel blocks or norms behind its sublayers, so that "
                    "its heads and MLPs do not each add to the stream in turn. Give one without."
                )

    @property
    def n_heads(self) -> int:
        return self.model.weights.layers[0].heads.n_heads

    @property
    def writers(self) -> list[Component]:
        return writers_of(self.model.weights.n_layers, self.n_heads)

    @property
    def edges(self) -> list[Edge]:
        return edges_of(self.model.weights.n_layers, self.n_heads)

    def run(self, token_ids: Sequence[int]) -> Run:
        """Return the recorded run of a prompt; recorded once where it is asked for again soon."""
        return _run(self.model, tuple(token_ids))

    def difference(self, pair: Pair) -> Float[Tensor, ""]:
        """Return by how much the pair's metric is larger in the clean run."""
        clean, other = (self.run(ids).logits[-1:] for ids in (pair.clean, pair.other))
        return (pair.metric(clean) - pair.metric(other))[0]

    def entering(self, token_ids: Sequence[int]) -> Float[Tensor, "pos d_model"]:
        """Return what the input writes: token and position embeddings as they enter layer 0."""
        return self.run(token_ids).residuals[0]

    @torch.no_grad()
    def forward(
        self,
        entering: Float[Tensor, "pos d_model"],
        cuts: list[list[Edge]],
        instead: Float[Tensor, "writer pos d_model"] | None = None,
        patterns: list[Float[Tensor, "one head query key"]] | None = None,
    ) -> Pass:
        """Return one pass with a row a list of `cuts`.

        `instead`: what readers get over cut edges from every writer; None for nothing (zeros).
        `patterns`: held in place of the row's own.
        """
        place = {one: number for number, one in enumerate(self.writers)}
        written = entering.new_zeros(len(place), len(cuts), *entering.shape)
        written[0] = entering
        always = torch.zeros_like(entering)
        looked = []

        def read(reader: Component, via: str) -> Float[Tensor, "batch pos d_model"]:
            stream = always + written.sum(0)
            for row, edges in enumerate(cuts):
                for edge in edges:
                    if (edge.reader, edge.via) == (reader, via):
                        number = place[edge.writer]
                        given = 0.0 if instead is None else instead[number]
                        stream[row] += given - written[number, row]
            return stream

        for layer, block in enumerate(self.model.weights.layers):
            heads = [Component("head", layer, index) for index in range(self.n_heads)]
            looks, moved = [], []
            for head in heads:
                norm, index = block.attention_norm, head.index
                by = {via: _normed(norm, read(head, via)) for via in "qkv"}
                if patterns is None:
                    looks.append(_pattern(block, index, by["q"], by["k"]))
                else:
                    looks.append(patterns[layer][:, index].expand(len(cuts), -1, -1))
                moved.append(_moved(block.heads, index, looks[-1], by["v"]))
            # only now: heads of one layer read nothing of one another
            written[place[heads[0]] : place[heads[-1]] + 1] = torch.stack(moved)
            if block.heads.output_bias is not None:
                always = always + block.heads.output_bias
            looked.append(torch.stack(looks, dim=1))
            mlp = Component("mlp", layer)
            written[place[mlp]] = block.mlp.forward(_normed(block.mlp_norm, read(mlp, "mlp")))
        weights = self.model.weights
        last = _normed(weights.final_norm, read(Component("output"), "out"))[:, -1]
        logits = last @ weights.unembedding.T
        if weights.unembedding_bias is not None:
            logits = logits + weights.unembedding_bias
        return Pass(logits, written, looked)


@lru_cache(maxsize=64)
def _run(model: ReplacementModel, token_ids: tuple[int, ...]) -> Run:
    return model.run(list(token_ids))


def _normed(
    norm: Norm, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    return norm.apply(x, norm.scale(x))


def _pattern(
    block: LayerWeights,
    head: int,
    at_query: Float[Tensor, "batch pos d_model"],
    at_key: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch query key"]:
    look = block.heads.query_key
    queries = look.queries(at_query)[:, head]
    keys = look.keys(at_key)[:, look.key_head(head)]
    scores = look.scale * queries @ keys.transpose(1, 2)
    if look.soft_cap is not None:
        scores = look.soft_cap * torch.tanh(scores / look.soft_cap)
    hidden = ~look.visible(scores.shape[-1], scores.device)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def _moved(
    heads: HeadWeights,
    head: int,
    pattern: Float[Tensor, "batch query key"],
    at_value: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch query d_model"]:
    values = heads.values(at_value)[:, :, head // heads.group]
    return pattern @ values @ heads.output_of_head[head]


def edge_effects(
    components: ComponentModel,
    pair: Pair,
    ablation: Ablation = "resample",
    *,
    frozen: bool = False,
) -> Float[Tensor, " edge"]:
    """Return what cutting each edge alone does to the metric, in the order of `components.edges`.

    `frozen`: attention patterns are those of the clean run, so that edges by q and k do nothing.
    """
    entering = components.entering(pair.clean)
    clean = components.forward(entering, [[]])
    instead = None
    if ablation == "resample":
        instead = components.forward(components.entering(pair.other), [[]]).outputs[:, 0]
    patterns = clean.patterns if frozen else None
    found, edges = [], components.edges
    for first in range(0, len(edges), AT_ONCE):
        cuts = [[edge] for edge in edges[first : first + AT_ONCE]]
        cut = components.forward(entering, cuts, instead, patterns)
        found.append(pair.metric(cut.logits) - pair.metric(clean.logits))
    return torch.cat(found)


def edge_truth(
    effects: Float[Tensor, "pair edge"], differences: Float[Tensor, " pair"], tolerance: float
) -> Bool[Tensor, " edge"]:
    """Return which edges matter: |effect| of a pair exceeds `tolerance` of the mean difference.

    `differences`: the metric of the clean run less that of the counterfactual, by pair.
    """
    return (effects.abs() > tolerance * differences.abs().mean()).any(0)
