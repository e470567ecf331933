"""The circuit of many prompts against means taken by hand; sums, roles, killing and going on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("duckdb")

from circuits import load, trace
from circuits.average import AverageCircuit
from circuits.averaging import trace_many
from circuits.circuit import Circuit, read
from circuits.comparing import compare
from circuits.contrasting import contrasted
from graphs.nodes import INTERIOR
from replacement.model import ReplacementModel
from tests.families import tiny
from tests.samples import Case, mlps_of, random_gpt2, random_run

CASE = Case("two layers", "topk", skip=True)
PROMPTS = [[1, 2, 3, 4], [4, 5, 6, 1, 7], [2, 2, 9], [8, 1, 3, 5], [3, 3, 3, 3, 3]]
FILES = ("nodes.parquet", "edges.parquet", "prompts.parquet", "asked.json")


def rows(prompts: list[list[int]] = PROMPTS) -> list[dict[str, Any]]:
    return [
        {"prompt": ids, "explain": 3, "minus": 5, "roles": {"first": 0, "END": -1}}
        for ids in prompts
    ]


def model() -> Any:
    return random_run(CASE).model


def averaged(given: list[dict[str, Any]] | None = None, **options: Any) -> AverageCircuit:
    return trace_many(
        rows() if given is None else given,
        **{"model": model(), "progress": False, "block": 2, "threshold": 0.01, **options},
    )


def single(prompt: list[int]) -> Circuit:
    run = model().run(prompt)
    return trace(run.logit(3) - run.logit(5), threshold=0.01, progress=False)


def role(pos: int, n_pos: int) -> str:
    return "first" if pos == 0 else "END" if pos == n_pos - 1 else "other"


Amounts = dict[tuple, list[float]]


def by_hand(column: str = "attribution") -> tuple[Amounts, Amounts]:
    """A number of every node and the flow of every edge in each prompt, by role; NaN for none."""
    nodes: Amounts = {}
    edges: Amounts = {}
    for number, prompt in enumerate(PROMPTS):
        circuit = single(prompt)
        keys = {}
        for node, row in circuit.nodes.iterrows():
            index = -1 if row["kind"] in ("token", "position") else row["index"]
            where = role(row["pos"], len(prompt)) if row["pos"] >= 0 else ""
            keys[node] = (row["kind"], row["layer"], row["sublayer"], where, index)
            seen = nodes.setdefault(keys[node], [np.nan] * len(PROMPTS))
            seen[number] = np.nansum([seen[number], row[column]])
        for row in circuit.edges.itertuples():
            key = (keys[row.source], keys[row.target])
            seen = edges.setdefault(key, [np.nan] * len(PROMPTS))
            seen[number] = np.nansum([seen[number], row.flow])
    return nodes, edges


def test_means_spreads_and_shares_are_those_of_the_single_circuits() -> None:
    mean = averaged(min_share=0)
    nodes, edges = by_hand()
    activations, _ = by_hand("activation")
    keys = {}
    for node, row in mean.nodes.iterrows():
        where = row["token"].strip()
        keys[node] = (row["kind"], row["layer"], row["sublayer"], where, row["index"])
        amounts = np.array(nodes[keys[node]])
        filled = np.nan_to_num(amounts)
        assert row["attribution"] == pytest.approx(filled.mean(), rel=1e-9, abs=1e-12)
        assert row["spread"] == pytest.approx(filled.std(), rel=1e-6, abs=1e-7)
        assert row["share"] == np.mean(~np.isnan(amounts))
        assert row["activation"] == pytest.approx(np.nanmean(activations[keys[node]]), rel=1e-9)
    assert set(keys.values()) == set(nodes)
    for row in mean.edges.itertuples():
        amounts = np.array(edges[keys[row.source], keys[row.target]])
        assert row.flow == pytest.approx(np.nan_to_num(amounts).mean(), rel=1e-9, abs=1e-12)
        assert row.share == np.mean(~np.isnan(amounts))
    assert len(mean.edges) == len(edges)
    assert 0 < mean.nodes["share"].min() < 1 == mean.nodes["share"].max()


@pytest.mark.parametrize("rest", ["other", "elsewhere", None])
@pytest.mark.parametrize("min_share", [0, 0.3, 0.7, 1])
def test_sums_hold_in_the_mean(rest: str | None, min_share: float) -> None:
    """Conservation and closure, whatever is left out; left-out parts are booked as pruned."""
    mean = averaged(rest=rest, min_share=min_share)
    assert mean.data.conservation() < 1e-12
    value = np.mean([single(prompt).value for prompt in PROMPTS])
    assert mean.value == pytest.approx(value, rel=1e-12)
    assert mean.explained.sum() == pytest.approx(value, rel=1e-12)
    inner = mean.nodes[mean.nodes["kind"].isin(INTERIOR)]
    assert (inner["share"] >= min_share).all()
    assert mean.meta["roles"] == ([rest] if rest else []) + ["first", "END"]
    assert mean.prune(0.5).data.conservation() < 1e-12
    assert mean.prune(0.5).nodes["share"].notna().all()


def test_leaving_out_books_as_pruned() -> None:
    with_rest, without = averaged(min_share=0), averaged(min_share=0, rest=None)
    assert abs(without.explained["pruned"]) > abs(with_rest.explained["pruned"])
    kept = with_rest.nodes[with_rest.nodes["token"].ne(" other")]
    np.testing.assert_allclose(
        without.nodes["attribution"], kept["attribution"], rtol=1e-12, atol=1e-12
    )


def test_targets_made_on_the_way_are_rows() -> None:
    def targets() -> Any:
        for ids in PROMPTS:
            run = model().run(ids)
            yield run.logit(3) - run.logit(5)

    of_targets = averaged(targets(), model=None, roles=lambda _run: {"first": 0, "END": -1})  # type: ignore[arg-type]
    np.testing.assert_array_equal(of_targets.nodes["attribution"], averaged().nodes["attribution"])


def test_one_prompt_is_its_own_mean() -> None:
    """Every position a role: the same tables as the single trace."""
    given = [{**row, "roles": None} for row in rows(PROMPTS[:1])]
    mean, circuit = averaged(given, roles="positions"), single(PROMPTS[0])
    columns = ["kind", "layer", "sublayer", "pos", "attribution", "in_bias", "activation"]
    key = ["kind", "layer", "sublayer", "pos", "attribution"]
    one, other = (part.nodes[columns].sort_values(key).to_numpy() for part in (mean, circuit))
    assert (one[:, :4] == other[:, :4]).all()
    np.testing.assert_allclose(one[:, 4:].astype(float), other[:, 4:].astype(float), atol=1e-12)
    assert (mean.nodes["spread"] < 1e-6).all() and (mean.nodes["share"] == 1).all()


class Killed(Exception):
    """Stands in for a kill between two prompts."""


def stopping(given: list[dict[str, Any]], after: int) -> Any:
    for number, row in enumerate(given):
        if number == after:
            raise Killed
        yield row


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_goes_on_after_a_kill_with_the_same_files(tmp_path: Path, after: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    averaged(folder=whole)
    with pytest.raises(Killed):
        averaged(stopping(rows(), after), folder=killed)  # type: ignore[arg-type]
    assert len(list((killed / "blocks").glob("block-*"))) == after // 2
    half = killed / "blocks" / f".block-{after // 2:06}.part"  # what a kill while writing leaves
    half.mkdir()
    (half / "nodes.parquet").write_bytes(b"PAR1")
    averaged(folder=killed)
    for name in FILES:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert not list((killed / "blocks").glob(".*"))


def test_finished_blocks_are_not_traced_again(tmp_path: Path, monkeypatch: Any) -> None:
    averaged(folder=tmp_path)
    traced = []

    def counted(*given: Any, **options: Any) -> Circuit:
        traced.append(1)
        return trace(*given, **options)

    monkeypatch.setattr("circuits.averaging.trace", counted)
    averaged(folder=tmp_path)
    assert not traced
    shutil.rmtree(tmp_path / "blocks" / "block-000002")
    averaged(folder=tmp_path)
    assert len(traced) == 1
    averaged([*rows(), *rows(PROMPTS[:2])], folder=tmp_path)
    assert len(traced) == 3
    assert json.loads((tmp_path / "asked.json").read_text())["threshold"] == 0.01
    assert len(AverageCircuit.read(tmp_path).prompts) == 7


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": 0.02}, "threshold 0.02 where it was 0.01"),
        ({"rest": None}, "rest None where it was 'other'"),
        ({"max_nodes": 7}, "max_nodes 7 where it was None"),
        ({"given": rows()[::-1]}, "prompt 0 in it is another one than given"),
        ({"given": rows()[:3]}, "prompt 3 in it is not given"),
    ],
)
def test_another_job_in_the_folder_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    averaged(folder=tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    with pytest.raises(ValueError) as caught:
        averaged(**{"folder": tmp_path, **change})
    assert says in str(caught.value)
    assert before == {name: (tmp_path / name).read_bytes() for name in FILES}


def test_a_model_trained_on_is_another_job(tmp_path: Path) -> None:
    """Same name, same prompts, one number changed in the weights."""
    averaged(folder=tmp_path)
    other = ReplacementModel(random_gpt2(), mlps=mlps_of(CASE))
    averaged(folder=tmp_path, model=other)  # the same weights
    other.hf_model.get_input_embeddings().weight.data[0] += 1
    with pytest.raises(ValueError, match="weights '"):
        averaged(folder=tmp_path, model=other)


def test_saved_pictured_and_compared(tmp_path: Path) -> None:
    mean = averaged()
    saved = read(mean.save(tmp_path / "mean.circuit"))
    np.testing.assert_array_equal(saved.nodes["attribution"], mean.nodes["attribution"])
    assert "first" in repr(mean) and mean.save(tmp_path / "mean.svg").stat().st_size
    both = compare(mean, averaged(rows(PROMPTS[:3])))
    assert 0 < both.scores.loc["nodes", "jaccard"] < 1
    assert set(both.nodes["place"]) <= {"", "other", "first", "END"}
    for call in (lambda: mean.test(), lambda: mean.attach(model()), lambda: saved.attach(model())):
        with pytest.raises(ValueError, match="mean of 5 prompts"):
            call()


def test_nodes_of_a_mean_lie_in_a_prompt() -> None:
    mean = averaged()
    laid = mean.nodes_in({"END": 6, "first": [0, 1], "missing": 3})
    inner = mean.nodes[mean.nodes["kind"].isin(INTERIOR)]
    assert (laid["pos"] == 6).sum() == inner["token"].eq(" END").sum() > 0
    assert (laid["pos"] == 0).sum() == (laid["pos"] == 1).sum() == inner["token"].eq(" first").sum()
    assert set(laid["pos"]) == {0, 1, 6} and set(laid["node"]) <= set(mean.nodes.index)


def test_contrasts_and_other_families_have_means() -> None:
    family = ReplacementModel(tiny("Gemma-2, grouped keys"))
    one, other = family.run([3, 1, 4]), family.run([2, 7, 1])
    targets = [
        contrasted(run.logit(2) - run.logit(5), against)
        for run, against in ((one, other), (other, one))
    ]
    mean = trace_many(targets, roles="positions", progress=False, max_nodes=50)
    assert mean.data.conservation() < 1e-12 and mean.meta["many"]["prompts"] == 2
    assert {"q", "k", "v", "mlp"} <= set(mean.edges["via"])


def test_one_prompt_against_several() -> None:
    """Rows with a counterfactual: the mean of their contrasts, switches among what adds up."""
    clean, others = [1, 2, 3, 4], [[4, 3, 2, 1], [1, 2, 3, 9], [5, 6, 7, 4]]
    given = [{"prompt": clean, "explain": 3, "minus": 5, "against": one} for one in others]
    mean = averaged(given, roles="positions", threshold=0, min_share=0)
    run = model().run(clean)
    values = [contrasted(run.logit(3) - run.logit(5), one).value for one in others]
    assert mean.value == pytest.approx(np.mean(values), abs=1e-9)
    assert mean.explained.sum() == pytest.approx(mean.value, abs=1e-9)
    assert mean.explained["switch"] != 0
    parts = ["token", "position", "error", "bias", "pruned", "switch"]
    assert mean.prompts[parts].sum(axis=1).tolist() == pytest.approx(values, abs=1e-9)
    assert {"q", "k"} <= set(mean.edges["via"])


def test_the_bundled_task() -> None:
    """Roles of IOI: the mean of two orders of names, whose positions differ."""
    found = load("four-tasks", attention="heads")
    texts = [
        ("When Mary and John went to the store, John gave a drink to", 2, 4),
        ("When John and Mary went to the store, John gave a drink to", 4, 2),
    ]
    given = [
        {
            "prompt": text,
            "explain": " Mary",
            "minus": " John",
            "roles": {"IO": io, "S1": s1, "S2": 10, "END": 14},
        }
        for text, io, s1 in texts
    ]
    mean = trace_many(given, model=found, progress=False)
    tokens = mean.nodes[mean.nodes["kind"].eq("token")].set_index("token")["attribution"]
    assert tokens[" IO"] > 5 and tokens[" IO"] > tokens.drop(" IO").abs().max()
    assert mean.data.conservation() < 1e-4
