"""Checkpoints of a training run that are always whole and never mistaken for another run's."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, settings: Any, state: dict[str, Any]) -> None:
    """Write the state of a run with these settings (a dataclass), the old file or the new whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{path.name}")
    torch.save({"settings": asdict(settings), **state}, unfinished)
    os.replace(unfinished, path)  # noqa: PTH105


def load_checkpoint(path: Path, settings: Any) -> dict[str, Any] | None:
    """Return the state that `save_checkpoint` wrote, None if there is none.

    Raises ValueError if it was written by a run with other settings.
    """
    if not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    given = asdict(settings)
    differing = sorted(name for name in given if state["settings"].get(name) != given[name])
    if differing:
        raise ValueError(
            f"{path} was written by a run with other settings ({', '.join(differing)} differ). "
            "Give the settings of that run to go on with it, or an empty folder to start afresh."
        )
    return state
