"""`circuit.faithfulness()`: only the circuit left in the real model, against plain hooks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from circuits import load, testing, trace
from circuits.circuit import Circuit
from circuits.faithfulness import Faithfulness, keep_each
from circuits.references import Ablation, ablation_of
from circuits.removal import Removed, completeness_table, minimality_table
from circuits.testing import as_nodes
from replacement.edits.keeping import kept_values, nodes_of_run, values_of
from replacement.run import Run
from tests.attribution.test_families import run_of
from tests.families import CONFIGS
from tests.replacement.test_edited_runs import entering
from tests.samples import CASES, SHAPES, TARGETS, Case, random_gpt2, random_ids, random_run

EXACT = 1e-9
SHAPE = SHAPES["deep"]
OTHERS = [random_ids(SHAPE, seed) for seed in (21, 22, 23)]


def parts_by_hooks(model: Any, ids: list[int]) -> dict[tuple[int, str], Tensor]:
    """Return what enters every W_O and every MLP's last map, from plain hooks."""
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(place: tuple[int, str]) -> Any:
        return lambda x: seen.setdefault(place, x)

    places = [(layer, part) for layer in range(SHAPE.n_layers) for part in ("attn", "mlp")]
    with torch.no_grad(), entering(model, {place: keep(place) for place in places}):
        model(torch.tensor([ids]))
    return seen


def logit_by_hooks(model: Any, ids: list[int], kept: dict[Any, Tensor], others: Any) -> float:
    """Return logit 3 less logit 5 at the end with all but what is kept at other values."""

    def change(place: tuple[int, str]) -> Any:
        return lambda x: torch.where(kept[place], x, others[place])

    with torch.no_grad(), entering(model, {place: change(place) for place in kept}):
        logits = model(torch.tensor([ids])).logits[0, -1]
    return float(logits[3] - logits[5])


@pytest.mark.parametrize("ablate", ["mean", "resample", "zero"])
def test_kept_alone_is_what_hooks_measure(ablate: str) -> None:
    model, ids = random_gpt2(SHAPE), random_ids(SHAPE)
    run = load(model).run(ids)
    circuit = trace(run.logit(3) - run.logit(5), 0.05, progress=False)
    given = {"mean": OTHERS, "resample": OTHERS[0], "zero": None}[ablate]
    result = circuit.faithfulness(given, ablate=ablate, progress=False)
    seen = [parts_by_hooks(model, other) for other in OTHERS]
    kept = {place: torch.zeros_like(x, dtype=torch.bool) for place, x in seen[0].items()}
    width = SHAPE.d_model // SHAPE.n_heads
    for row in circuit.nodes.itertuples():
        if row.kind == "head":
            kept[row.layer, "attn"][0, row.pos, row.index * width : (row.index + 1) * width] = True
        if row.kind == "neuron":
            kept[row.layer, "mlp"][0, row.pos, row.index] = True
    others = {
        "mean": {place: torch.stack([one[place] for one in seen]).mean(0) for place in kept},
        "resample": seen[0],
        "zero": {place: torch.zeros_like(x) for place, x in seen[0].items()},
    }[ablate]
    nothing = {place: torch.zeros_like(mask) for place, mask in kept.items()}
    rest = {place: ~mask for place, mask in kept.items()}
    found = (result.circuit, result.complement, result.empty)
    for value, masks in zip(found, (kept, rest, nothing), strict=True):
        assert value == pytest.approx(logit_by_hooks(model, ids, masks, others), abs=EXACT)
    assert result.model == pytest.approx(circuit.value, abs=EXACT)
    assert abs(result.circuit - result.model) > 1e-6, "something was ablated"
    share = (result.circuit - result.empty) / (result.model - result.empty)
    assert result.faithfulness == pytest.approx(share)


def sets_of(run: Run) -> tuple[Any, Tensor]:
    nodes = nodes_of_run(run)
    source = torch.Generator().manual_seed(4)
    kept = torch.rand(4, len(nodes), generator=source) < torch.tensor([[0.0], [0.3], [0.7], [1.0]])
    return nodes, kept


def assert_own_values_change_nothing(run: Run, other: Run) -> None:
    target, (nodes, kept) = run.logit(3) - run.logit(5), sets_of(run)
    some = torch.zeros(4, dtype=torch.bool)
    values = kept_values(target, nodes, kept, some, values_of(run))
    assert float((values - target.value).abs().max()) <= EXACT * max(1.0, abs(target.value))
    others = kept_values(target, nodes, kept, some, values_of(other))
    assert float((others - target.value).abs().max()) > 1e-4, "control: other values change it"
    whole = kept_values(target, nodes, kept[-1:], ~some[:1], values_of(other))
    assert abs(float(whole) - target.value) <= EXACT * max(1.0, abs(target.value))


@pytest.mark.parametrize("case", [case for case in CASES if "one" not in case.shape][::3], ids=str)
def test_ablating_to_its_own_values_changes_nothing(case: Case) -> None:
    """Every kind of node, errors and skips, is where it was: no term is forgotten."""
    run = random_run(case)
    other = run.model.run(random_ids(SHAPES[case.shape], 50), errors=case.errors)
    assert_own_values_change_nothing(run, other)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("learned", [True, "across"])
def test_it_holds_in_every_family(name: str, learned: bool | str) -> None:
    run = run_of(name, learned)
    assert_own_values_change_nothing(run, run.model.run([1, 2, 3, 4, 5, 6, 7, 8]))


def traced() -> Circuit:
    run = random_run(Case("deep", "jumprelu", skip=True, seed=1))
    return trace(TARGETS["difference"](run), 0.05, progress=False)


def made(**settings: Any) -> Faithfulness:
    return traced().faithfulness(OTHERS, progress=False, **settings)


def test_the_curve_and_its_areas() -> None:
    result = made(shares=[0.1, 0.5, 1.0])
    curve = result.curve
    assert curve["nodes"].iloc[-1] == result.n_all and curve["faithfulness"].iloc[-1] == 1.0
    first, second, last = curve["faithfulness"]
    assert result.cpr == pytest.approx(0.4 * (first + second) / 2 + 0.5 * (second + last) / 2)
    gap = abs(1 - np.array([first, second, last]))
    assert result.cmd == pytest.approx(0.4 * (gap[0] + gap[1]) / 2 + 0.5 * (gap[1] + gap[2]) / 2)
    assert "CPR" in repr(result) and f"{result.n_nodes} of {result.n_all}" in repr(result)


def test_the_picture_shows_the_curve_the_circuit_and_its_complement(tmp_path: Path) -> None:
    result = made()
    text = result.save(tmp_path / "curve.svg").read_text()
    assert text.count("<circle") == 2 * 2 and "all but it" in text
    points = text[text.index("<polyline") :].split('"')[1].split()
    assert len(points) == len(result.curve)


def test_the_curve_begins_with_the_circuit() -> None:
    """At the share that the circuit has, the strongest nodes are the circuit."""
    result = made()
    again = made(shares=[result.n_nodes / result.n_all, 1.0])
    assert again.curve["nodes"].iloc[0] == result.n_nodes
    assert again.curve["value"].iloc[0] == pytest.approx(result.circuit, abs=EXACT)


def test_the_batch_size_changes_nothing_and_a_seed_repeats() -> None:
    one, other = made(batch=3), made(batch=64)
    for name in ("curve", "completeness", "minimality"):
        first, second = getattr(one, name), getattr(other, name)
        columns = first.select_dtypes("number").columns
        numbers = [table[columns].to_numpy(float, na_value=np.nan) for table in (first, second)]
        np.testing.assert_allclose(*numbers, rtol=1e-8, atol=1e-9)
    assert not made(seed=1).completeness.equals(one.completeness)


def test_completeness_and_minimality_are_of_nodes_taken_out() -> None:
    """Every value again, from masks written out; the greedy sets from a search written out."""
    circuit = traced()
    run: Run = circuit.run
    result = circuit.faithfulness(OTHERS, strongest=4, greedy=2, progress=False)
    scale = abs(result.model - result.empty)
    nodes, ablation = nodes_of_run(run), ablation_of(run, OTHERS, None, None)
    target = run.target(circuit.meta["target"]["terms"])
    rows = testing.tested_nodes(circuit.data)
    number = {
        label: nodes.number(run, node)
        for label, node in zip(rows.index, as_nodes(rows), strict=True)
        if nodes.number(run, node) >= 0
    }

    def value(labels: Any, *, of_model: bool = False) -> float:
        mask = np.full(len(nodes), of_model)
        mask[list(number.values())] = True
        mask[[number[label] for label in labels]] = False
        given = [(mask, of_model)]
        return float(keep_each([target], nodes, given, ablation, batch=None, progress=False)[0])

    def incomplete(labels: Any) -> float:
        return abs(value(labels) - value(labels, of_model=True)) / scale

    by_pos = rows.loc[list(number)].groupby("pos").groups
    roles = result.completeness.loc[result.completeness["kind"].eq("role")]
    assert roles["removed"].tolist() == [len(one) for one in by_pos.values()] != [len(number)]
    np.testing.assert_allclose(roles["gap"], [incomplete(one) for one in by_pos.values()])
    strongest = result.minimality.index.tolist()
    taken: list[int] = []
    for _ in range(2):
        ways = [[*taken, one] for one in strongest if one not in taken]
        best = max(ways, key=incomplete)
        taken = best if not taken or incomplete(best) > incomplete(taken) else taken
    greedy = result.completeness.set_index("kind").loc["greedy"]
    assert greedy["removed"] == len(taken)
    assert greedy["gap"] == pytest.approx(incomplete(taken))
    for label, row in result.minimality.iterrows():

        def matters(without: list[int], label: Any = label) -> float:
            return abs(value([*without, label]) - value(without)) / scale

        assert row["alone"] == pytest.approx(matters([]))
        (role,) = [list(one) for one in by_pos.values() if label in one]
        worst = max([], [one for one in role if one != label], key=matters)
        for _ in range(2):
            more = [[*worst, one] for one in strongest if one != label and one not in worst]
            worst = max([worst, *more], key=matters)
        assert row["gap"] == pytest.approx(matters(worst)) and row["removed"] == len(worst)
    assert (result.minimality["gap"] > 1.01 * result.minimality["alone"]).any()


def either(sets: Sequence[tuple[np.ndarray, bool]]) -> np.ndarray:
    """Two nodes of which either does it, and one of no use."""
    return np.array([float(kept[0] or kept[1]) for kept, _ in sets])


def test_a_backup_is_found_by_what_is_taken_out() -> None:
    """Both of a pair matter once the other is gone; a circuit with one of them is not complete."""
    names, none = {0: "one", 1: "backup", 2: "idle"}, {}
    both = Removed(either, np.array([True, True, True]))
    found = minimality_table(both, none, names, greedy=1, scale=1.0)
    assert found["alone"].tolist() == [0, 0, 0] and found["gap"].tolist() == [1, 1, 0]
    assert found["without"].tolist() == ["backup", "one", ""]
    by_role = minimality_table(both, {"pair": frozenset({0, 1})}, names, greedy=0, scale=1.0)
    assert by_role["gap"].tolist() == [1, 1, 0] and by_role["without"][0] == "rest of pair"
    one = Removed(either, np.array([True, False, True]))
    tables = [
        completeness_table(circuit, [], none, names, greedy=2, scale=1.0) for circuit in (one, both)
    ]
    assert tables[0][["kind", "name", "gap"]].to_numpy().tolist() == [["greedy", "one", 1.0]]
    assert tables[1].empty, "nothing outside it does its work"


def test_roles_are_groups_given_the_circuit_s_own_or_positions() -> None:
    circuit = traced()
    interior = circuit.nodes.index[circuit.nodes["kind"].isin(["feature", "head"])].tolist()
    settings: Any = {"greedy": 0, "strongest": 2, "random": 1, "progress": False}
    given = circuit.faithfulness(OTHERS, groups={"three": interior[:3]}, **settings)
    own = circuit.group({"three": interior[:3]}).faithfulness(OTHERS, **settings)
    plain = circuit.faithfulness(OTHERS, **settings)
    assert given.completeness.equals(own.completeness)
    assert given.completeness["name"].tolist() == ["half 0", "three"]
    assert given.completeness["removed"].iloc[1] == 3
    assert set(plain.completeness["kind"]) == {"random", "role"} and len(plain.completeness) > 3


def test_edges_are_counted_where_the_circuit_has_them() -> None:
    """Between nodes kept, tokens and the target; none known beyond the circuit's own nodes."""
    circuit = traced()
    result = circuit.faithfulness(progress=False)
    whole = result.n_nodes / result.n_all
    curve = circuit.faithfulness(shares=[whole / 3, whole, 1.0], progress=False).curve
    some, every, beyond = curve["edges"]
    assert every == len(circuit.edges) > some > 0 and pd.isna(beyond)
    counted = testing.tested_nodes(circuit.data)
    tokens = counted["kind"].isin(["token", "position"])
    order = counted.loc[~tokens, "attribution"].abs().sort_values(ascending=False)
    kept = [*order.index[: curve["nodes"].iloc[0]], *counted.index[tokens], circuit.data.target]
    ends = [circuit.edges[side].isin(kept) for side in ("source", "target")]
    assert some == (ends[0] & ends[1]).sum()


def test_roles_line_prompts_of_other_lengths_up() -> None:
    """Named positions get the mean of their role, the others that of all unnamed ones."""
    model = load(random_gpt2(SHAPE))
    run, short, long = (model.run(ids) for ids in ([1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11, 12]))
    roles = [{"a": 1, "end": -1}, {"a": 0, "end": -1}, {"a": 3, "end": -1}]
    ablation = ablation_of(run, [short, long], "mean", roles)
    assert ablation.slots is not None and ablation.slots.tolist() == [2, 0, 2, 1]
    part = (1, "mlp", "nodes")
    here, there = values_of(short)[part], values_of(long)[part]
    rest = torch.cat([here[1:2], there[[0, 1, 2]]]).mean(0)
    expected = torch.stack([(here[0] + there[3]) / 2, (here[2] + there[4]) / 2, rest])
    torch.testing.assert_close(ablation.means[part], expected)


def test_it_can_be_measured_on_other_prompts() -> None:
    model = load(random_gpt2(SHAPE))
    run, other = model.run([1, 2, 3, 4]), model.run([4, 3, 2, 1])
    circuit = trace(run.logit(3), 0.05, progress=False)
    both = [run.logit(3), other.logit(6)]
    results = [
        circuit.faithfulness(OTHERS, on=on, progress=False).circuit
        for on in ([both[0]], [both[1]], both)
    ]
    assert results[2] == pytest.approx((results[0] + results[1]) / 2)
    assert results[0] == circuit.faithfulness(OTHERS, progress=False).circuit != results[1]


def test_circuits_of_direct_effects_keep_all_heads() -> None:
    run = random_run(Case("deep", "jumprelu", skip=True, seed=1))
    circuit = trace(run.logit(3), 0.05, edges="direct", progress=False)
    result = circuit.faithfulness(progress=False)
    heads = SHAPE.n_layers * SHAPE.n_heads * SHAPE.n_tokens
    assert result.n_nodes >= heads + SHAPE.n_layers * SHAPE.n_tokens


def test_a_set_is_kept_whatever_the_others_are() -> None:
    """The mean over targets is that of each alone."""
    run = random_run(Case("deep", "topk", seed=2))
    nodes, kept = sets_of(run)
    sets = [(one.numpy(), False) for one in kept]
    targets = [run.logit(3), run.logit(4)]
    zero = Ablation("zero")
    apart = [keep_each([one], nodes, sets, zero, batch=None, progress=False) for one in targets]
    both = keep_each(targets, nodes, sets, zero, batch=2, progress=False)
    np.testing.assert_allclose(both, np.mean(apart, axis=0), atol=EXACT)


def test_errors_are_nodes() -> None:
    """All nodes where they were and errors at 0: the stream is what it was less the errors."""
    run = random_run(Case("deep", "jumprelu", skip=True, seed=1))
    nodes, nothing = nodes_of_run(run), torch.zeros(1, dtype=torch.bool)
    own = values_of(run)
    reference = {part: 0 * one if part[2] == "error" else one for part, one in own.items()}
    kept = nothing[:, None].expand(1, len(nodes))
    value = kept_values(run.logit(3), nodes, kept, nothing, reference)
    stream = run.residuals[-1] - torch.stack([layer.mlp.error for layer in run.layers]).sum(0)
    norm = run.weights.final_norm
    logits = norm.apply(stream, norm.scale(stream)) @ run.weights.unembedding.T
    assert float(value) == pytest.approx(float(logits[-1, 3]), abs=EXACT)
    assert abs(float(value) - run.logit(3).value) > 1e-3
