"""How much a report measures."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.truth.programs import PROGRAMS


@dataclass(frozen=True)
class Settings:
    """What every figure of a report depends on."""

    model: str
    second_model: str
    """One that continues sequences as well."""
    pairs: int
    """Pairs to score edges by."""
    test_pairs: int
    """Others to measure circuits on; and of the first, as many to patch edge by edge."""
    seeds: int
    program_pairs: int
    programs: tuple[str, ...]
    variants: tuple[str, ...]
    """Of each program, as in `benchmarks.truth.measure.VARIANTS`."""
    prompts: int
    """To trace a task's circuit over; twice as many choose its size, and test it."""
    basis_prompts: int
    """Likewise, where the neuron and the transcoder basis are compared."""
    acdc_pairs: int
    acdc_thresholds: tuple[float, ...]
    """Of KL divergence, in nats."""
    elimination_share: float
    """Of the edges still there, taken out in one round of backward elimination."""
    patched_prompts: int
    """Of each task, to patch single nodes in."""
    patched_nodes: int
    """Of each kind in each sublayer of a prompt, at most: those whose write changed most."""

    def as_data(self) -> dict[str, Any]:
        """Return plain data, as it is read back from JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


SECOND = "five-tasks"


def settings_of(model: str, *, quick: bool) -> Settings:
    """Return the settings of a whole report, or of one within five minutes."""
    if quick:
        some = ("induction", "symbolic_ioi", "count_greater", "reverse", "or_gate", "and_gate")
        return Settings(
            model,
            SECOND,
            pairs=16,
            test_pairs=16,
            seeds=1,
            program_pairs=3,
            programs=tuple(name for name in PROGRAMS if name in some),
            variants=("rotated, dummies",),
            prompts=12,
            basis_prompts=4,
            acdc_pairs=4,
            acdc_thresholds=(0.01, 0.1),
            elimination_share=0.5,
            patched_prompts=4,
            patched_nodes=32,
        )
    return Settings(
        model,
        SECOND,
        pairs=200,
        test_pairs=60,
        seeds=1,
        program_pairs=10,
        programs=tuple(PROGRAMS),
        variants=("plain", "rotated, dummies"),
        prompts=64,
        basis_prompts=24,
        acdc_pairs=16,
        acdc_thresholds=(0.001, 0.01, 0.03, 0.1, 0.3),
        elimination_share=0.25,
        patched_prompts=16,
        patched_nodes=64,
    )
