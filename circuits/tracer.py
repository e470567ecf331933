"""From a target to its circuit: the stages in order. Start reading the library here."""

import dataclasses
import math
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from attribution.assembling import graph_of_sweep
from attribution.by_influence import chosen_nodes
from attribution.direct_edges import EdgeKind, of_effects, of_flow, scalars_of, with_effects
from attribution.flow import flow_edges
from attribution.plan import check_request, node_limit, refuse_too_many
from attribution.sweep import GateRule, Sweep, traced_sweep
from circuits.circuit import Circuit
from circuits.contrasting import condition_of, contrasted
from replacement.held import Sublayer
from replacement.secant import RunPair, SecantRule
from replacement.target import Target

Selection = Literal["attribution", "influence"]


def trace(
    target: Target,
    threshold: int | float = 0.005,
    *,
    against: Any = None,
    rule: SecantRule | None = None,
    max_nodes: int | None = None,
    gate: GateRule = "absolute",
    edges: EdgeKind = "flow",
    select: Selection = "attribution",
    progress: bool = True,
) -> Circuit:
    """Return the circuit behind a target: which nodes made it so, and what flowed between them.

    The run is held (patterns, norm denominators and gates at its values), which makes it linear;
    one sweep down the layers gives every node its attribution, and nodes below `threshold`, a share
    of the target's value, stop there and are booked as `pruned`. Everything adds up: see
    `circuit.explained` and, for each node, docs/design.md, identities 1 and 2.

    Method: hierarchical attribution, Ge et al. 2024 (2405.13868), section 4.3, with the gate on the
    absolute value; `gate="signed"` is the paper's own rule.

    Parameters
    ----------
    target
        Made by `run.logit(" Mary") - run.logit(" John")`, `run.feature(...)`, `run.direction(...)`.
    threshold
        Share of max(|target|, 1e-3 · sum of |leaf|) that a node must contribute; 0 keeps all.
    against
        Another run of the same model and length, or a prompt for one (names swapped, a year
        changed): explain by how much the target exceeds what it is there. Nothing is held then:
        patterns, norms and gates move too, edges carry `via` q, k, v or mlp, and what features did
        by switching on or off is in `in_switch` (docs/contrast.md).
    rule
        With `against`: how differences of products are split (`replacement.secant.SecantRule`); any
        is exact, the default was chosen by measurement.
    max_nodes
        Keep at most so many nodes, the strongest of an ungated sweep (skips of transcoders, which
        no threshold stops, are not counted). Default: no bound, except 500 where every neuron is
        active at every position.
    gate
        "absolute" or "signed".
    edges
        "flow": heads are nodes, and an edge is the part of the target that took it. "direct": heads
        and skips are passed and are no nodes; `effect` is the direct effect on the reader's
        pre-activation (`attribution.direct_effects`), and flow what of the target that makes. Every
        head passes, so that nodes may differ. "both": the nodes of "flow", and the effects between
        those that are no heads or skips; an effect that is no flow along the stream has flow 0.
    select
        "attribution": nodes as described. "influence": with `edges="direct"`, the `max_nodes` nodes
        that attribution graphs would expand (circuit-tracer's greedy order, by absolute shares of
        direct effects), whatever the threshold.
    progress
        Show a bar on stderr where it takes longer than a second.

    Raises
    ------
    TypeError, ValueError
        For something that is not a target, or a threshold, bound, gate, kind of edges or selection
        that makes no sense.
    MemoryError
        Before the edges are made, if they do not fit; names a `max_nodes` that would.

    Examples
    --------
    >>> from circuits import load, trace
    >>> run = load("four-tasks").run("When Mary and John went to the store, John gave a drink to")
    >>> circuit = trace(run.logit(" Mary") - run.logit(" John"))
    >>> bool(abs(circuit.explained.sum() - circuit.value) < 1e-3)
    True
    """
    check_request(target, max_nodes)
    check_rule(threshold, gate, edges)
    check_selection(select, edges, max_nodes)
    contract = edges == "direct"
    if (against is not None or isinstance(target.run, RunPair)) and edges != "flow":
        raise ValueError(
            f"trace(against=..., edges={edges!r}): direct effects are of one run, what is held; "
            "a contrast has flows alone. Leave edges out, or against."
        )
    if rule is not None and against is None:
        raise ValueError(
            f"trace(rule={rule!r}): is how a contrast splits products, and there is no against=."
        )
    with torch.no_grad():
        if against is not None:
            target = contrasted(target, against, rule)
        run = target.run
        sublayers, limit = run.sublayers, node_limit(run, max_nodes)
        swept, ungated, cutoff = traced_sweep(
            target,
            threshold,
            rule=gate,
            limit=limit,
            contract=contract,
            only=chosen_nodes(select, target, limit),
        )
        kept = scalars_of(sublayers, swept.kept()) if contract else swept.kept()
        refuse_too_many(sublayers, kept, run, direct=edges != "flow")
        if contract:
            made = of_effects(target, swept)
        else:
            made = of_flow(flow_edges(target, sublayers, swept, _bar("flow edges", progress)))
        if edges == "both":
            made = with_effects(made, target, swept)
        meta = _meta(target, swept, threshold=threshold, gate=gate, limit=limit, cutoff=cutoff)
        meta |= {"edges": edges, "select": select}
        graph = graph_of_sweep(
            target, sublayers, swept, made, kept=kept, ungated=ungated, meta=meta
        )
    return Circuit.of_trace(graph, run)


def check_rule(threshold: Any, gate: Any, edges: Any) -> None:
    """Raise ValueError for a threshold, gate or kind of edges that makes no sense."""
    if not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
        raise ValueError(
            f"trace(threshold={threshold!r}): a share of the target's value is needed, 0 (keep "
            "everything) or more; the default is 0.005."
        )
    if gate not in ("absolute", "signed"):
        raise ValueError(f'trace(gate={gate!r}): "absolute" or "signed".')
    if edges not in ("flow", "direct", "both"):
        raise ValueError(f'trace(edges={edges!r}): "flow", "direct" or "both".')


def check_selection(select: Any, edges: EdgeKind, max_nodes: int | None) -> None:
    """Raise ValueError for a way to select nodes that there is not, or not for these edges."""
    if select not in ("attribution", "influence"):
        raise ValueError(f'trace(select={select!r}): "attribution" or "influence".')
    if select == "influence" and (edges != "direct" or max_nodes is None):
        raise ValueError(
            f"trace(select='influence', edges={edges!r}, max_nodes={max_nodes!r}): influence runs "
            'along direct effects and has no threshold. Give edges="direct" and max_nodes.'
        )


def _bar(what: str, shown: bool) -> Any:
    def progress(rows: Sequence[Sublayer]) -> Any:
        return tqdm(rows, desc=what, delay=1.0, disable=not shown, leave=False)

    return progress


def _meta(
    target: Target,
    swept: Sweep,
    *,
    threshold: int | float,
    gate: GateRule,
    limit: int | None,
    cutoff: float,
) -> dict[str, Any]:
    """Where the circuit comes from: enough to make it again, and no time stamp."""
    run, model = target.run, target.run.model
    off = abs(swept.leaves.total() - target.value)
    magnitude = swept.leaves.magnitude()
    of_contrast = {}
    if isinstance(run, RunPair):
        switched = float(swept.leaves.switch.abs().sum())
        of_contrast = {
            "against": {
                "prompt": run.other.prompt,
                "token_ids": run.other.token_ids.tolist(),
                "tokens": run.other.tokens,
                "value": run.clean.target([term.as_data() for term in target.terms]).value
                - target.value,
            },
            "rule": dataclasses.asdict(run.rule),
            "condition": condition_of(target, magnitude, switched),
        }
    return {
        "model": model.name,
        "layers": model.read_as,
        "errors": run.errors,
        "prompt": run.prompt,
        "token_ids": run.token_ids.tolist(),
        "tokens": run.tokens,
        "n_layers": run.weights.n_layers,
        "target": {
            "label": target.label,
            "value": target.value,
            "pos": target.pos,
            "terms": [term.as_data() for term in target.terms],
        },
        "threshold": threshold,
        "gate": gate,
        "max_nodes": limit,
        "cutoff": cutoff,
        "dtype": str(model.dtype).removeprefix("torch."),
        "checks": {"closure": off / max(magnitude, 1e-300)},
        "weights": str(model.weights_dtype).removeprefix("torch."),
        "versions": dict(_versions()),
        **of_contrast,
    }


@cache
def _versions() -> dict[str, str]:
    """Of the packages that the numbers depend on; reading them takes as long as a small trace."""
    return {name: metadata.version(name) for name in ("torch", "transformers", "nnsight")}
