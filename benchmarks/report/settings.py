"""How much a report measures."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.truth.programs import PROGRAMS


@dataclass(frozen=True)
class Settings:
    """What every figure of a report depends on."""

    model: str
    pairs: int
    """Pairs to score edges by, and as many to measure circuits on."""
    seeds: int
    program_pairs: int
    programs: tuple[str, ...]
    variants: tuple[str, ...]
    """Of each program: "plain", "rotated"."""
    prompts: int
    """To trace a task's circuit over, and as many to test it on."""

    def as_data(self) -> dict[str, Any]:
        """Return plain data, as it is read back from JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def settings_of(model: str, *, quick: bool) -> Settings:
    """Return the settings of a whole report, or of one within five minutes."""
    if quick:
        some = ("induction", "symbolic_ioi", "count_greater", "reverse", "or_gate", "and_gate")
        return Settings(model, 16, 1, 3, tuple(n for n in PROGRAMS if n in some), ("rotated",), 12)
    return Settings(model, 200, 3, 10, tuple(PROGRAMS), ("plain", "rotated"), 48)
