"""Identities 1 and 2 as assertions: leaves sum to the target, every node conserves flow."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attribution.flow import Flow, flow_edges
from attribution.sweep import Sweep
from replacement.held import Sublayer
from replacement.target import Target

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of Σ|terms| (docs/design.md, precision)."""


def assert_close(found: Tensor, expected: Tensor, magnitude: Tensor) -> None:
    """Assert |found - expected| <= tolerance · Σ|terms|, entry by entry."""
    excess = (found - expected).abs() - TOLERANCE[found.dtype] * magnitude
    assert bool((excess <= 0).all()), f"off by {(found - expected).abs().max()} of {magnitude}"


def assert_closed(target: Target, swept: Sweep) -> None:
    """Assert identity 1: all leaves together are the value the original model computed."""
    off = abs(swept.leaves.total() - target.value)
    assert off <= TOLERANCE[target.run.next_logits.dtype] * swept.leaves.magnitude()


def node_attributions(target: Target, swept: Sweep) -> Tensor:
    """Return the attribution of every node in flow order: sources, kept nodes, the target."""
    kept = [
        attribution[keep] for attribution, keep in zip(swept.attribution, swept.keep, strict=True)
    ]
    value = swept.leaves.token.new_tensor([target.value])
    return torch.cat([swept.leaves.token, swept.leaves.position, *kept, value])


def assert_conserved(
    target: Target, sublayers: Sequence[Sublayer], swept: Sweep, share: float = 0.01
) -> Flow:
    """Assert identity 2 at every node: inflow = attribution = outflow.

    A flow is a dot product whose own terms are not seen here: `share` of the whole stands for them.
    """
    flow = flow_edges(target, sublayers, swept)
    attribution = node_attributions(target, swept)
    n_sources, zero = 2 * len(target.run.tokens), torch.zeros_like(attribution)
    inflow = zero.index_add(0, flow.target, flow.amount)
    outflow = zero.index_add(0, flow.source, flow.amount)
    extra = torch.stack([flow.in_bias, flow.in_error, flow.in_pruned, flow.in_switch])
    within = share * swept.leaves.magnitude()
    into = zero.index_add(0, flow.target, flow.amount.abs()) + extra.abs().sum(0) + within
    out = zero.index_add(0, flow.source, flow.amount.abs()) + within
    inner = slice(n_sources, None)
    assert_close((inflow + extra.sum(0))[inner], attribution[inner], into[inner])
    assert_close(outflow[:-1], attribution[:-1], out[:-1])
    assert bool((extra[:, :n_sources] == 0).all()), "nothing flows into a token or a position"
    assert bool((flow.amount != 0).all()), "zero flows are no edges"
    return flow
