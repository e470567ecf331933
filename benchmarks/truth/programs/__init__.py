"""Programs whose circuit is known exactly, by name.

>>> list(PROGRAMS)[:3]
['induction', 'induction_renamed_soft', 'symbolic_ioi']
"""

from benchmarks.truth.program import Recipe
from benchmarks.truth.programs import brackets, copying, counting, gates

RULE_CHOSEN_ON = (
    *(copying.INDUCTION, copying.INDUCTION_SOFT, copying.SYMBOLIC_IOI, copying.IOI_SOFT),
    *(counting.COUNT_GREATER, counting.HISTOGRAM),
    brackets.CLOSING_BRACKET,
)
"""The models on which the weights of the product rule were compared."""
HELD_OUT = (
    *(copying.REVERSE, copying.REVERSE_SOFT, copying.SORTING),
    *(counting.LATER_YEAR, counting.PROPORTIONS),
    brackets.BALANCED,
)
"""Models that had no part in it."""
RENAMED = (copying.INDUCTION_RENAMED, copying.IOI_RENAMED, copying.REVERSE_RENAMED)
"""Counterfactuals that change what is moved and not from where, in models that look decidedly: no
pattern differs between the runs, though a cut of a query or key alone would change it."""
GATES = (gates.OR, gates.AND, gates.NEGATIVE, gates.BACKUP)
"""Circuits that no single patch can show whole."""
GROUPS: dict[str, tuple[Recipe, ...]] = {
    "rule chosen on": RULE_CHOSEN_ON,
    "held out": HELD_OUT,
    "renamed": RENAMED,
    "gates": GATES,
}
PROGRAMS: dict[str, Recipe] = {one.name: one for group in GROUPS.values() for one in group}

__all__ = ["GATES", "GROUPS", "HELD_OUT", "PROGRAMS", "RENAMED", "RULE_CHOSEN_ON"]
