"""`circuit.faithfulness()`: only the circuit left in the real model, against plain hooks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits import load, trace
from circuits.faithfulness import Faithfulness, keep_each
from circuits.references import Ablation, ablation_of
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


def made(threshold: float = 0.05, **settings: Any) -> Faithfulness:
    run = random_run(Case("deep", "jumprelu", skip=True, seed=1))
    circuit = trace(TARGETS["difference"](run), threshold, progress=False)
    return circuit.faithfulness(OTHERS, progress=False, **settings)


def test_the_curve_and_its_areas() -> None:
    result = made(shares=[0.1, 0.5, 1.0])
    curve = result.curve
    assert curve["nodes"].iloc[-1] == result.n_all and curve["faithfulness"].iloc[-1] == 1.0
    first, second, last = curve["faithfulness"]
    assert result.cpr == pytest.approx(0.4 * (first + second) / 2 + 0.5 * (second + last) / 2)
    gap = abs(1 - np.array([first, second, last]))
    assert result.cmd == pytest.approx(0.4 * (gap[0] + gap[1]) / 2 + 0.5 * (gap[1] + gap[2]) / 2)
    assert "CPR" in repr(result) and f"{result.n_nodes} of {result.n_all}" in repr(result)


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
        numbers = first.select_dtypes("number").columns
        np.testing.assert_allclose(first[numbers], second[numbers], rtol=1e-8, atol=1e-9)
    assert not made(seed=1).completeness.equals(one.completeness)


def test_completeness_and_minimality_are_of_nodes_taken_out() -> None:
    result = made()
    scale = abs(result.model - result.empty)
    gap = (result.completeness["circuit"] - result.completeness["model"]).abs() / scale
    np.testing.assert_allclose(result.completeness["gap"], gap)
    without = (result.minimality["value"] - result.circuit).abs() / scale
    np.testing.assert_allclose(result.minimality["gap"], without)
    assert result.minimality["gap"].max() > 1e-3


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
