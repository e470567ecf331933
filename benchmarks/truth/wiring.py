"""A program as named variables, and heads and neurons that read and write them.

A variable is a few directions of the residual stream. A head or a group of neurons says which
variables it reads and writes, and by which small matrices; every other weight is zero. So which
edges a program uses is read off its wiring (`used_edges`), and `compiling.py` makes a model of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.truth.components import Component, Edge, edges_of

ONE = "one"
"""What is read of it is a bias."""
Matrices = Mapping[str, Float[Tensor, "_ _"]]
"""By variable: what is read of it [width, channel], or written to it [channel, width]."""


@dataclass(frozen=True)
class Head:
    """An attention head: which variables make its queries, keys and values, and where these go."""

    layer: int
    query: Matrices
    key: Matrices
    value: Matrices
    writes: Matrices


@dataclass(frozen=True)
class Neurons:
    """Neurons `relu(reads)` of one MLP, and what each writes."""

    layer: int
    reads: Matrices
    writes: Matrices


@dataclass(frozen=True)
class Wiring:
    """A program; `token` and `position` are one-hot, `answer` is what logits are made of."""

    vocabulary: Sequence[str]
    n_positions: int
    variables: Mapping[str, int]
    """Width of every variable of its own."""
    heads: Sequence[Head] = ()
    neurons: Sequence[Neurons] = ()

    @property
    def widths(self) -> dict[str, int]:
        """Width of every variable, `token`, `position` and `answer` included."""
        size = len(self.vocabulary)
        return {"token": size, "position": self.n_positions, **self.variables, "answer": size}

    @property
    def n_layers(self) -> int:
        return 1 + max(part.layer for part in (*self.heads, *self.neurons))

    @property
    def most_heads(self) -> int:
        """How many heads the layer with most of them has."""
        return max(1, *(len(self.heads_of(layer)) for layer in range(self.n_layers)))

    def heads_of(self, layer: int) -> list[Head]:
        """Return the heads of a layer; their place in the list is their number."""
        return [head for head in self.heads if head.layer == layer]

    def neurons_of(self, layer: int) -> list[Neurons]:
        """Return the groups of neurons that make up the MLP of a layer."""
        return [group for group in self.neurons if group.layer == layer]

    def span(self, name: str) -> slice:
        """Return the coordinates of a variable among those of all."""
        names = list(self.widths)
        start = sum(self.widths[one] for one in names[: names.index(name)])
        return slice(start, start + self.widths[name])

    def reading(self, matrices: Matrices) -> Float[Tensor, "coordinate channel"]:
        """Return what channels read of every coordinate, biases left out."""
        channels = next((one.shape[1] for one in matrices.values()), 1)
        made = torch.zeros(sum(self.widths.values()), channels, dtype=torch.float64)
        for name, matrix in matrices.items():
            if name != ONE:
                made[self.span(name)] = matrix
        return made

    def writing(self, matrices: Matrices) -> Float[Tensor, "channel coordinate"]:
        """Return what channels write to every coordinate."""
        return self.reading({name: one.T for name, one in matrices.items()}).T

    def sharpened(self, factor: int | float) -> "Wiring":
        """Return the same with every head's scores times `factor`."""
        heads = [
            replace(head, query={name: factor * one for name, one in head.query.items()})
            for head in self.heads
        ]
        return replace(self, heads=heads)


def used_edges(wiring: Wiring, n_heads: int) -> set[Edge]:
    """Return the edges whose writer writes a coordinate that its reader reads.

    What any cut can find is among them; which of them a given pair of prompts uses is not said.
    `n_heads`: heads of a layer of the model, idle and dummy ones included.
    """
    given = torch.zeros(sum(wiring.widths.values()), dtype=torch.bool)
    given[wiring.span("token")] = given[wiring.span("position")] = True
    asked = torch.zeros_like(given)
    asked[wiring.span("answer")] = True
    writes, reads = {Component("input"): given}, {(Component("output"), "out"): asked}
    for layer in range(wiring.n_layers):
        for index, head in enumerate(wiring.heads_of(layer)):
            component = Component("head", layer, index)
            writes[component] = wiring.writing(head.writes).any(0)
            for via, matrices in zip("qkv", (head.query, head.key, head.value), strict=True):
                reads[component, via] = wiring.reading(matrices).any(1)
        if groups := wiring.neurons_of(layer):
            mlp = Component("mlp", layer)
            writes[mlp] = torch.cat([wiring.writing(one.writes) for one in groups]).any(0)
            reads[mlp, "mlp"] = torch.cat([wiring.reading(one.reads) for one in groups], 1).any(1)
    return {
        edge
        for edge in edges_of(wiring.n_layers, n_heads)
        if edge.writer in writes
        and (edge.reader, edge.via) in reads
        and bool((writes[edge.writer] & reads[edge.reader, edge.via]).any())
    }
