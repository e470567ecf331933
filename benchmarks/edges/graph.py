"""The component graph of a transformer: numbered edges from every writer to every later reader."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

WAYS = ("q", "k", "v")


@dataclass(frozen=True)
class EdgeGraph:
    """Nodes `input`, heads, MLPs, `output`; edges in a fixed order.

    Readers come in groups, one a sublayer: attention of layer `l` is group `2·l` (the heads'
    queries, then keys, then values), its MLP group `2·l + 1`, the output group `2·n_layers`. All
    readers of a group read the same writers, the first `n_visible` of them, so that edges of a
    group are a table `[reader, writer]`; edges are numbered group by group, row by row.

    >>> graph = EdgeGraph(n_layers=1, n_heads=1)
    >>> graph.names
    ['input->a0.h0<q>', 'input->a0.h0<k>', 'input->a0.h0<v>', 'input->m0', 'a0.h0->m0', \
'input->output', 'a0.h0->output', 'm0->output']
    """

    n_layers: int
    n_heads: int
    parallel: bool = False
    """True where the MLP reads the stream that attention reads."""

    @property
    def n_groups(self) -> int:
        return 2 * self.n_layers + 1

    @property
    def n_writers(self) -> int:
        return self.n_visible(2 * self.n_layers)

    @property
    def n_edges(self) -> int:
        return len(self.writer)

    def n_readers(self, group: int) -> int:
        """Return how many readers a group has."""
        attention = group < 2 * self.n_layers and group % 2 == 0
        return 3 * self.n_heads if attention else 1

    def n_parts(self, group: int) -> int:
        """Return after how many writing sublayers (the input is one) a group reads."""
        return group if self.parallel and group % 2 else group + 1

    def n_visible(self, group: int) -> int:
        """Return how many writers a group reads: the input and all earlier heads and MLPs."""
        layers, halves = divmod(self.n_parts(group) - 1, 2)
        return 1 + layers * (self.n_heads + 1) + halves * self.n_heads

    def edges_of(self, group: int) -> slice:
        """Return the numbers of a group's edges."""
        return slice(self._starts[group], self._starts[group + 1])

    def table(
        self, values: Float[Tensor, "*batch edge"], group: int
    ) -> Float[Tensor, "*batch reader writer"]:
        """Return a value per edge as the table of one group."""
        return values[..., self.edges_of(group)].unflatten(-1, (-1, self.n_visible(group)))

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for group in range(self.n_groups):
            starts.append(starts[-1] + self.n_readers(group) * self.n_visible(group))
        return starts

    @cached_property
    def writers(self) -> list[str]:
        """Names of the writers, in the order they write."""
        return [
            "input",
            *(
                name
                for layer in range(self.n_layers)
                for name in (*(f"a{layer}.h{head}" for head in range(self.n_heads)), f"m{layer}")
            ),
        ]

    @cached_property
    def nodes(self) -> list[str]:
        """Names of all nodes: the writers, then the output."""
        return [*self.writers, "output"]

    @cached_property
    def _rows(self) -> list[tuple[int, int, str]]:
        """Every edge as (writer, node that reads, via)."""
        rows = []
        for group in range(self.n_groups):
            layer, is_mlp = divmod(group, 2)
            for number in range(self.n_readers(group)):
                if group == 2 * self.n_layers:
                    node, via = self.n_writers, "residual"
                elif is_mlp:
                    node, via = (layer + 1) * (self.n_heads + 1), "mlp"
                else:
                    node = 1 + layer * (self.n_heads + 1) + number % self.n_heads
                    via = WAYS[number // self.n_heads]
                rows += [(writer, node, via) for writer in range(self.n_visible(group))]
        return rows

    @cached_property
    def writer(self) -> Int[Tensor, " edge"]:
        """The node that each edge starts at."""
        return torch.tensor([writer for writer, _, _ in self._rows])

    @cached_property
    def reader(self) -> Int[Tensor, " edge"]:
        """The node that each edge ends at (`n_writers`: the output)."""
        return torch.tensor([reader for _, reader, _ in self._rows])

    @cached_property
    def via(self) -> list[str]:
        """What carries each edge: q, k, v, mlp, or residual into the output."""
        return [via for _, _, via in self._rows]

    @cached_property
    def names(self) -> list[str]:
        """Names such as `a0.h1->a2.h3<q>`."""
        return [
            f"{self.nodes[writer]}->{self.nodes[reader]}" + (f"<{via}>" if via in WAYS else "")
            for writer, reader, via in self._rows
        ]

    def edge(self, name: str) -> int:
        """Return the number of an edge; KeyError for a name that is none."""
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def connected(self, mask: Bool[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
        """Return the edges of a circuit that lie on a path from the input to the output within it.

        MIB's pruning: nodes that nothing enters, or that lead nowhere, go with their edges.
        """
        fed = torch.zeros(self.n_writers + 1, dtype=torch.bool)
        fed[0] = True
        for number in mask.nonzero().flatten().tolist():  # edges are in topological order
            fed[self.reader[number]] |= fed[self.writer[number]]
        leads = torch.zeros_like(fed)
        leads[self.n_writers] = True
        for number in reversed(mask.nonzero().flatten().tolist()):
            leads[self.writer[number]] |= leads[self.reader[number]]
        return mask & fed[self.writer] & leads[self.reader]
