"""What an edit is: nodes, what becomes of them, and at which positions."""

from dataclasses import dataclass
from typing import Any

EVERYWHERE = "all"


@dataclass(frozen=True, eq=False)
class Set:
    """Nodes clamped to a value: a number; for a head d_head numbers, else a vector of d_model.

    A feature, neuron or Lorsa head is its activation; a head what its pattern mixed, in front of
    W_O; a skip or error what it adds to the sublayer's output (in front of a norm after it); a
    token or position its embedding. `nodes`: a `Node`, a list, or rows of `circuit.nodes`.
    `positions`: one, a list, a slice or "all"; without them those of the nodes. A slice without end
    and "all" hold for tokens generated later too.
    """

    nodes: Any
    value: Any
    positions: Any = None


@dataclass(frozen=True, eq=False)
class Scale:
    """Nodes clamped to `factor` times what they were in the run; as they come, in new tokens."""

    nodes: Any
    factor: Any
    positions: Any = None


@dataclass(frozen=True, eq=False)
class Ablate:
    """Nodes clamped to 0, to what they were in another run, or to their mean over several.

    `to`: "zero", a run, or a list of runs; positions aligned by index. In new tokens the mean is
    over all positions.
    """

    nodes: Any
    to: Any = "zero"
    positions: Any = None


@dataclass(frozen=True, eq=False)
class Add:
    """Nodes increased by `amount`, a number or vector as in `Set`; they still react."""

    nodes: Any
    amount: Any
    positions: Any = None


@dataclass(frozen=True, eq=False)
class SetPattern:
    """Where a head looks, clamped: `weights` over the keys, one row for all or for each query.

    `head`: of the model's heads, or of Lorsa's query-key heads where the layer is read through
    Lorsa. `queries`: positions as in `Set`.
    """

    layer: Any
    head: Any
    weights: Any
    queries: Any = EVERYWHERE


Edit = Set | Scale | Ablate | Add | SetPattern
