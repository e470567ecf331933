"""Edits of a run: nodes set, scaled, ablated or increased; attention patterns clamped.

With everything held a forward pass through the held run is done, written without any code of the
backward sweep, so that the two check each other; with patterns held, or nothing, the real model
runs with the outputs of edited sublayers replaced.
"""

from replacement.edits.changes import Change, Changes, changes_of
from replacement.edits.edit import Ablate, Add, Edit, Scale, Set, SetPattern
from replacement.edits.generating import Generated, generated
from replacement.edits.live import Fill, LiveEdits
from replacement.edits.measuring import measured, stages_of
from replacement.edits.node import Node, nodes_of, number_of
from replacement.edits.recorded import raw_error, recorded
from replacement.edits.running import (
    EditedRun,
    Mode,
    edited_run,
    free_knock_outs,
    held_knock_outs,
    held_values,
    live_values,
    patches,
)

__all__ = [
    "Ablate",
    "Add",
    "Change",
    "Changes",
    "Edit",
    "EditedRun",
    "Fill",
    "Generated",
    "LiveEdits",
    "Mode",
    "Node",
    "Scale",
    "Set",
    "SetPattern",
    "changes_of",
    "edited_run",
    "free_knock_outs",
    "generated",
    "held_knock_outs",
    "held_values",
    "live_values",
    "measured",
    "nodes_of",
    "number_of",
    "patches",
    "raw_error",
    "recorded",
    "stages_of",
]
