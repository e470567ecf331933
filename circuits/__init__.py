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
    from circuits.circuit import Circuit, read
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
    "Circuit": "circuits.circuit",
    "Node": "replacement.edits",
    "Plan": "attribution.plan",
    "ReplacementModel": "replacement.model",
    "Run": "replacement.run",
    "Scale": "replacement.edits",
    "Set": "replacement.edits",
    "SetPattern": "replacement.edits",
    "Target": "replacement.target",
    "load": "circuits.loading",
    "plan": "attribution.plan",
    "read": "circuits.circuit",
    "trace": "circuits.tracer",
}
__all__ = [
    "Ablate",
    "Add",
    "Circuit",
    "Node",
    "Plan",
    "ReplacementModel",
    "Run",
    "Scale",
    "Set",
    "SetPattern",
    "Target",
    "load",
    "plan",
    "read",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"circuits has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
