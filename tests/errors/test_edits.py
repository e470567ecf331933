"""What edits, generation, groups and faithfulness refuse, before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from circuits import Ablate, Add, Node, Scale, Set, SetPattern, trace
from tests.errors.mistakes import Mistake, assert_explained, each
from tests.errors.models_given import circuit, model, run, wordless

N_TOKENS = len(run().tokens)
HEAD, NEURON = Node("head", 0, index=1, pos=0), Node("neuron", 1, index=2, pos=-1)
IDS = run().token_ids.tolist()


def edit(*edits: Any) -> Callable[[Path], object]:
    return lambda _: run().edited(list(edits))


def mistake(name: str, one: Any, error: type[Exception], *says: str) -> Mistake:
    return Mistake(name, edit(one), error, says)


def faithful(*args: Any, **settings: Any) -> Callable[[Path], object]:
    return lambda _: circuit().faithfulness(*args, progress=False, **settings)


EDITS = [
    mistake("no layer", Scale(Node("head", 2, pos=0), 0), ValueError, "layer=2", "0 to 1"),
    mistake("no head", Scale(Node("head", 0, index=9, pos=0), 0), ValueError, "numbered from 0"),
    mistake("no such kind here", Scale(Node("lorsa", 0, index=0, pos=0), 0), ValueError, "heads"),
    mistake("unknown kind", Scale(Node("bias", 0, pos=0), 0), ValueError, "kinds", "neuron"),
    mistake("no skip", Scale(Node("skip", 0, pos=0), 0), ValueError, "has no skip"),
    mistake("no stream", Scale(Node("error", 0, "resid", 0), 0), ValueError, "replaced streams"),
    mistake("no position", Scale(Node("head", 0, index=0), 0), ValueError, "at which position"),
    mistake(
        "position outside", Scale(HEAD, 0, N_TOKENS), IndexError, f"position {N_TOKENS}", "-1 for"
    ),
    mistake("negative outside", Scale(HEAD, 0, -99), IndexError, "position -99", "outside"),
    mistake("slice outside", Scale(HEAD, 0, slice(99, None)), IndexError, "position 99"),
    mistake("positions of text", Scale(HEAD, 0, "last"), ValueError, "positions='last'", '"all"'),
    mistake("positions of parts", Scale(HEAD, 0, 1.5), TypeError, "positions=1.5"),
    mistake("mean of nothing", Ablate(HEAD, []), ValueError, "mean over no runs"),
    mistake("ablate to text", Ablate(HEAD, "one"), TypeError, "to='one'", '"zero"'),
    mistake("ablate to another model", Ablate(HEAD, wordless().run([1])), ValueError, "another"),
    mistake("short run", Ablate(NEURON, model().run(IDS[:2])), IndexError, "only 2 tokens"),
    mistake("NaN", Set(NEURON, float("nan")), ValueError, "one finite number", "NaN"),
    mistake("infinite factor", Scale(NEURON, float("inf")), ValueError, "finite", "infinity"),
    mistake("NaN in a vector", Set(HEAD, [float("nan")] * 4), ValueError, "4 finite", "NaN"),
    mistake("narrow vector", Add(HEAD, [1.0]), ValueError, "4 finite numbers", "shape (1,)"),
    mistake("vector for a number", Set(NEURON, [1.0, 2.0]), ValueError, "one finite number"),
    mistake("no number", Set(NEURON, "big"), TypeError, "'big' is no number"),
    mistake("no node", Scale("L0.head 1", 0), TypeError, "str", "a Node"),
    mistake("empty list", Scale([], 0), ValueError, "no nodes"),
    mistake("no edit", HEAD, TypeError, "Set, Scale, Ablate, Add or SetPattern"),
    mistake("one by name of all", 3, TypeError, "int: 3"),
    mistake("short pattern", SetPattern(0, 1, [1.0]), ValueError, "one a key", "shape (1,)"),
    mistake("pattern ahead", SetPattern(0, 1, [1.0] * N_TOKENS), ValueError, "key after"),
    mistake(
        "NaN pattern", SetPattern(0, 1, [float("nan")] * N_TOKENS), ValueError, "NaN", "finite"
    ),
    mistake("no such head", SetPattern(0, 9, [1.0] * N_TOKENS), IndexError, "head=9"),
    Mistake(
        "two edits of one node",
        edit(Scale(HEAD, 0), Set([HEAD], [0.0] * 4)),
        ValueError,
        ("two edits of one node", "one edit a node"),
    ),
    Mistake(
        "two edits at one position",
        edit(Scale(NEURON, 0, [0, 3]), Add(NEURON, 1.0, slice(2, None))),
        ValueError,
        ("two edits", "pos=3"),
    ),
    Mistake(
        "two patterns of one query",
        edit(*[SetPattern(0, 1, [1.0] + [0.0] * (N_TOKENS - 1), 2)] * 2),
        ValueError,
        ("two edits",),
    ),
    Mistake("one edit, no list", lambda _: run().edited(Scale(HEAD, 0)), TypeError, ("a list",)),
    Mistake(
        "unknown mode",
        lambda _: run().edited([], "frozen"),
        ValueError,
        ("mode='frozen'", '"held"', '"patterns"', '"free"'),
    ),
    Mistake(
        "target of another run",
        lambda _: run().edited([]).value(model().run(IDS).logit(3)),
        ValueError,
        ("another run",),
    ),
]
GENERATION = [
    Mistake(
        f"max_new_tokens {wrong!r}",
        lambda _, wrong=wrong: model().generate(IDS, max_new_tokens=wrong),
        ValueError,
        (f"max_new_tokens={wrong!r}", "1 or more"),
    )
    for wrong in (0, -1, 1.5)
] + [
    Mistake(
        "longer than the context",
        lambda _: model().generate(IDS, max_new_tokens=10_000),
        ValueError,
        ("context", "at most"),
    ),
    Mistake(
        "another run's values for new tokens",
        lambda _: model().generate(IDS, edits=[Ablate(HEAD, run(), "all")], max_new_tokens=2),
        ValueError,
        ("no counterpart", "list of runs"),
    ),
    Mistake(
        "bad node in generation",
        lambda _: model().generate(
            IDS[:5], edits=[Scale(Node("head", 7), 0, "all")], max_new_tokens=2
        ),
        ValueError,
        ("layer=7", "0 to 1"),
    ),
]
TESTS = [
    Mistake(
        "scale that is no number",
        lambda _: circuit().test(scale=float("nan")),
        ValueError,
        ("scale=nan", "finite"),
    ),
    Mistake("random half", lambda _: circuit().test(random=0.5), ValueError, ("random=0.5",)),
    Mistake("groups of text", lambda _: circuit().test("all"), TypeError, ("'all'", "lists")),
    Mistake("group of one number", lambda _: circuit().test([3]), TypeError, ("group 0", "list")),
    Mistake("empty group", lambda _: circuit().test([[]]), TypeError, ("group 0", "one node")),
    Mistake(
        "a node the circuit lacks",
        lambda _: circuit().test({"names": [10**6]}),
        ValueError,
        ("names", "1000000", "circuit.nodes"),
    ),
    Mistake("a node twice", lambda _: circuit().test([[0, 0]]), ValueError, ("a node twice",)),
    Mistake(
        "groups in a contrast",
        lambda _: trace(run().logit(" Mary"), against=run().token_ids.flip(0)).test([[0]]),
        ValueError,
        ("contrast", "one at a time"),
    ),
    Mistake(
        "without in a contrast",
        lambda _: trace(run().logit(" Mary"), against=run().token_ids.flip(0)).without(0),
        ValueError,
        ("two runs", "clean"),
    ),
    Mistake(
        "without an unknown node",
        lambda _: circuit().without("L9.head 3@1"),
        ValueError,
        ("L9.head 3@1",),
    ),
]
FAITHFULNESS = [
    Mistake("mean without prompts", faithful(ablate="mean"), ValueError, ("give prompts=",)),
    Mistake("mean over no prompts", faithful([]), ValueError, ("prompts=[]", "one at least")),
    Mistake("mean over one text", faithful("When Mary"), ValueError, ("a list of prompts",)),
    Mistake(
        "unknown ablation", faithful(ablate="noise"), ValueError, ("ablate='noise'", '"resample"')
    ),
    Mistake("zero with prompts", faithful([IDS], ablate="zero"), ValueError, ("leave them out",)),
    Mistake(
        "resample without prompt", faithful(ablate="resample"), ValueError, ("another prompt",)
    ),
    Mistake(
        "resample of another length",
        faithful(IDS[:-1], ablate="resample"),
        ValueError,
        (f"{N_TOKENS - 1} tokens", "equal length"),
    ),
    Mistake(
        "prompts of other lengths",
        faithful([IDS, IDS[:-1]]),
        ValueError,
        (f"[{N_TOKENS - 1}, {N_TOKENS}] tokens", "roles="),
    ),
    Mistake("one role list short", faithful([IDS], roles=[{}]), ValueError, ("2 mappings",)),
    Mistake(
        "roles of other names",
        faithful([IDS], roles=[{"END": -1}, {"S1": 2}]),
        ValueError,
        ("['END']", "S1"),
    ),
    Mistake(
        "a role outside", faithful([IDS], roles=[{"END": 99}] * 2), ValueError, ("position 99",)
    ),
    Mistake(
        "a run of another model", faithful([wordless().run(IDS)]), ValueError, ("another model",)
    ),
    Mistake(
        "no mean of what has no name",
        faithful([IDS[:1]], roles=[{"END": -1}] * 2),
        ValueError,
        ("positions without a name", "Name all that matters"),
    ),
    Mistake("falling shares", faithful(shares=[0.5, 0.1]), ValueError, ("rising shares",)),
    Mistake("shares above 1", faithful(shares=[0.5, 2.0]), ValueError, ("at most 1",)),
    Mistake("no random halves", faithful(random=0), ValueError, ("random=0", "1 or more")),
    Mistake("greedy half", faithful(greedy=0.5), ValueError, ("greedy=0.5", "0 or more")),
    Mistake(
        "a role of tokens alone",
        faithful(
            groups={
                "words": circuit().nodes.index[circuit().nodes["kind"].eq("token")].tolist()[:1]
            }
        ),
        ValueError,
        ("'words'", "ablated", "stay"),
    ),
    Mistake("no batch", faithful(batch=0), ValueError, ("batch=0", "1 or more")),
    Mistake("on no targets", faithful(on=[]), TypeError, ("on=[]", "a list of targets")),
    Mistake(
        "on targets, resampled",
        faithful(IDS, ablate="resample", on=[run().logit(3)]),
        ValueError,
        ("another run would be needed",),
    ),
    Mistake(
        "on a target of another length",
        faithful([IDS], on=[model().run(IDS[:-1]).logit(3)]),
        ValueError,
        ("equal length",),
    ),
    Mistake(
        "faithfulness of a contrast",
        lambda _: trace(run().logit(" Mary"), against=run().token_ids.flip(0)).faithfulness(),
        ValueError,
        ("contrast", "resample"),
    ),
]


@each([*EDITS, *TESTS, *FAITHFULNESS])
def test_mistakes(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)


@each(GENERATION)
def test_mistakes_in_generation(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)


@pytest.mark.parametrize("wrong", EDITS[:-2], ids=lambda one: one.name)
def test_nothing_runs_before_an_edit_is_refused(wrong: Mistake, tmp_path: Path) -> None:
    with (
        mock.patch("replacement.tracing.Tracer.run_edited", side_effect=AssertionError) as ran,
        pytest.raises(wrong.error),
    ):
        wrong.call(tmp_path)
    assert not ran.called
