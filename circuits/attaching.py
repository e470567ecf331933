"""From a saved circuit and a model to the run it was traced in, or an error: is it the same one?"""

from typing import Any

import numpy as np
import torch

from attribution.sweep import sweep
from circuits.testing import as_nodes, attributions_of, tested_nodes
from graphs.graph import Graph
from replacement.run import Run
from replacement.secant import RunPair, SecantRule
from replacement.target import Target

TOLERANCE = 1e-3
"""Share of the largest number by which another machine's rounding may differ."""


def run_of_circuit(graph: Graph, model: Any) -> Run | RunPair:
    """Return the prompt of a circuit (of a contrast, both) run anew by `model`.

    Raises TypeError or ValueError unless the model, its layers and its weights give the target and
    the node table's `ungated` attributions as they were saved.
    """
    meta = graph.meta
    if "many" in meta:
        raise ValueError(
            f"circuit.attach: this circuit is the mean of {meta['many']['prompts']} prompts and "
            "belongs to no run. Trace one of them to have one."
        )
    dtype = "" if graph.kept_in == "float32" else f", loaded with dtype={graph.kept_in!r}"
    origin = (
        f"This circuit is of {meta.get('model')!r} with layers {meta.get('layers')}{dtype}. Attach "
        "the model, layers and weights it was traced with."
    )
    if not hasattr(model, "run") or not hasattr(model, "read_as"):
        raise TypeError(
            f"circuit.attach takes what load(...) returns, got {type(model).__name__}: "
            f"{model!r:.60}. {origin}"
        )
    if model.read_as != meta.get("layers"):
        raise ValueError(f"the model given is read as {model.read_as}. {origin}")
    try:
        clean: Run = model.run(meta["token_ids"], errors=meta.get("errors", True))
        run: Run | RunPair = clean
        if "against" in meta:
            other = model.run(meta["against"]["token_ids"], errors=clean.errors)
            run = RunPair(clean, other, SecantRule(**meta["rule"]))
        target = run.target(meta["target"]["terms"])
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as problem:
        reason = f"{type(problem).__name__}: {problem}"
        raise ValueError(f"the model given cannot run this circuit ({reason}). {origin}") from None
    if abs(target.value - graph.value) > TOLERANCE * max(1.0, abs(graph.value)):
        raise ValueError(
            f"the target was saved as {meta['target']['label']} = {graph.value:.4f}, the model "
            f"given computes {target.value:.4f}. {origin}"
        )
    off = _difference(graph, target)
    if not off <= TOLERANCE:
        raise ValueError(
            "the replacement layers given are not those of this circuit: attributions differ by "
            f"{off:.1%} of the largest. {origin}"
        )
    return run


def _difference(graph: Graph, target: Target) -> float:
    """How far `ungated` attributions are from the saved ones; infinite where a node is missing."""
    sublayers = target.run.sublayers
    nodes = tested_nodes(graph)
    with torch.no_grad():
        ungated = sweep(target, sublayers)
    try:
        found = np.asarray(attributions_of(ungated, sublayers, as_nodes(nodes)))
    except (ValueError, KeyError):
        return float("inf")
    saved = np.asarray(nodes["ungated"])
    largest = max(np.abs(saved).max(initial=0.0), abs(target.value))
    return float(np.abs(found - saved).max(initial=0.0) / largest) if largest else 0.0
