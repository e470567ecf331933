"""What trace, plan, prune, paths and test refuse."""

from pathlib import Path
from unittest import mock

from circuits import Circuit, load, plan, trace
from circuits.contrasting import contrasted
from replacement.secant import SecantRule
from tests.circuits.folders import PROMPT, text_model, tokenizer
from tests.errors.mistakes import Mistake, assert_explained, each
from tests.errors.models_given import circuit, model, run

N_TOKENS = len(run().tokens)


def traced_in(free: int) -> object:
    """Trace with so many bytes left."""
    with mock.patch("attribution.plan.free_bytes", return_value=free):
        return trace(run().logit(" Mary"), threshold=0)


def compared(against: object) -> Circuit:
    """Trace by how much a logit exceeds what it is in another run."""
    return trace(run().logit(" Mary"), against=against, progress=False)


def of_two() -> Circuit:
    """A contrast of the prompt with its words turned round."""
    return compared(run().token_ids.flip(0))


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
        "against a shorter prompt",
        lambda _: compared(run().token_ids[:-1]),
        ValueError,
        ("against=: a run of", f"the target's has {N_TOKENS}", "of the same length"),
    ),
    Mistake(
        "against a run of another model",
        lambda _: compared(load(text_model(), tokenizer()).run(PROMPT)),
        ValueError,
        ("against=: a run of", "the target's is of", "the same model object"),
    ),
    Mistake(
        "against a replacement run",
        lambda _: compared(model().run(PROMPT, errors=False)),
        ValueError,
        ("one of the runs is a replacement run", "both with errors=True"),
    ),
    Mistake(
        "against a number",
        lambda _: compared(7),
        TypeError,
        ("prompt", "7"),
    ),
    Mistake(
        "against a circuit",
        lambda _: compared(circuit()),
        TypeError,
        ("prompt", "Circuit"),
    ),
    Mistake(
        "a difference of a difference",
        lambda _: trace(contrasted(run().logit(" Mary"), PROMPT), against=PROMPT),
        ValueError,
        ("is a difference of two runs already", "leave against= out"),
    ),
    Mistake(
        "a rule of nothing",
        lambda _: trace(run().logit(" Mary"), rule=SecantRule()),
        ValueError,
        ("there is no against=", "SecantRule("),
    ),
    Mistake(
        "attention of a contrast",
        lambda _: of_two().attention("L0.head 0@1"),
        ValueError,
        ("in a contrast the edges with via q and k", "without against="),
    ),
    *(
        Mistake(
            f"a rule of weight {wrong!r}",
            lambda _, wrong=wrong: SecantRule(query_key=wrong),
            ValueError,
            (f"query_key={wrong!r}", "a weight from 0 to 1"),
        )
        for wrong in (-0.1, 1.5, float("nan"))
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
