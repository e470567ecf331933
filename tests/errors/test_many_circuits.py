"""What global weights, means over prompts, comparisons and feature cards refuse."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("duckdb")

from attribution.connections import connections
from attribution.global_weights import strongest_weights, virtual_weights
from attribution.vocabulary import feature_tokens
from circuits import AverageCircuit, build_features, compare, load, read_cards, trace, trace_many
from circuits.average import average_of
from tests.circuits.folders import PROMPT, text_model, text_transcoders, tokenizer
from tests.errors.mistakes import Mistake, assert_explained, each, made, made_file
from tests.errors.models_given import circuit, model, run
from tests.samples import random_gpt2

ROW = {"prompt": "When Mary and John went to the", "explain": " store"}
N_TOKENS = 8


def joined(*rows: Any, **options: Any) -> AverageCircuit:
    """The mean of rows; a sound one by default."""
    return trace_many(rows or [ROW], **{"model": model(), "progress": False, **options})


def with_roles(roles: Any, **options: Any) -> AverageCircuit:
    return joined({**ROW, "roles": roles}, **options)


def averaged(folder: Path) -> Path:
    joined(folder=folder / "job")
    return folder / "job"


FEATURES = [
    Mistake(
        "feature of an unknown name",
        lambda _: connections(model(), "L1 f5"),
        TypeError,
        ("'L1 f5' names no feature", "(layer, index)", '"L1.f512"'),
    ),
    Mistake("a number", lambda _: connections(model(), 5), TypeError, ("5 names no feature",)),
    Mistake(
        "row of no feature",
        lambda _: connections(model(), pd.Series({"a": 1})),
        TypeError,
        ("names no feature", "circuit.nodes"),
    ),
    Mistake(
        "sublayer without features",
        lambda _: connections(model(), (9, 5)),
        ValueError,
        ("layer 9, sublayer 'mlp': no features", "(0, 'mlp')"),
    ),
    Mistake(
        "index outside",
        lambda _: connections(model(), (0, 10**6)),
        IndexError,
        ("mlp of layer 0 has", "numbered from 0"),
    ),
    *(
        Mistake(
            f"k {wrong!r}",
            lambda _, wrong=wrong: connections(model(), (0, 1), k=wrong),
            ValueError,
            (f"k={wrong!r}", "whole number from 1"),
        )
        for wrong in (0, 1.5, True)
    ),
    Mistake(
        "tokens, k",
        lambda _: feature_tokens(model(), (0, 1), k=0),
        ValueError,
        ("k=0", "how many tokens"),
    ),
    Mistake(
        "unknown weighting",
        lambda _: connections(model(), (0, 1), runs=[run()], weighting="both"),  # type: ignore[arg-type]
        ValueError,
        ("weighting='both'", '"active"', '"activation"'),
    ),
    Mistake(
        "no runs",
        lambda _: connections(model(), (0, 1), runs=[]),
        ValueError,
        ("there are none", "one run or more"),
    ),
    Mistake(
        "a run of another model",
        lambda _: connections(model(), (0, 1), runs=[load(random_gpt2()).run([1, 2])]),
        ValueError,
        ("no run of this model", "model.run(prompt)"),
    ),
    Mistake(
        "text for a run",
        lambda _: connections(model(), (0, 1), runs=["When"]),  # type: ignore[list-item]
        ValueError,
        ("'When' is no run",),
    ),
    Mistake(
        "unknown way",
        lambda _: virtual_weights(model(), (1, "mlp"), (0, "mlp"), "L1.h3"),
        ValueError,
        ("via='L1.h3'", "mlp of layer 1 reads via residual"),
    ),
    Mistake(
        "unknown direction",
        lambda _: strongest_weights(model(), (1, "mlp"), direction="up"),  # type: ignore[arg-type]
        ValueError,
        ("direction='up'", '"in"', '"out"'),
    ),
    Mistake(
        "weights of a contrast",
        lambda _: trace(run().logit(3), against=run().token_ids.flip(0), progress=False).weights(),
        ValueError,
        ("a contrast", "Trace without against="),
    ),
    Mistake(
        "weights of direct effects",
        lambda _: trace(run().logit(3), edges="direct", progress=False).weights(),
        ValueError,
        ('edges="direct"', "Trace without"),
    ),
]

MANY = [
    Mistake("no items", lambda _: trace_many([]), ValueError, ("no prompts", "one target or row")),
    Mistake(
        "text for an item",
        lambda _: joined("When Mary went"),
        TypeError,
        ("item 0 is a str", "A target is needed, or a row", '"explain"'),
    ),
    Mistake(
        "row without a model",
        lambda _: joined(model=None),
        ValueError,
        ("item 0 is a row", "model=model"),
    ),
    Mistake(
        "row without explain",
        lambda _: joined(ROW, {"prompt": "When"}),
        ValueError,
        ("item 1 has no 'explain'", "minus, roles and against (a counterfactual)"),
    ),
    Mistake(
        "row with more",
        lambda _: joined({**ROW, "plus": " a"}),
        ValueError,
        ("item 0 has an unknown 'plus'",),
    ),
    Mistake(
        "token that is none",
        lambda _: joined(ROW, {**ROW, "explain": " Mary John"}),
        ValueError,
        ("item 1: ", "Mary John"),
    ),
    *(
        Mistake(
            f"roles {wrong!r}",
            lambda _, wrong=wrong: with_roles(wrong),
            TypeError,
            ("item 0: roles=", '"positions"', '"END": -1'),
        )
        for wrong in ("everything", [1, 2], {}, 5)
    ),
    Mistake(
        "role outside",
        lambda _: with_roles({"IO": N_TOKENS}),
        ValueError,
        ("item 0: role 'IO'", f"position {N_TOKENS} is outside the prompt of {N_TOKENS} tokens"),
    ),
    Mistake(
        "role at no position",
        lambda _: with_roles({"IO": 1.5}),
        ValueError,
        ("role 'IO': position 1.5",),
    ),
    Mistake(
        "two roles at one position",
        lambda _: with_roles({"IO": 2, "S": 2}),
        ValueError,
        ("position 2 is both 'IO' and 'S'", "Leave one of them out"),
    ),
    *(
        Mistake(
            f"role named {wrong!r}",
            lambda _, wrong=wrong: with_roles({wrong: 2}),
            ValueError,
            (f"role {wrong!r}: a name is text", "'other'"),
        )
        for wrong in ("", "other", 3)
    ),
    Mistake(
        "two lengths where positions are roles",
        lambda _: joined(ROW, {"prompt": "When Mary", "explain": " and"}, roles="positions"),
        ValueError,
        ("item 1: number of tokens 3", "was 8 before"),
    ),
    *(
        Mistake(
            f"block {wrong!r}",
            lambda _, wrong=wrong: joined(block=wrong),
            ValueError,
            (f"block={wrong!r}", "1 or more"),
        )
        for wrong in (0, 2.5)
    ),
    *(
        Mistake(
            f"min_share {wrong!r}",
            lambda _, wrong=wrong: joined(min_share=wrong),
            ValueError,
            (f"min_share={wrong!r}", "0 (keep all) to 1"),
        )
        for wrong in (-0.1, 1.1, "all", True)
    ),
    Mistake(
        "a file for a folder",
        lambda folder: joined(folder=made_file(folder / "job")),
        ValueError,
        ("is a file; give a folder",),
    ),
    Mistake(
        "a folder without an average",
        lambda folder: AverageCircuit.read(folder),
        FileNotFoundError,
        ("holds no average of circuits", "trace_many"),
    ),
    Mistake(
        "a table that is cut",
        lambda folder: cut(averaged(folder)),
        ValueError,
        ("nodes.parquet", "no sound parquet file"),
    ),
    Mistake(
        "test of a mean",
        lambda _: joined().test(),
        ValueError,
        ("circuit.test", "mean of 1 prompts", "nodes_in"),
    ),
    Mistake(
        "attach to a mean", lambda _: joined().attach(model()), ValueError, ("mean of 1 prompts",)
    ),
]


def cut(folder: Path) -> AverageCircuit:
    path = folder / "nodes.parquet"
    path.write_bytes(path.read_bytes()[:100])
    return average_of(folder, 0.05)


def read_otherwise() -> Any:
    return load(text_model(), tokenizer(), mlp=text_transcoders())


COMPARED = [
    Mistake(
        "comparison with text",
        lambda _: compare(circuit(), "ioi.circuit"),
        TypeError,
        ("b is a str", "a circuit is needed"),
    ),
    Mistake(
        "comparison of two ways to read",
        lambda _: compare(
            circuit(), trace(read_otherwise().run(PROMPT).logit(" Mary"), progress=False)
        ),
        ValueError,
        ("layers is", "in a and", "trace both so"),
    ),
    Mistake(
        "comparison of two lengths",
        lambda _: compare(circuit(), trace(model().run("When Mary").logit(" and"), progress=False)),
        ValueError,
        ("tokens in a and 3 tokens in b", 'roles="pooled"'),
    ),
    *(
        Mistake(
            f"comparison by {wrong!r}",
            lambda _, wrong=wrong: compare(circuit(), circuit(), roles=wrong),
            TypeError,
            (says,),
        )
        for wrong, says in (("all", "two mappings"), (({}, 3), "the roles of b are 3"))
    ),
    Mistake(
        "comparison with a role outside",
        lambda _: compare(circuit(), circuit(), roles=({"END": -1}, {"END": 99})),
        ValueError,
        ("role 'END' of b", "position 99"),
    ),
]

CARDS = [
    Mistake(
        "cards of nothing",
        lambda folder: build_features(model(), [], folder / "cards", progress=False),
        ValueError,
        ("there are no prompts",),
    ),
    *(
        Mistake(
            f"cards with {name} {wrong!r}",
            lambda folder, name=name, wrong=wrong: build_features(
                model(), ["When"], folder / "cards", progress=False, **{name: wrong}
            ),
            ValueError,
            (f"{name}={wrong!r}", "whole number from"),
        )
        for name, wrong in (("top", 0), ("tokens", -1), ("top", 1.5))
    ),
    Mistake(
        "cards over something else",
        lambda folder: build_features(model(), ["When"], made(folder / "mine"), progress=False),
        ValueError,
        ("is there and holds no feature cards", "Give a new folder"),
    ),
    Mistake(
        "no folder of cards",
        lambda folder: read_cards(folder / "nothing"),
        FileNotFoundError,
        ("no such folder", "build_features"),
    ),
    Mistake(
        "folder without cards",
        lambda folder: read_cards(folder),
        ValueError,
        ("holds no feature cards", "cards.json"),
    ),
    Mistake(
        "card of an unknown feature",
        lambda folder: build_features(
            model(), ["When Mary"], folder / "cards", tokens=0, progress=False
        ).card("L9.f3"),
        KeyError,
        ("'L9.f3': no card of that name", "(layer, index) of an MLP"),
    ),
    Mistake(
        "a folder for cards",
        lambda _: circuit().detailed(cards="cards"),
        TypeError,
        ("detailed(cards='cards'): is a str", "circuits.read_cards(folder)"),
    ),
    Mistake(
        "cards of layers read otherwise",
        lambda folder: circuit().detailed(
            tokens=0,
            attention=0,
            cards=build_features(
                read_otherwise(), ["When Mary"], folder / "cards", tokens=0, progress=False
            ),
        ),
        ValueError,
        ("is of layers", "the circuit of", "build_features(model, prompts, folder)"),
    ),
]


def faithful(*given: Any, **options: Any) -> Any:
    """How much the mean of a sound row keeps."""
    return lambda _: joined().faithfulness(
        *given, **{"model": model(), "progress": False, **options}
    )


KEPT = [
    Mistake("kept in no prompts", faithful([]), ValueError, ("no prompts", "one target or row")),
    Mistake("kept over no reference", faithful([ROW], []), ValueError, ("no prompts", "or more")),
    Mistake(
        "kept in a row without model",
        faithful([ROW], model=None),
        ValueError,
        ("item 0 is a row", "model=model"),
    ),
    Mistake(
        "kept in a role outside",
        faithful([{**ROW, "roles": {"END": 99}}]),
        ValueError,
        ("item 0: role 'END'", "outside the prompt"),
    ),
    Mistake(
        "kept in another model",
        lambda _: joined().faithfulness([ROW], model=read_otherwise(), progress=False),
        ValueError,
        ("item 0 is of", "the circuit is of", "read likewise"),
    ),
    Mistake(
        "kept in a contrast",
        faithful([{**ROW, "against": "When John and Mary went to the"}]),
        ValueError,
        ("item 0 is a contrast", "plain targets"),
    ),
    Mistake(
        "kept without a mean",
        faithful([ROW], [{**ROW, "prompt": [5]}]),
        ValueError,
        ("item 0 has a position in 'other'", "reference= prompts"),
    ),
    Mistake("kept shares", faithful([ROW], shares=[1, 2]), ValueError, ("rising shares",)),
]


@each([*FEATURES, *MANY, *COMPARED, *CARDS, *KEPT])
def test_refused_with_a_reason(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
