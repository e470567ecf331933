"""Measurements in files of their own, so that a report that was killed goes on where it was."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.four_tasks.folder import write_json

Figures = dict[str, Any]


class Cells:
    """A folder of measurements; processor times are apart, so that two runs give the same files."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        (folder / "cells").mkdir(parents=True, exist_ok=True)

    def get(self, stage: str, name: str, measure: Callable[[], Figures]) -> Figures:
        """Return the figures of a cell: those stored, or measured now and stored.

        Raises ValueError where the folder holds a cell of other settings.
        """
        path = self.folder / "cells" / f"{stage}-{name}.json"
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["settings"] != self.settings:
                raise ValueError(
                    f"{path}: was measured with {stored['settings']}, now {self.settings} are "
                    "asked for. Give the same settings to go on, or another folder."
                )
            return stored["figures"]
        begun = time.process_time()
        figures = rounded(measure())
        write_json(path, {"settings": self.settings, "figures": figures})
        self._note(f"{stage}-{name}", time.process_time() - begun)
        return figures

    def _note(self, name: str, seconds: float) -> None:
        path = self.folder / "timings.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        write_json(path, {**known, name: round(seconds, 1)})


def rounded(found: Any) -> Any:
    """Return nested figures with 5 digits behind the point.

    >>> rounded({"a": [0.1234567, "b"]})
    {'a': [0.12346, 'b']}
    """
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value) for value in found]
    return round(found, 5) if isinstance(found, float) else found
