"""`circuit.test` of groups, random sets and scales; how well prediction and measurement agree."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import circuits.testing
from circuits import Scale, trace
from circuits.testing import KnockOuts, agreement, as_nodes, random_sets
from graphs.names import node_names
from tests.circuits.test_knock_outs import CASES, EXACT, each_case, traced
from tests.samples import Case, random_run


@each_case
@pytest.mark.parametrize("scale", [0, 0.5, -2])
def test_groups_do_what_was_predicted(case: Case, scale: float) -> None:
    for circuit in (traced(case), traced(case).prune(0.8)):
        nodes = circuit.nodes
        kept = nodes.index[nodes["kind"].isin(circuits.testing.INTERIOR)].tolist()
        result = circuit.test([kept[:3] or [0], kept or [0]], scale=scale, random=4, progress=False)
        assert result.deviation <= EXACT
        assert len(result.table) == 6 and result.table.index.name == "set"
        alone = circuit.test(scale=scale, progress=False)
        assert alone.deviation <= EXACT


def test_members_are_stops() -> None:
    """Control: a group does something else than its members one at a time."""
    circuit = traced(CASES[0])
    members = circuit.nodes.index[circuit.nodes["kind"].isin(["neuron", "head"])].tolist()
    together = circuit.test([members], progress=False).table["predicted"].iloc[0]
    apart = circuit.test(progress=False).table.loc[members, "predicted"].sum()
    assert abs(together - apart) > 1e-3


def test_groups_have_names_and_nodes_may_be_named() -> None:
    circuit = traced(CASES[0])
    numbers = circuit.nodes.index[circuit.nodes["kind"].eq("neuron")].tolist()[:2]
    names = [dict(zip(circuit.nodes.index, node_names(circuit.data), strict=True))[one]
             for one in numbers]  # fmt: skip
    by_number = circuit.test({"two neurons": numbers}, progress=False).table
    by_name = circuit.test({"two neurons": names}, progress=False).table
    pd.testing.assert_frame_equal(by_number, by_name)
    assert by_number["name"].tolist() == ["two neurons"]
    alone = repr(circuit.test([numbers], progress=False))
    assert "together: 1 set of nodes;" in alone and "nan" not in alone
    assert "2 sets of nodes;" in (both := repr(circuit.test([numbers[:1], numbers[1:]])))
    assert "reaction correlates" in both and "correlates" not in alone


def test_random_sets_repeat_and_differ() -> None:
    data = traced(CASES[0]).data
    assert random_sets(data, 5, 0) == random_sets(data, 5, 0) != random_sets(data, 5, 1)
    assert all(len(set(one)) == len(one) >= 2 for one in random_sets(data, 20, 3).values())


def test_without_is_the_edited_run() -> None:
    circuit = traced(CASES[0])
    run, target = circuit.run, circuit.run.target(circuit.meta["target"]["terms"])
    numbers = circuit.nodes.index[circuit.nodes["kind"].isin(["neuron", "head"])].tolist()[:3]
    for mode in ("held", "patterns", "free"):
        rows = as_nodes(circuit.nodes.loc[numbers])
        expected = run.edited([Scale(rows, 0)], mode).value(target)
        assert circuit.without(numbers, mode).value(target) == expected
    free = circuit.test([numbers], progress=False).table["free"].iloc[0]
    assert circuit.without(numbers).value(target) - circuit.value == pytest.approx(free, abs=EXACT)


def test_agreement_by_hand() -> None:
    found = agreement([1.0, 2.0, 3.0, -1.0], [2.0, 4.0, 100.0, 0.0])
    assert found["spearman"] == pytest.approx(1) and found["pearson"] < 0.95
    assert found["error"] == pytest.approx((1 + 4 + 97**2 + 1) / (4 + 16 + 10_000))
    assert found["sign"] == 1
    assert agreement([1.0, -1.0], [-1.0, -1.0])["sign"] == 0.5
    assert np.isnan(list(agreement([1.0, 1.0], [0.0, 0.0]).values())).all()


def test_agreement_has_a_row_a_mode() -> None:
    result = traced(CASES[0]).test(progress=False)
    table = result.agreement
    assert table.index.tolist() == ["held", "patterns", "free"]
    assert table.loc["held", "spearman"] == pytest.approx(1)
    assert table.loc["free", "pearson"] == pytest.approx(result.correlation)
    assert table.loc["held", "error"] < 1e-12 < table.loc["free", "error"]
    assert "patterns" not in KnockOuts(result.table.drop(columns="patterns"), 1.0).agreement.index


def test_patterns_differ_from_free_and_from_held() -> None:
    """Patterns held lets norms and gates react, free the patterns too."""
    table = trace(random_run(CASES[0]).logit(3), 0.02, progress=False).test(progress=False).table
    assert (table["patterns"] - table["free"]).abs().max() > 1e-3
    assert (table["patterns"] - table["held"]).abs().max() > 1e-3


def test_the_picture_has_a_dot_a_node_and_mode(tmp_path: Path) -> None:
    """Held dots lie on the line of what was predicted, free ones do not."""
    result = traced(CASES[0]).test(progress=False)
    text = result.save(tmp_path / "test.svg").read_text()
    root = ElementTree.fromstring(text)
    found = [one for one in root.iter() if one.tag.endswith("circle")]
    places = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in found]
    count = len(result.table) + 1  # the last of each is the legend's
    assert len(places) == 3 * count
    free, _, held = (places[start : start + count - 1] for start in range(0, 3 * count, count))
    (line,) = [one for one in root.iter() if one.tag.endswith("polyline")]
    ends = np.array([one.split(",") for one in line.attrib["points"].split()], dtype=float)
    off = [
        np.abs(np.interp([x for x, _ in dots], *ends.T) - [y for _, y in dots]).max()
        for dots in (held, free)
    ]
    assert off[0] < 0.2 < 5 < off[1], "in pixels"
    numbers = result.table.index[:1].tolist()
    one = traced(CASES[0]).test([numbers], progress=False)
    assert "1 knocked out" in one.picture()
