"""Programs compiled to models: they answer right, use the edges they say, and nothing else."""

import itertools

import pytest
import torch

from benchmarks.truth.components import Component, Edge
from benchmarks.truth.measure import Measured, measured
from benchmarks.truth.perfect import perfect_lorsa, perfect_transcoders
from benchmarks.truth.program import Program, Recipe
from benchmarks.truth.programs import GROUPS, HELD_OUT, PROGRAMS, RULE_CHOSEN_ON
from circuits import load, trace

RECIPES = list(PROGRAMS.values())
INPUT, OUTPUT = Component("input"), Component("output")


def named(recipe: Recipe) -> str:
    return recipe.name


@torch.no_grad()
def share_right(program: Program) -> float:
    right = 0
    for pair in program.pairs:
        logits = program.model(torch.tensor([pair.clean])).logits[0, -1]
        right += int(logits.argmax()) in pair.answers
    return right / len(program.pairs)


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_every_program_answers_right(recipe: Recipe) -> None:
    """Plain, rotated and among dummies alike: the same logits to rounding."""
    plain = recipe.build(count=40)
    disguised = recipe.build(rotated=True, dummies=2, count=40)
    assert share_right(plain) == 1
    for pair in disguised.pairs[:4]:
        with torch.no_grad():
            ids = torch.tensor([pair.clean])
            one, other = plain.model(ids).logits, disguised.model(ids).logits
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert [pair.clean for pair in plain.pairs] == [pair.clean for pair in disguised.pairs]


@pytest.mark.parametrize("recipe", [*RULE_CHOSEN_ON, *HELD_OUT], ids=named)
def test_a_program_without_its_last_head_answers_wrong(recipe: Recipe) -> None:
    """Negative control: the answers come from the wiring, not from how they are counted."""
    program = recipe.build(rotated=True, count=30)
    last = max(edge.reader.layer for edge in program.circuit if edge.reader.kind == "head")
    attention = program.model.transformer.h[last].attn
    attention.c_proj.weight.zero_()
    if recipe.name == "proportions":
        said = [metric_of(program, pair.clean, pair) for pair in program.pairs]
        assert said == pytest.approx([0] * len(said))
    else:
        assert share_right(program) < 0.9


@torch.no_grad()
def metric_of(program: Program, ids: list[int], pair) -> float:
    return float(pair.metric(program.model(torch.tensor([ids])).logits[:, -1]))


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_pairs_are_of_one_length_and_differ(recipe: Recipe) -> None:
    program = recipe.build(count=60)
    assert all(len(pair.clean) == len(pair.other) in recipe.lengths for pair in program.pairs)
    assert all(pair.clean != pair.other for pair in program.pairs)
    assert all(pair.clean[0] == pair.other[0] == 0 for pair in program.pairs), "<bos>"
    assert len({tuple(pair.clean) for pair in program.pairs}) > 1


def test_proportions_says_the_share_itself() -> None:
    program = PROGRAMS["proportions"].build(rotated=True, count=30)
    for pair in program.pairs:
        letters = pair.clean[1:]
        found = metric_of(program, pair.clean, pair)
        assert found == pytest.approx(letters.count(2) / len(letters), abs=1e-9)


def head(layer: int, index: int = 0) -> Component:
    return Component("head", layer, index)


def into(reader: Component, **writers: list[Component]) -> set[Edge]:
    return {Edge(writer, reader, via) for via, found in writers.items() for writer in found}


CIRCUITS: dict[str, set[Edge]] = {
    # every head may also look at where <bos> is, and at positions
    "induction": into(head(0), q=[INPUT], k=[INPUT], v=[INPUT])
    | into(head(1), q=[INPUT], k=[INPUT, head(0)], v=[INPUT])
    | into(OUTPUT, out=[head(1)]),
    "symbolic_ioi": into(head(0), q=[INPUT], k=[INPUT], v=[INPUT])
    | into(head(1), k=[INPUT, head(0)], v=[head(0)])
    | into(head(2), q=[head(1)], k=[INPUT], v=[INPUT])
    | into(OUTPUT, out=[head(2)]),
    "histogram": into(head(0), q=[INPUT], k=[INPUT], v=[INPUT])
    | into(Component("mlp", 0), mlp=[head(0)])
    | into(OUTPUT, out=[Component("mlp", 0)]),
}
"""Written down by hand, apart from the code that reads edges off the wiring."""


@pytest.mark.parametrize("name", CIRCUITS)
def test_edges_read_off_the_wiring_are_those_meant(name: str) -> None:
    assert PROGRAMS[name].build(count=1).circuit == CIRCUITS[name]
    assert PROGRAMS[name].build(count=1, rotated=True, dummies=1).circuit == CIRCUITS[name]


@pytest.fixture(scope="module")
def of_disguised() -> dict[str, Measured]:
    """Every program in a random basis among dummies, cut edge by edge."""
    kinds = ["resample", "frozen resample"]
    return {
        name: measured(recipe.build(rotated=True, dummies=1, count=2), kinds)
        for name, recipe in PROGRAMS.items()
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_cuts_show_only_edges_of_the_wiring(name: str, of_disguised: dict[str, Measured]) -> None:
    """And so none through dummies."""
    of = of_disguised[name]
    for truth in of.truths.values():
        assert truth.any()
        assert not (truth & ~of.declared).any()
    by_look = torch.tensor([edge.via in ("q", "k") for edge in of.components.edges])
    assert not (of.truths["frozen resample"] & by_look).any()


def test_dummies_are_seen_by_nobody_and_do_something(of_disguised: dict[str, Measured]) -> None:
    """They write, and look elsewhere for another prompt: only nobody reads it."""
    of = of_disguised["closing_bracket"]
    pair, dummy = of.program.pairs[0], 1
    runs = [of.components.run(ids) for ids in (pair.clean, pair.other)]
    moved = [run.layers[1].attention.mixed[:, dummy] for run in runs]
    assert float((moved[0] - moved[1]).abs().max()) > 0.1
    assert float(runs[0].layers[1].attention.pattern[dummy].std()) > 0.01


def test_gates_hide_what_single_cuts_cannot_show(of_disguised: dict[str, Measured]) -> None:
    """Resampling one of two inputs: nothing for OR, everything for AND; no cut shows a backup."""

    def shown(name: str, truth: str = "resample") -> set[str]:
        of = of_disguised[name]
        found = zip(of.components.edges, of.truths[truth], strict=True)
        return {str(edge) for edge, true in found if true}

    assert shown("or_gate") == {"mlp 0 → output out"}
    assert shown("and_gate") >= {"input → head 0.0 v", "input → head 0.1 v"}
    assert "head 0.0 → head 1.0 q" in shown("negative_head")
    backup = shown("backup_head")
    assert "head 0.0 → output out" in backup
    assert "head 0.0 → head 1.0 q" not in backup
    wiring = of_disguised["backup_head"].program.circuit
    assert "head 0.0 → head 1.0 q" in {str(edge) for edge in wiring}


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_norms_divide_by_a_constant(recipe: Recipe) -> None:
    """The share by which a denominator differs from the constant it should be: none in float64."""
    program = recipe.build(rotated=True, dummies=2, count=3)
    model = load(program.model, attention="heads", mlp="neurons")
    weights = model.weights
    norms = [norm for one in weights.layers for norm in (one.attention_norm, one.mlp_norm)]
    for pair in program.pairs:
        run = model.run(pair.clean)
        for norm, stream in zip([*norms, weights.final_norm], run.residuals, strict=True):
            assert float((norm.scale(stream) / norm.eps**0.5 - 1).abs().max()) == 0
            assert norm.gain is not None
            assert float((norm.apply(stream, norm.scale(stream)) - stream).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["closing_bracket", "balanced"])
def test_neurons_and_channels_are_perfect_layers(name: str) -> None:
    """As heads and neurons, and as Lorsa and transcoders: nothing is left over as an error."""
    program = PROGRAMS[name].build(rotated=True, dummies=1, count=1)
    own = load(program.model, attention="heads", mlp="neurons")
    layers = {"attention": perfect_lorsa(own), "mlp": perfect_transcoders(own)}
    for model in (own, load(program.model, **layers)):
        for pair, against in itertools.product(program.pairs, (False, True)):
            run = model.run(pair.clean)
            (token,) = pair.answers
            target = run.logit(token)
            other = model.run(pair.other) if against else None
            explained = trace(target, threshold=0, against=other, progress=False).explained
            assert abs(explained["error"]) < 1e-9
            assert abs(explained["pruned"]) < 1e-9
    broken = [*layers["mlp"][1:], layers["mlp"][0]]
    spoilt = load(program.model, attention=layers["attention"], mlp=broken)
    run = spoilt.run(program.pairs[0].clean)
    errors = [part.error.abs().max() for part in run.sublayers if part.name == "mlp"]
    assert max(map(float, errors)) > 0.1, "control: the layers of other MLPs miss something"


def test_at_least_five_models_had_no_part_in_the_choice() -> None:
    assert len(HELD_OUT) >= 5
    assert not {one.name for one in HELD_OUT} & {one.name for one in RULE_CHOSEN_ON}
    assert sum(len(group) for group in GROUPS.values()) == len(PROGRAMS)
