"""Models whose circuit is known: how traces rank their true edges."""

from benchmarks.report.cells import Figures
from benchmarks.truth.heads import discrete_rows
from benchmarks.truth.measure import FEW, VARIANTS, flows_by_method, measured, rows_of
from benchmarks.truth.programs import PROGRAMS

TRUTHS = ("resample", "frozen resample", "frozen zero")


def exact_figures(program: str, variant: str, pairs: int) -> Figures:
    """Return a row for every way of scoring the edges of a program's model."""
    built = PROGRAMS[program].build(**VARIANTS[variant], seed=0, count=pairs)
    of = measured(built, TRUTHS)
    rows = rows_of(of, flows_by_method(of, FEW))
    return {
        "program": program,
        "variant": variant,
        "rows": [*(row.as_data() for row in rows), *discrete_rows(of)],
    }
