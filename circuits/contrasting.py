"""From a target and a counterfactual to the target's difference between the two runs."""

from typing import Any

from replacement.run import Run
from replacement.secant import RunPair, SecantRule
from replacement.secant.mlp import largest_rate
from replacement.target import Target


def contrasted(target: Target, against: Any, rule: SecantRule | None = None) -> Target:
    """Return by how much `target` exceeds the same in another run, as a target of both.

    `against`: a run of the same model, or a prompt (text or token ids) of equal length. Raises
    ValueError for a run of another model, length or kind.
    """
    run = target.run
    if isinstance(run, RunPair):
        raise ValueError(f"{target.label} is a difference of two runs already; leave against= out.")
    other = against if isinstance(against, Run) else run.model.run(against, errors=run.errors)
    return RunPair(run, other, rule or SecantRule()).difference(target)


def condition_of(target: Target, magnitude: float, switched: float) -> dict[str, float]:
    """Return how well a contrast is conditioned.

    leaves: sum of |leaf| / |difference|; switch: sum of |switch leaves| / sum of |leaf|; slope: the
    largest |rate| at which a feature passes a difference on.
    """
    changes = [getattr(part, "change", None) for part in target.run.sublayers]
    rates = [largest_rate(change) for change in changes if change is not None]
    return {
        "leaves": magnitude / max(abs(target.value), 1e-300),
        "switch": switched / max(magnitude, 1e-300),
        "slope": max(rates, default=0.0),
    }
