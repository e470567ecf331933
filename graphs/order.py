"""From edges to an order in which every writer comes before its readers."""

import numpy as np


def topological_order(source: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Numbers 0..count-1 so that the source of every edge comes before its target.

    Generation by generation (Kahn 1962): first all that nothing writes to, by number, then what
    only they write to. On a cycle the answer is shorter than ``count``: it holds what does not lie
    on or behind the cycle.

    >>> topological_order(np.array([2, 0]), np.array([0, 1]), 3).tolist()
    [2, 0, 1]
    """
    by_source = np.argsort(source, kind="stable")
    readers = target[by_source]
    starts = np.searchsorted(source[by_source], np.arange(count + 1))
    waiting = np.bincount(target, minlength=count)
    generation = np.flatnonzero(waiting == 0)
    done = []
    while len(generation):
        done.append(generation)
        reached = np.concatenate([readers[starts[node] : starts[node + 1]] for node in generation])
        np.subtract.at(waiting, reached, 1)
        generation = np.unique(reached[waiting[reached] == 0])
    return np.concatenate(done) if done else np.empty(0, dtype=np.int64)
