"""The report: whole files from figures, cells that are not measured twice, quick figures again."""

import json
from itertools import permutations
from pathlib import Path

import pytest
import torch

from benchmarks.report import published
from benchmarks.report.agreement import agreement_figures
from benchmarks.report.bases import basis_figures
from benchmarks.report.cells import Cells, rounded
from benchmarks.report.edges import (
    ELIMINATION,
    TRUTH,
    acdc_interval,
    acdc_points,
    edge_figures,
    elimination_figures,
)
from benchmarks.report.exact import exact_figures
from benchmarks.report.published import ROWS
from benchmarks.report.settings import Settings, settings_of
from benchmarks.report.writing import COLUMNS, agreed, write_report
from benchmarks.scores import pessimistic_area
from benchmarks.tasks.counterfactuals import RULES
from benchmarks.tasks.vocabulary import MEMBERS

ROOT = Path(__file__).parent.parent.parent
STORED = json.loads((ROOT / "benchmarks" / "results" / "quick.json").read_text())
QUICK = settings_of("four-tasks", quick=True)
TINY = Settings(
    model="four-tasks",
    second_model="five-tasks",
    pairs=3,
    test_pairs=2,
    seeds=1,
    program_pairs=1,
    programs=("or_gate",),
    variants=("plain",),
    prompts=2,
    basis_prompts=1,
    acdc_pairs=1,
    acdc_thresholds=(0.5,),
    elimination_share=0.5,
    patched_prompts=1,
    patched_nodes=3,
)


def test_exact_models_come_out_as_stored() -> None:
    """Two programs of the quick report, as they were stored: areas are of exact effects."""
    for program in ("induction", "or_gate"):
        (variant,) = QUICK.variants
        cell = exact_figures(program, variant, QUICK.program_pairs)
        ((name, areas),) = agreed({**EMPTY, "exact": [cell]})["exact"].items()
        stored = STORED["exact"][name]
        for row in [row for row in stored if "discrete" not in row]:
            assert areas[row] == pytest.approx(stored[row], abs=0.02), row
        assert areas.keys() == stored.keys(), "codes of a trained autoencoder are another machine's"
    assert stored_areas("induction")["contrast qk 0.5 pv 0.5 / resample"] == 1


def stored_areas(program: str) -> dict[str, float]:
    (variant,) = QUICK.variants
    return STORED["exact"][f"{program}, {variant}"]


def test_edges_come_out_as_stored() -> None:
    """Greater-than's rows of the quick report, measured again in full."""
    measured = [rounded(edge_figures("greater_than", 0, QUICK))]
    eliminated = elimination_figures("greater_than", 0, QUICK)
    measured[0]["methods"][ELIMINATION] = rounded(eliminated)
    found = agreed({**EMPTY, "edges": {"greater_than": measured}})
    for method, row in STORED["edges"]["greater_than"].items():
        if "discrete" in method:
            continue  # a trained autoencoder's: another machine's rounding decides a code
        for column, value in row.items():
            again = found["edges"]["greater_than"][method][column]
            if value is None:
                assert again is None
            else:
                assert again == pytest.approx(value, abs=0.02), (method, column)
    heads = found["heads"]["greater_than"]
    assert heads.keys() == STORED["heads"]["greater_than"].keys()
    for method in ("contrast", "EAP", "random"):
        assert heads[method] == pytest.approx(STORED["heads"]["greater_than"][method], abs=0.02)
    (cell,) = measured
    assert 0.8 <= cell["stability"] <= 1
    for name in ("contrast", "EAP-IG-5"):
        low, high = cell["methods"][name]["average precision, interval"]
        assert low <= cell["methods"][name]["average precision"] <= high


def test_nodes_come_out_as_stored() -> None:
    """Bracket's agreement with patching and both bases, measured again."""
    for stage, measure in (("agreement", agreement_figures), ("bases", basis_figures)):
        found, stored = rounded(measure("bracket", QUICK)), STORED[stage]["bracket"]
        assert found.keys() == stored.keys()
        for name, row in stored.items():
            for column, value in row.items():
                assert found[name][column] == pytest.approx(value, abs=0.03), (name, column)


def test_stored_nodes_say_what_the_page_claims() -> None:
    """A contrast's tokens are all of the difference; features keep more than as many neurons."""
    for task, kinds in STORED["agreement"].items():
        assert kinds["tokens"]["contrast"] > 0.999, task
        assert kinds["heads"]["contrast"] > 0.8, task
    for task, rows in STORED["bases"].items():
        neurons, features = (rows[f"{basis}, contrast"] for basis in ("neurons", "transcoders"))
        assert features["50"][0] > neurons["50"][0], task
        assert features["100"][0] > 0.8 > 0.5 > rows["transcoders, random"]["100"][0], task


def test_stored_figures_say_what_the_report_claims() -> None:
    """Every method beats its controls: random scores and a network drawn anew."""
    for task, rows in STORED["edges"].items():
        for control in ("random", "contrast, reset network"):
            assert rows["contrast"]["CMD, edges"] < rows[control]["CMD, edges"] - 0.1, task
            better = rows["contrast"]["average precision"] - rows[control]["average precision"]
            assert better > 0.1, task
    for circuit in STORED["circuits"].values():
        assert circuit["share of nodes"] <= 0.1
        assert circuit["alone"] >= 0.9
        assert circuit["random"] < 0.3
        assert circuit["complement"] < 0.3


def test_a_task_s_own_circuit_keeps_most_of_it() -> None:
    """Of sequences, which need more edges than a fifth, about half; random edges keep nothing."""
    for stage, tasks, least in (("cross", 4, 0.8), ("second", 7, 0.5)):
        kept, alike = STORED[stage]["faithfulness"], STORED[stage]["overlap"]
        assert len(kept) == len(alike) - 1 == tasks
        for task, row in kept.items():
            assert row[task] > least, task
            assert row[task] > max(row.values()) - 0.1
            assert abs(row["random"]) < 0.1
            assert alike[task]["random"] < 0.2 < alike[task][task] == 1


def test_kinds_of_sequences_share_their_circuit() -> None:
    """Lan et al.'s observation: more with one another than with any other task."""
    kept, alike = STORED["second"]["faithfulness"], STORED["second"]["overlap"]
    for one, other in permutations(MEMBERS, 2):
        assert alike[one][other] > max(alike[one][task] for task in RULES) + 0.1
        assert kept[one][other] > 0.7 * kept[one][one]


def test_intervals_of_acdc_are_around_its_area() -> None:
    source = torch.Generator().manual_seed(0)
    wrong, right = (
        (torch.rand(3, n, generator=source) < torch.tensor(p)[:, None]).double()
        for n, p in ((90, [0.05, 0.1, 0.4]), (10, [0.5, 0.8, 0.9]))
    )
    area = pessimistic_area(acdc_points(wrong, right))
    low, high = acdc_interval(wrong, right)
    assert low < area < high
    assert (low, high) == acdc_interval(wrong, right)
    assert acdc_interval(0 * wrong, right**0) == (1, 1), "perfect circuits have no spread"


EMPTY: dict = {
    "edges": {},
    "agreement": {},
    "bases": {},
    "circuits": {},
    "cross": None,
    "second": {},
    "exact": [],
}


def figures() -> dict:
    """A report's figures, as small as they can be."""
    row = dict.fromkeys(COLUMNS, 0.5) | {
        "curve": {"1": 0.1, "10": 1.0},
        "ROC": [[0.0, 0.0], [1.0, 1.0]],
    }
    truth = {name: value for name, value in row.items() if name not in ("ROC", *COLUMNS[5:])}
    edges = {
        "edges": 10,
        "true edges": 2,
        "stability": 0.9,
        "methods": {"EAP": row, TRUTH: truth},
        "heads": {"discrete codes": {"pessimistic area": 0.25}},
        "true heads": 3,
        "ACDC": [{"threshold": 0.5, "edges": 2, "faithfulness": 0.5, "KL": 0.125}],
    }
    head = {"head": "3.2", "role": "END", "name": "copies <IO> | S2"}
    circuit = {
        "target": 1.0,
        "parts": 3,
        "share of nodes": 0.01,
        "alone": 0.93,
        "complement": 0.1,
        "random": 0.0,
        "heads": [head],
        "neurons": [],
    }
    exact = {
        "program": "or_gate",
        "variant": "plain",
        "rows": [{"method": "contrast", "truth": "resample", "pessimistic_area": 1.0}],
    }
    sizes = {"edges": {"ioi": 7}, "of": 10}
    cross = {name: {"ioi": {"ioi": 1.0}} for name in ("faithfulness", "overlap")}
    kept = {"nodes": 9.0, "5": [0.5, 0.25, 0.0], "100": [1.0, 0.0, 2.0]}
    return {
        "edges": {"ioi": [edges]},
        "agreement": {"ioi": {"heads": {"nodes": 7, "contrast": 0.875, "EAP": None}}},
        "bases": {"ioi": {"neurons, contrast": kept}},
        "circuits": {"ioi": circuit},
        "cross": cross | sizes,
        "second": {name: {"months": {"months": 0.75}} for name in cross} | sizes,
        "exact": [exact],
    }


def test_a_report_has_all_sections_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "try_to_load_from_cache", lambda *_: None)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "ioi.svg").write_text("<svg id='drawn'></svg>")
    write_report(tmp_path, figures(), TINY)
    text, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    for heading in (
        "Edges: ioi",
        "Heads found",
        "ACDC",
        "Agreement with activation patching",
        "Neurons and transcoder features",
        "Circuit: ioi",
        "Circuits across tasks: four-tasks",
        "Circuits across tasks: five-tasks",
        "Exact models",
    ):
        assert f"## {heading}" in text
        assert f"<h2>{heading}</h2>" in page
    assert "93.0% of the metric" in text
    assert text.count("weights not present") == len(ROWS)
    assert page.count("<polyline") == 4, "no ROC of the truth itself"
    for shown in (
        "| ioi | heads | 7 | 0.875 |  |",
        "| ioi | discrete codes | 0.250 |  |  |",
        "| ioi | 0.500 | 2 | 0.500 | 0.125 |",
        "| ioi | neurons, contrast | 9.000 | 0.500 | 1.000 | 0.000 | 2.000 |",
    ):
        assert shown in text
    assert "id='drawn'" in page
    assert "copies &lt;IO&gt;" in page
    assert "copies <IO> \\| S2" in text, "a bar inside a cell would be a column more"
    assert {path.suffix for path in tmp_path.iterdir()} >= {".csv", ".json", ".md", ".html"}
    assert json.loads((tmp_path / "figures.json").read_text()) == agreed(figures())


def test_the_same_figures_give_the_same_report(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "pictures").mkdir(parents=True)
        (tmp_path / name / "pictures" / "ioi.svg").write_text("<svg></svg>")
        write_report(tmp_path / name, figures(), TINY)
    for path in (tmp_path / "one").glob("*.*"):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    count = []

    def measure() -> dict:
        count.append(1)
        return {"x": 1 / 3}

    for _ in range(2):
        cells = Cells(tmp_path, TINY.as_data())
        assert cells.get("edges", "ioi-0", measure) == {"x": 0.33333}
    assert len(count) == 1
    assert list(json.loads((tmp_path / "timings.json").read_text())) == ["edges-ioi-0"]
    assert "seconds" not in (tmp_path / "cells" / "edges-ioi-0.json").read_text()


def test_gpt2_is_never_silently_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, shown in ((None, "weights not present"), ("/cache/config.json", "not run")):
        monkeypatch.setattr(published, "try_to_load_from_cache", lambda *_, f=found: f)
        assert published.measured_here() == shown
    assert {row.task for row in ROWS} >= {"IOI", "greater-than", "docstring", "gendered pronoun"}
