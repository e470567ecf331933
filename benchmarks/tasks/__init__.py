"""The four tasks: random examples, each with its answers, wrong answers and positions by part."""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from benchmarks.tasks.bracket import bracket
from benchmarks.tasks.example import Answer, Example, Split, is_held_out
from benchmarks.tasks.greater_than import greater_than
from benchmarks.tasks.induction import induction
from benchmarks.tasks.ioi import ioi

TASKS: Final[Mapping[str, Callable[[random.Random, Split], Example]]] = MappingProxyType(
    {"ioi": ioi, "induction": induction, "bracket": bracket, "greater_than": greater_than}
)
"""Each task's name and its generator."""

__all__ = ["TASKS", "Answer", "Example", "Split", "is_held_out"]
