"""Which tokens, heads and features made a language model predict this, exactly.

>>> from circuits import load, trace
>>> model = load("four-tasks")
>>> run = model.run("When Mary and John went to the store, John gave a drink to")
>>> circuit = trace(run.logit(" Mary") - run.logit(" John"))
>>> circuit.explained.index.tolist()
['token', 'position', 'error', 'bias', 'pruned']
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribution.plan import Plan, plan
    from circuits.average import AverageCircuit
    from circuits.averaging import trace_many
    from circuits.card_building import build_features
    from circuits.cards import read_cards
    from circuits.circuit import Circuit, read
    from circuits.comparing import compare
    from circuits.loading import load
    from circuits.tracer import trace
    from replacement.edits import Ablate, Add, Node, Scale, Set, SetPattern
    from replacement.model import ReplacementModel
    from replacement.run import Run
    from replacement.target import Target

# Looked up when first asked for: `read` opens a saved circuit without importing torch.
_HOMES = {
    "Ablate": "replacement.edits",
    "Add": "replacement.edits",
    "AverageCircuit": "circuits.average",
    "Circuit": "circuits.circuit",
    "Node": "replacement.edits",
    "Plan": "attribution.plan",
    "ReplacementModel": "replacement.model",
    "Run": "replacement.run",
    "Scale": "replacement.edits",
    "Set": "replacement.edits",
    "SetPattern": "replacement.edits",
    "Target": "replacement.target",
    "build_features": "circuits.card_building",
    "compare": "circuits.comparing",
    "load": "circuits.loading",
    "plan": "attribution.plan",
    "read": "circuits.circuit",
    "read_cards": "circuits.cards",
    "trace": "circuits.tracer",
    "trace_many": "circuits.averaging",
}
__all__ = [
    "Ablate",
    "Add",
    "AverageCircuit",
    "Circuit",
    "Node",
    "Plan",
    "ReplacementModel",
    "Run",
    "Scale",
    "Set",
    "SetPattern",
    "Target",
    "build_features",
    "compare",
    "load",
    "plan",
    "read",
    "read_cards",
    "trace",
    "trace_many",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"circuits has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
