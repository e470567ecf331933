"""Components of a model and the edges between them: what every truth and every score is about.

A component writes once to the residual stream of every position: the `input` (tokens and
positions), a head, or an MLP. It reads what all components before it wrote: a head by q, k and v,
an MLP by `mlp`, the `output` (the logits) by `out`.
"""

from typing import NamedTuple


class Component(NamedTuple):
    """A part of the model that writes to the residual stream, or the output.

    >>> print(Component("head", 1, 0), Component("mlp", 0), Component("input"))
    head 1.0 mlp 0 input
    """

    kind: str
    """ "input", "head", "mlp" or "output"."""
    layer: int = -1
    index: int = -1

    def __str__(self) -> str:
        numbers = ".".join(str(number) for number in self[1:] if number >= 0)
        return f"{self.kind} {numbers}".strip()


class Edge(NamedTuple):
    """What one component gets from another, by one of its inputs.

    >>> print(Edge(Component("input"), Component("head", 1, 0), "q"))
    input → head 1.0 q
    """

    writer: Component
    reader: Component
    via: str
    """ "q", "k", "v", "mlp" or "out"."""

    def __str__(self) -> str:
        return f"{self.writer} → {self.reader} {self.via}"


def writers_of(n_layers: int, n_heads: int) -> list[Component]:
    """Return every component that writes, in the order they write.

    >>> [str(one) for one in writers_of(1, 2)]
    ['input', 'head 0.0', 'head 0.1', 'mlp 0']
    """
    found = [Component("input")]
    for layer in range(n_layers):
        found += [Component("head", layer, index) for index in range(n_heads)]
        found.append(Component("mlp", layer))
    return found


def edges_of(n_layers: int, n_heads: int) -> list[Edge]:
    """Return every edge of a model with blocks of heads and, behind them, an MLP.

    >>> len(edges_of(1, 1)), len(edges_of(3, 1))
    (8, 46)
    """
    found: list[Edge] = []
    writers = writers_of(n_layers, n_heads)
    for reader in [*writers[1:], Component("output")]:
        ways = {"head": "qkv", "mlp": ("mlp",), "output": ("out",)}[reader.kind]
        before = [one for one in writers if _writes_before(one, reader)]
        found += [Edge(writer, reader, via) for via in ways for writer in before]
    return found


def _writes_before(writer: Component, reader: Component) -> bool:
    if reader.kind == "output":
        return True
    return writer.layer < reader.layer or (
        writer.layer == reader.layer and writer.kind == "head" and reader.kind == "mlp"
    )
