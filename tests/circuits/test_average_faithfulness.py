"""A mean circuit alone in prompts of its kind, against plain hooks and means taken in loops."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("duckdb")

from circuits import load, trace_many
from circuits.average import AverageCircuit
from circuits.average_faithfulness import AverageFaithfulness, strengths
from replacement.edits.keeping import values_of
from tests.circuits.test_averaging import averaged
from tests.circuits.test_averaging import rows as rows_of_transcoders
from tests.circuits.test_faithfulness import SHAPE, logit_by_hooks, parts_by_hooks
from tests.samples import random_gpt2

TRAIN = [[1, 2, 3, 4], [4, 5, 6, 1, 7], [2, 2, 9], [8, 1, 3, 5]]
HELD_OUT = [[6, 1, 2, 2], [3, 7, 5], [9, 8, 2, 4, 1]]
WIDTH = SHAPE.d_model // SHAPE.n_heads


def rows(prompts: list[list[int]]) -> list[dict[str, Any]]:
    named = {"first": 0, "END": -1}
    return [{"prompt": ids, "explain": 3, "minus": 5, "roles": named} for ids in prompts]


def role(pos: int, ids: list[int]) -> str:
    return "first" if pos == 0 else "END" if pos == len(ids) - 1 else "other"


def of_neurons(**options: Any) -> AverageCircuit:
    settings = {"threshold": 0.03, "min_share": 0.4, "progress": False, **options}
    return trace_many(rows(TRAIN), model=load(random_gpt2(SHAPE)), **settings)


def kept_alone(mean: AverageCircuit, **options: Any) -> AverageFaithfulness:
    model = load(random_gpt2(SHAPE))
    return mean.faithfulness(rows(HELD_OUT), rows(TRAIN), model=model, progress=False, **options)


def test_kept_alone_is_what_hooks_measure() -> None:
    model, mean = random_gpt2(SHAPE), of_neurons()
    total: dict[Any, Any] = defaultdict(float)
    count: dict[Any, int] = defaultdict(int)
    for ids in TRAIN:
        for place, x in parts_by_hooks(model, ids).items():
            for pos in range(len(ids)):
                total[place, role(pos, ids)] += x[0, pos]
                count[place, role(pos, ids)] += 1
    result = kept_alone(mean)
    assert len(result.prompts) == len(HELD_OUT)
    for ids, found in zip(HELD_OUT, result.prompts.itertuples(), strict=True):
        seen = parts_by_hooks(model, ids)
        others = {place: torch.zeros_like(x) for place, x in seen.items()}
        kept = {place: torch.zeros_like(x, dtype=torch.bool) for place, x in seen.items()}
        for place, pos in ((place, pos) for place in seen for pos in range(len(ids))):
            key = (place, role(pos, ids))
            others[place][0, pos] = total[key] / count[key]
        nodes = 0
        for node in mean.nodes.itertuples():
            where = [pos for pos in range(len(ids)) if f" {role(pos, ids)}" == node.token]
            for pos in where:
                if node.kind == "head":
                    here = slice(node.index * WIDTH, (node.index + 1) * WIDTH)
                    kept[node.layer, "attn"][0, pos, here] = True
                if node.kind == "neuron":
                    kept[node.layer, "mlp"][0, pos, node.index] = True
                    nodes += int(seen[node.layer, "mlp"][0, pos, node.index] != 0)
                nodes += node.kind == "head"
        nothing = {place: torch.zeros_like(mask) for place, mask in kept.items()}
        rest = {place: ~mask for place, mask in kept.items()}
        for name, masks in (("circuit", kept), ("complement", rest), ("empty", nothing)):
            value = logit_by_hooks(model, ids, masks, others)
            assert getattr(found, name) == pytest.approx(value, abs=1e-9), name
        active = [int((x != 0).sum()) for (_, part), x in seen.items() if part == "mlp"]
        heads = len(ids) * SHAPE.n_layers * SHAPE.n_heads
        assert found.nodes == nodes and found.all == heads + sum(active)
        everything = {place: ~mask for place, mask in nothing.items()}
        whole = logit_by_hooks(model, ids, everything, others)
        assert found.model == pytest.approx(whole, abs=1e-9)
        assert abs(found.circuit - found.model) > 1e-6, "something was ablated"


def test_shares_and_their_interval_are_of_means_over_prompts() -> None:
    result = kept_alone(of_neurons())
    mean = result.prompts[["model", "circuit", "complement", "empty"]].mean()
    scale = mean["model"] - mean["empty"]
    assert result.faithfulness == pytest.approx((mean["circuit"] - mean["empty"]) / scale)
    assert result.complement_share == pytest.approx((mean["complement"] - mean["empty"]) / scale)
    low, high = result.interval
    assert low <= result.faithfulness <= high and low < high
    assert f"{result.faithfulness:.1%}" in repr(result) and "3 prompts" in repr(result)
    assert "the circuit" in result.picture()


def test_the_curve_ends_with_the_circuit_and_begins_with_its_strongest() -> None:
    mean = of_neurons()
    curve = kept_alone(mean, shares=[0.01, 0.5, 1.0]).curve
    result = kept_alone(mean)
    assert curve["faithfulness"].iloc[-1] == pytest.approx(result.faithfulness)
    assert curve["nodes"].iloc[-1] == result.prompts["nodes"].mean()
    assert (np.diff(curve["nodes"]) > 0).all() and curve["nodes"].iloc[0] >= 1


def test_roles_matter() -> None:
    """Control: the same nodes at the positions of other roles are another circuit."""
    mean, model = of_neurons(), load(random_gpt2(SHAPE))
    swapped = [{**row, "roles": {"first": -1, "END": 0}} for row in rows(HELD_OUT)]
    there = mean.faithfulness(swapped, rows(TRAIN), model=model, progress=False)
    own = kept_alone(mean)
    assert abs(there.prompts["circuit"] - own.prompts["circuit"]).min() > 1e-3
    assert there.prompts["model"].tolist() == own.prompts["model"].tolist()


def test_prompts_are_their_own_reference_by_default() -> None:
    mean, model = of_neurons(), load(random_gpt2(SHAPE))
    given: Any = {"model": model, "progress": False}
    same = mean.faithfulness(rows(HELD_OUT), rows(HELD_OUT), **given).prompts
    assert mean.faithfulness(rows(HELD_OUT), **given).prompts.equals(same)
    assert not kept_alone(mean).prompts.equals(same)


def test_only_strong_errors_are_nodes_and_absent_nodes_have_no_strength() -> None:
    mean = averaged(min_share=0, threshold=0.05)
    given = rows_of_transcoders()
    run = averaged.__globals__["model"]().run(given[0]["prompt"])
    found = strengths(mean, values_of(run))
    nodes = mean.nodes
    least = 0.05 * abs(mean.value)
    errors = nodes.loc[nodes["kind"].eq("error")]
    strong = errors["attribution"].abs().ge(least)
    kept = sum(int((one > 0).sum()) for part, one in found.items() if part[2] == "error")
    assert 0 < kept == strong.sum() < len(errors)
    features = nodes.loc[nodes["kind"].eq("feature")]
    parts = [one for part, one in found.items() if part[1:] == ("mlp", "nodes")]
    assert sum(int((one > 0).sum()) for one in parts) == len(features)
    one = features.iloc[0]
    size = found[one["layer"], "mlp", "nodes"][one["pos"], one["index"]]
    assert float(size) == pytest.approx(abs(one["attribution"]) / one["share"])
    assert not any(one[-1].any() for one in found.values()), "positions without a role"
