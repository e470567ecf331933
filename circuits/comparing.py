"""Two circuits side by side."""

from typing import Any

from circuits.circuit import Circuit
from graphs.comparing import Comparison
from graphs.comparing import compare as compare_graphs


def compare(a: Any, b: Any, *, roles: Any = None) -> Comparison:
    """Return what two circuits of one model share, what only one has, and how much they overlap.

    Tables `nodes` and `edges` with both sides' numbers, `shared`, `only_a`, `only_b`, and `scores`
    (Jaccard, weighted Jaccard, cosine); see `graphs.comparing.compare`, also for errors. Needs no
    model, no torch, and takes circuits of single prompts, pruned ones and means over prompts.

    >>> from circuits import load, trace
    >>> run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    >>> circuit = trace(run.logit(" Mary") - run.logit(" John"))
    >>> both = compare(circuit, circuit.prune(0.5))
    >>> len(both.only_b), len(both.only_a) > 0
    (0, True)
    """
    graphs = [one.data if isinstance(one, Circuit) else one for one in (a, b)]
    return compare_graphs(graphs[0], graphs[1], roles=roles)
