"""What trace, plan, prune, paths and test refuse."""

from pathlib import Path
from unittest import mock

from circuits import plan, trace
from tests.errors.mistakes import Mistake, assert_explained, each
from tests.errors.models_given import circuit, run


def traced_in(free: int) -> object:
    """Trace with so many bytes left."""
    with mock.patch("attribution.plan.free_bytes", return_value=free):
        return trace(run().logit(" Mary"), threshold=0)


TRACES = [
    Mistake(
        "trace of text",
        lambda _: trace(" Mary"),
        TypeError,
        ("str: ' Mary'", "a target", 'run.logit(" Mary")'),
    ),
    Mistake("trace of a run", lambda _: trace(run()), TypeError, ("Run", "run.logit(")),
    Mistake("trace of a number", lambda _: trace(3), TypeError, ("int: 3", "run.logit(")),
    *(
        Mistake(
            f"threshold {wrong!r}",
            lambda _, wrong=wrong: trace(run().logit(" Mary"), threshold=wrong),
            ValueError,
            (f"threshold={wrong!r}", "0 (keep", "default is 0.005"),
        )
        for wrong in (-0.1, float("nan"), float("inf"), "0.01", None)
    ),
    *(
        Mistake(
            f"max_nodes {wrong!r}",
            lambda _, wrong=wrong: trace(run().logit(" Mary"), max_nodes=wrong),
            ValueError,
            (f"max_nodes={wrong!r}", "whole number from 1", "None"),
        )
        for wrong in (0, -3, 1.5, "5", True)
    ),
    Mistake(
        "unknown gate",
        lambda _: trace(run().logit(" Mary"), gate="relative"),
        ValueError,
        ("gate='relative'", '"absolute"', '"signed"'),
    ),
    Mistake(
        "trace with unknown edges",
        lambda _: trace(run().logit(" Mary"), edges="indirect"),
        ValueError,
        ("edges='indirect'", '"flow"', '"direct"', '"both"'),
    ),
    Mistake("plan of text", lambda _: plan(" Mary"), TypeError, ("str: ' Mary'", "run.logit(")),
    Mistake(
        "plan of no nodes",
        lambda _: plan(run().logit(" Mary"), max_nodes=0),
        ValueError,
        ("max_nodes=0", "whole number from 1"),
    ),
    *(
        Mistake(
            f"prune to {wrong!r}",
            lambda _, wrong=wrong: circuit().prune(wrong),
            ValueError,
            (repr(wrong), "above 0 and at most 1", "share=0.8"),
        )
        for wrong in (0, 1.5, -0.2, float("nan"), "0.8")
    ),
    *(
        Mistake(
            f"{wrong!r} paths",
            lambda _, wrong=wrong: circuit().paths(wrong),
            ValueError,
            (repr(wrong), "1 or more"),
        )
        for wrong in (0, 1.5)
    ),
    Mistake(
        "a batch of no knock-outs",
        lambda _: circuit().test(batch=0),
        ValueError,
        ("batch=0", "1 or more"),
    ),
    Mistake(
        "a trace that does not fit in memory",
        lambda _: traced_in(40_000),
        MemoryError,
        ("nodes are kept", "40.0 kB are free", "Fits: max_nodes=", "higher"),
    ),
]


@each(TRACES)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
