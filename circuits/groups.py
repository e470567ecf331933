"""What a test of a circuit is asked for: which of its nodes go together."""

from collections.abc import Mapping, Sequence
from typing import Any

from graphs.graph import Graph
from graphs.names import node_names

TESTED = ("token", "position", "feature", "neuron", "lorsa", "head", "skip", "error")


def check_test(scale: Any, random: Any, batch: Any) -> None:
    """Raise ValueError for a scale, a number of random sets or a batch that makes no sense."""
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"circuit.test(batch={batch!r}): how many at once, 1 or more.")
    if not isinstance(scale, int | float) or not abs(scale) < float("inf"):
        raise ValueError(
            f"circuit.test(scale={scale!r}): a finite factor on what nodes were; 0 knocks out."
        )
    if not isinstance(random, int) or isinstance(random, bool) or random < 0:
        raise ValueError(f"circuit.test(random={random!r}): how many random sets, 0 or more.")


def grouped(graph: Graph, groups: Any) -> dict[str, list[int]]:
    """Return sets of nodes as numbers, by name.

    Raises TypeError or ValueError for a node that the graph has not or has twice in a group, a kind
    that cannot be knocked out, and groups that are no lists of nodes.
    """
    if groups is None:
        return {}
    named = groups
    if not isinstance(groups, Mapping):
        if isinstance(groups, str) or not isinstance(groups, Sequence):
            raise TypeError(
                f"groups of nodes are lists of node numbers or names; got {groups!r:.60}. For "
                "instance [[3, 17], [5]]."
            )
        named = {f"group {number}": group for number, group in enumerate(groups)}
    numbers = dict(zip(node_names(graph), graph.nodes.index.tolist(), strict=True))
    kinds = graph.nodes["kind"].to_dict()
    found = {}
    for name, group in named.items():
        if isinstance(group, str) or not isinstance(group, Sequence) or not group:
            raise TypeError(
                f"{name} is {group!r:.60}: a list of one node or more is needed, by number or name."
            )
        members = [numbers.get(one, one) for one in group]
        wrong = [one for one in members if kinds.get(one) not in TESTED]
        if wrong:
            raise ValueError(
                f"{name}: {wrong[0]!r} is no node of this circuit that can be knocked out. Numbers "
                "are the index of circuit.nodes; bias, pruned and target rows are no nodes."
            )
        if len(set(members)) < len(members):
            raise ValueError(f"{name} has a node twice: {list(group)!r:.60}. Name each once.")
        found[str(name)] = members
    return found


def labelled(graph: Graph, labels: Mapping[int, str]) -> Graph:
    """Return the graph with these labels of nodes; KeyError for a number that is no node."""
    nodes = graph.nodes
    unknown = [number for number in labels if number not in nodes.index]
    if unknown:
        raise KeyError(
            f"circuit.label(...): {unknown[0]!r} is no node here. Give numbers of the node table, "
            f"for instance {{{graph.target}: 'what is explained'}}."
        )
    for number, label in labels.items():
        nodes.loc[number, "label"] = label
    return Graph(nodes, graph.edges, graph.meta)


def with_groups(graph: Graph, groups: Mapping[str, Sequence[int]]) -> Graph:
    """Return the graph with these groups noted; ValueError for a stranger or one in two groups."""
    given = [{"label": label, "nodes": list(ids)} for label, ids in groups.items()]
    numbers = [number for one in given for number in one["nodes"]]
    unknown = sorted(set(numbers) - set(graph.nodes.index.tolist()))
    if unknown or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"circuit.group(...): not in this circuit: {unknown[:5] or 'none'}; in two "
            f"groups: {sorted({n for n in numbers if numbers.count(n) > 1})[:5] or 'none'}. A "
            "node is in one group at most."
        )
    return graph.noted(groups=given)
