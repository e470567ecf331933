"""Published circuits as named sets of heads and MLPs: they differ, so a score needs its set's name.

`published.json` holds what papers and authors' code say, roles as they name them.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SHAPES = {"gpt2-small": (12, 12), "attn-only-4l": (4, 8)}


@dataclass(frozen=True)
class PublishedCircuit:
    """The parts of one published circuit."""

    name: str
    task: str
    model: str
    source: str
    roles: dict[str, tuple[tuple[int, int], ...]]
    """(layer, head) by role; "all" where the source names none."""
    mlps: tuple[int, ...]
    group_edges: tuple[tuple[str, str, str], ...] = ()
    """From group (or head) to group, and by which of q, k, v, where the source says."""
    n_edges: int | None = None
    """Edges of the source's own graph that its groups stand for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and heads of each, of the model it is of."""
        return SHAPES[self.model]

    @property
    def heads(self) -> frozenset[tuple[int, int]]:
        """All (layer, head), whatever their role."""
        return frozenset(head for heads in self.roles.values() for head in heads)


@cache
def published_circuits() -> dict[str, PublishedCircuit]:
    """Return every published circuit by name.

    >>> len(published_circuits()["IOI, Wang et al. paper"].heads)
    26
    """
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    found = [
        PublishedCircuit(
            row["name"],
            row["task"],
            row["model"],
            row["source"],
            {role: tuple(map(_head, heads)) for role, heads in row["heads"].items()},
            tuple(row["mlps"]),
            tuple((one, other, by) for one, other, by in row.get("group_edges", ())),
            row.get("n_edges"),
        )
        for row in rows
    ]
    return {one.name: one for one in found}


def _head(name: str) -> tuple[int, int]:
    layer, head = name.split(".")
    return int(layer), int(head)
