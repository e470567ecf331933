"""One circuit of a task: traced over many prompts, its parts named by measure, tested alone.

asking.py    a task's pairs of prompts as targets, with positions by role
keeping.py   strongest parts first; what is left with only these, and without them
naming.py    what heads look at and write, and a name for it
finding.py   all of it for one task: what the scripts ioi, induction, bracket, greater_than show
"""

from benchmarks.role_circuits.asking import Asked, ask
from benchmarks.role_circuits.finding import Found, averages, find
from benchmarks.role_circuits.keeping import Kept, Part, keep, smallest, strongest_nodes
from benchmarks.role_circuits.naming import heads_named, promoted_by

__all__ = [
    "Asked",
    "Found",
    "Kept",
    "Part",
    "ask",
    "averages",
    "find",
    "heads_named",
    "keep",
    "promoted_by",
    "smallest",
    "strongest_nodes",
]
