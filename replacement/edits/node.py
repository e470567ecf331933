"""Which part of a run is meant: a row of the node table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from replacement.held import Sublayer

SOURCES = ("token", "position")
SUBLAYERS = {"neuron": "mlp", "skip": "mlp", "feature": "mlp", "head": "attn", "lorsa": "attn"}
"""Where a node is if nothing is said."""


class Node(NamedTuple):
    """One node, by the columns of the node table that say which it is.

    `sublayer` "" stands for the MLP (feature, neuron, skip, error) or attention (head, lorsa),
    layer -1 for none (token, position), pos None for wherever the edit says.

    >>> Node("feature", layer=3, index=512).placed(14)
    Node(kind='feature', layer=3, sublayer='mlp', pos=14, index=512)
    """

    kind: str
    layer: int = -1
    sublayer: str = ""
    pos: int | None = None
    index: int = -1

    def placed(self, pos: int) -> "Node":
        """Return the node at a position, with its sublayer written out."""
        if self.kind in SOURCES:
            return Node(self.kind, pos=pos)
        if self.kind in ("skip", "error"):
            return self._replace(pos=pos, sublayer=self.sublayer or "mlp", index=-1)
        sublayer = self.sublayer or SUBLAYERS.get(self.kind, "")
        return self._replace(pos=pos, sublayer=sublayer)


def nodes_of(given: Any) -> list[Node]:
    """Return the nodes of a node, a sequence of nodes, or rows of a node table.

    Raises TypeError for anything else, ValueError for none.
    """
    if isinstance(given, Node):
        return [given]
    if hasattr(given, "itertuples") and set(Node._fields) <= set(given.columns):
        given = [Node(*row) for row in given[list(Node._fields)].itertuples(index=False)]
    if not isinstance(given, Sequence) or not all(isinstance(one, Node) for one in given):
        raise TypeError(
            f"an edit is of nodes: a Node, a list of them, or rows of circuit.nodes; got "
            f"{type(given).__name__}: {given!r:.60}. For instance "
            'Node("feature", layer=1, index=512, pos=-1).'
        )
    if not given:
        raise ValueError("an edit of no nodes changes nothing. Give one Node or more.")
    return list(given)


def number_of(layer: Sublayer, node: Node) -> int:
    """Return the number of a node among those of its sublayer; ValueError if the run lacks it."""
    assert node.pos is not None, "rows of a node table have a position"
    number = layer.find(node.kind, node.pos, node.index)
    if number < 0:
        raise ValueError(
            f"{node.kind} {node.index} of layer {node.layer} is not active at position "
            f"{node.pos} of this run, so it cannot be knocked out. Another model or prompt?"
        )
    return number
