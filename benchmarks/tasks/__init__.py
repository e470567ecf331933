"""The tasks: random examples, each with its answers, wrong answers and positions by part."""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from benchmarks.tasks.bracket import bracket
from benchmarks.tasks.example import Answer, Example, Split, is_held_out
from benchmarks.tasks.greater_than import greater_than
from benchmarks.tasks.induction import induction
from benchmarks.tasks.ioi import ioi
from benchmarks.tasks.sequence import sequence

TASKS: Final[Mapping[str, Callable[[random.Random, Split], Example]]] = MappingProxyType(
    {"ioi": ioi, "induction": induction, "bracket": bracket, "greater_than": greater_than}
)
"""The name and the generator of each task of the bundled model "four-tasks"."""
FIVE_TASKS: Final = MappingProxyType({**TASKS, "sequence": sequence})
"""Likewise of "five-tasks"."""

__all__ = ["FIVE_TASKS", "TASKS", "Answer", "Example", "Split", "is_held_out"]
