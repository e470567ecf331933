"""Pruning: the smallest strong part, without loose ends, that still adds up."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies

from graphs import pruning
from graphs.example import worked_example
from graphs.graph import Graph
from graphs.nodes import INTERIOR, LEAVES, SOURCES
from graphs.pruning import prune
from tests.graphs import samples

EXACT = 1e-12
SHARES = strategies.floats(0.05, 1.0)
CLOSE_SHARES = np.linspace(0.3, 0.99, 40).tolist()


def edge_set(graph: Graph) -> set[tuple[int, int]]:
    return set(zip(graph.edges["source"].tolist(), graph.edges["target"].tolist(), strict=True))


@given(samples.recipes(), SHARES)
def test_both_laws_still_hold(recipe: samples.Recipe, share: float) -> None:
    graph = recipe.graph()
    small = prune(graph, share)
    assert small.conservation() < EXACT
    parts = small.explained()
    assert abs(parts.sum() - graph.value) <= EXACT * (parts.abs().sum() + 1)
    assert small.meta["pruned"] == share
    assert small.value == graph.value


@pytest.mark.parametrize("column", ["in_pruned", "out_pruned"])
def test_without_the_booking_the_laws_break(column: str) -> None:
    small = prune(worked_example(), 0.6)
    nodes = small.nodes
    assert nodes[column].abs().max() > 0
    nodes[column] = 0.0
    assert Graph(nodes, small.edges, small.meta).conservation() > 0.1
    graph = samples.circuit_like()
    small, nodes = prune(graph, 0.8), prune(graph, 0.8).nodes
    nodes[column] = graph.nodes[column].reindex(nodes.index)
    unbooked = Graph(nodes, small.edges, small.meta)
    assert unbooked.conservation() > 0.01
    assert abs(unbooked.explained().sum() - graph.value) > 0.01


@given(samples.recipes(), SHARES, SHARES)
def test_a_larger_share_keeps_all_that_a_smaller_one_does(
    recipe: samples.Recipe, a: float, b: float
) -> None:
    graph = recipe.graph()
    smaller, larger = prune(graph, min(a, b)), prune(graph, max(a, b))
    assert set(smaller.nodes.index) <= set(larger.nodes.index)
    assert edge_set(smaller) <= edge_set(larger)


def kept_edges(graph: Graph, share: float) -> set[tuple[int, int]]:
    return edge_set(prune(graph, share))


def ranked_among_the_remaining(graph: Graph, share: float) -> set[tuple[int, int]]:
    """The definition that seems natural, edges ranked among those that are left."""
    interior, (writer, reader) = graph.is_kind(*INTERIOR), graph.ends()
    nodes = ~interior
    nodes[interior] = pruning._strongest(np.abs(graph.column("attribution"))[interior], share)
    edges = nodes[writer] & nodes[reader]
    edges[edges] = pruning._strongest(np.abs(np.asarray(graph.edges["flow"]))[edges], share)
    _, edges = pruning._supported(graph, nodes, edges)
    return edge_set(Graph(graph.nodes, graph.edges.loc[edges], graph.meta))


@pytest.mark.parametrize(
    ("definition", "breaks"), [(kept_edges, 0), (ranked_among_the_remaining, 1)]
)
def test_monotone_over_close_shares(definition: Callable, breaks: int) -> None:
    """Also shows that the sweep finds the definition that is not monotone."""
    kept = [
        [definition(samples.random_graph(seed, 3, 7, 0.6), share) for share in CLOSE_SHARES]
        for seed in range(290, 300)
    ]
    broken = sum(any(not a <= b for a, b in pairwise(sets)) for sets in kept)
    assert bool(broken) == bool(breaks)


def test_monotone_with_leaf_rows() -> None:
    graph = samples.circuit_like()
    kept = [set(prune(graph, share).nodes.index) for share in np.linspace(0.05, 1, 20)]
    assert all(small <= large for small, large in pairwise(kept))
    assert len(kept[5]) < len(kept[-1])


@given(samples.recipes(), SHARES)
def test_nothing_dangles(recipe: samples.Recipe, share: float) -> None:
    graph = recipe.graph()
    small = prune(graph, share)
    kind = small.nodes["kind"]
    writers, readers = set(small.edges["source"]), set(small.edges["target"])
    assert set(kind.index[kind.isin(INTERIOR)]) <= writers & readers
    assert set(kind.index[kind.isin(SOURCES)]) <= writers
    assert small.target == graph.target


@given(samples.recipes())
def test_a_share_of_1_keeps_all_that_does_not_dangle(recipe: samples.Recipe) -> None:
    """Against the set of nodes on some path from a node that needs no edge in to the target."""
    graph = recipe.graph()
    import networkx

    network = networkx.DiGraph(list(edge_set(graph)))
    kind = graph.nodes["kind"].to_dict()
    network.add_nodes_from(kind)
    sources = [node for node in kind if kind[node] in SOURCES]
    reached = set().union(*(networkx.descendants(network, node) | {node} for node in sources))
    wanted = (networkx.ancestors(network, graph.target) & reached) | {graph.target}
    assert set(prune(graph, 1.0).nodes.index) == wanted


@given(samples.recipes(), SHARES)
def test_strong_nodes_are_kept_before_weak_ones(recipe: samples.Recipe, share: float) -> None:
    """Before loose ends are removed, kept nodes are the shortest beginning of the ranking."""
    graph = recipe.graph()
    strength = graph.nodes.loc[graph.is_kind(*INTERIOR), "attribution"].abs()
    strength = strength.sort_values(ascending=False)
    kept = strength.index.intersection(prune(graph, share).nodes.index)
    if len(kept):
        rank = max(strength.index.get_loc(node) for node in kept)
        assert strength.iloc[:rank].sum() < share * strength.sum() * (1 + 1e-12) or share == 1


@given(samples.recipes(), SHARES, strategies.integers(0, 2**32 - 1))
def test_row_order_and_node_numbers_do_not_matter(
    recipe: samples.Recipe, share: float, seed: int
) -> None:
    graph = recipe.graph()
    rng = np.random.default_rng(seed)
    graph = Graph(graph.nodes.assign(index=range(len(graph.nodes))), graph.edges, graph.meta)
    moved = samples.relabelled(
        graph, rng.permutation(len(graph.nodes)), rng.permutation(len(graph.edges)), rng
    )
    kept = prune(graph, share).nodes.set_index("index").sort_index()
    moved_kept = prune(moved, share).nodes.set_index("index").sort_index()
    pd.testing.assert_frame_equal(kept, moved_kept, atol=1e-12)


def test_leaf_rows_stay_only_when_strong() -> None:
    graph = samples.circuit_like()
    small = prune(graph, 0.7)
    strength = small.nodes["attribution"].abs()
    weakest = strength[small.is_kind(*INTERIOR)].min()
    before = graph.nodes.loc[graph.is_kind(*LEAVES), "attribution"].abs()
    assert set(small.nodes.index[small.is_kind(*LEAVES)]) == set(before.index[before >= weakest])
    assert set(prune(graph, 1.0).nodes.index[prune(graph, 1.0).is_kind(*LEAVES)]) == set(
        before.index
    )


def test_by_hand() -> None:
    """0.6 of 8 + 8 + 4 + 4 takes the eights; 0.6 of all 40 takes edges 8, 8, 4, 4."""
    small = prune(worked_example(), 0.6)
    assert small.nodes.index.tolist() == [0, 2, 3, 5]
    assert edge_set(small) == {(0, 2), (2, 3), (3, 5)}
    assert small.nodes["in_pruned"].tolist() == [0.0, 0.0, 4.0, 8.0]
    assert small.nodes["out_pruned"].tolist() == [8.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, 80.0, float("nan")])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"write share=0\.8"):
        prune(worked_example(), share)


def test_pruning_again_goes_on_from_there() -> None:
    graph = samples.circuit_like()
    twice = prune(prune(graph, 0.9), 0.9)
    assert twice.conservation() < EXACT
    assert edge_set(twice) < edge_set(prune(graph, 0.9))
    assert twice.explained().sum() == pytest.approx(graph.value)
