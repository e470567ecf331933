"""A report's files from its figures: report.md, report.html, tables as CSV, figures as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.four_tasks.folder import write_json
from benchmarks.report.edges import TRUE, TRUTH
from benchmarks.report.published import MODEL, ROWS, measured_here
from benchmarks.report.settings import Settings
from graphs.view.charts import chart

COLUMNS = (
    "CMD",
    "CPR",
    "CMD, edges",
    "complement",
    "Pearson",
    "pessimistic area",
    "trapezoid area",
    "average precision",
)
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:13px}"
    "td,th{border-bottom:1px solid #ddd;padding:3px 9px;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img,svg{max-width:100%;height:auto}"
)

Section = tuple[str, str, list[pd.DataFrame], list[str]]
"""Heading, protocol, tables, pictures (SVG text)."""


def write_report(folder: Path, measured: dict[str, Any], settings: Settings) -> None:
    """Write all files of a report into a folder.

    `measured`: "edges" (task → one figure set a seed), "agreement", "bases", "circuits", "cross",
    "second", "exact".
    """
    sections: list[Section] = []
    for task, seeds in measured["edges"].items():
        sections.append(edges_section(folder, task, seeds, settings))
    sections.append(_heads_section(folder, measured["edges"]))
    sections.append(_acdc_section(folder, measured["edges"], settings))
    sections.append(_agreement_section(folder, measured["agreement"], settings))
    sections.append(_bases_section(folder, measured["bases"], settings))
    for task, found in measured["circuits"].items():
        sections.append(_circuit_section(folder, task, found, settings))
    if measured["cross"]:
        sections.append(_cross_section(folder, settings.model, measured["cross"], settings))
    sections.append(_cross_section(folder, settings.second_model, measured["second"], settings))
    sections.append(_exact_section(folder, measured["exact"], settings))
    sections.append(_published_section(folder))
    write_json(folder / "figures.json", agreed(measured))
    facts = f"model: {settings.model}; " + ", ".join(
        f"{name} {value}" for name, value in settings.as_data().items() if isinstance(value, int)
    )
    (folder / "report.md").write_text(_markdown(facts, sections), encoding="utf-8")
    (folder / "report.html").write_text(_html(facts, sections), encoding="utf-8")


def agreed(measured: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that another run of the same settings must give, by stage and name."""
    edges = {
        task: {
            name: {column: _mean(seeds, name, column) for column in COLUMNS}
            for name in seeds[0]["methods"]
        }
        for task, seeds in measured["edges"].items()
    }
    names = ("target", "parts", "share of nodes", "alone", "complement", "random")
    circuits = {
        task: {name: found[name] for name in names} for task, found in measured["circuits"].items()
    }
    exact = {
        f"{cell['program']}, {cell['variant']}": {
            f"{row['method']} / {row['truth']}": row.get("pessimistic_area") for row in cell["rows"]
        }
        for cell in measured["exact"]
    }
    heads = {
        task: {name: row.get("pessimistic area") for name, row in seeds[0]["heads"].items()}
        for task, seeds in measured["edges"].items()
    }
    return {
        "edges": edges,
        "heads": heads,
        "agreement": measured["agreement"],
        "bases": measured["bases"],
        "circuits": circuits,
        "stability": {
            task: round(statistics.mean(one["stability"] for one in seeds), 5)
            for task, seeds in measured["edges"].items()
        },
        "cross": measured["cross"],
        "second": measured["second"],
        "exact": exact,
    }


def edges_section(
    folder: Path, task: str, seeds: Sequence[dict[str, Any]], settings: Settings
) -> Section:
    """Return a task's tables and plots of edges; writes `edges-TASK.csv`."""
    first, methods = seeds[0], list(seeds[0]["methods"])
    table = pd.DataFrame(
        [
            {"method": m, **{c: _mean(seeds, m, c) for c in COLUMNS}, **_intervals(first, m)}
            for m in methods
        ]
    )
    table = table.sort_values("CMD, edges", ignore_index=True)
    table.to_csv(folder / f"edges-{task}.csv", index=False)
    faithful = {
        name: [(int(n), f) for n, f in row["curve"].items() if int(n) > 0]
        for name, row in first["methods"].items()
    }
    areas = {name: row["ROC"] for name, row in first["methods"].items() if "ROC" in row}
    pictures = [
        chart(
            f"{task}: faithfulness of circuits",
            ("edges asked for (logarithmic)", "share of the metric kept"),
            lines={name: sorted(points) for name, points in faithful.items()},
            high=1.2,
            low=-0.2,
            logarithmic=True,
        )
    ]
    if areas:
        axes = ("false positive rate", "true positive rate")
        title = f"{task}: recovery of true edges"
        pictures.append(chart(title, axes, lines=areas, low=0, high=1))
    protocol = (
        f"{first['edges']} edges between heads (q, k, v), MLPs, input and output; clean against "
        f"the task's counterfactual (benchmarks/tasks/counterfactuals.py), BOS in front, "
        f"{settings.pairs} pairs to score by and {settings.test_pairs} others to measure on, "
        f"means of {settings.seeds} draws; edges outside a circuit are resampled; circuits are the "
        f"largest |scores|. True: patching the edge alone moves the metric by more than {TRUE:.0%} "
        f"of its range on {settings.test_pairs} of the first pairs, {first['true edges']} edges in "
        f"draw 0; {TRUTH} sets that truth and so has no recovery. Controls: random scores; scores "
        "of a network of the same shape with weights drawn anew; complement, the metric's share "
        "left without the top tenth. Intervals: 95 %, edges drawn with replacement, draw 0. "
        "Discrete codes score pairs of heads alone, every other edge 0. ACDC: a circuit a "
        "threshold. Backward elimination: edges taken out by what is left without them, on "
        f"{settings.acdc_pairs} pairs; no method, but what one could reach. Stability of the "
        "contrast's top tenth over 20 resamples (Jaccard): "
        f"{statistics.mean(one['stability'] for one in seeds):.3f}."
    )
    return f"Edges: {task}", protocol, [table], pictures


def _mean(seeds: Sequence[dict[str, Any]], method: str, column: str) -> float | None:
    values = [one["methods"][method].get(column) for one in seeds]
    return None if None in values else round(statistics.mean(values), 5)


def _intervals(first: dict[str, Any], method: str) -> dict[str, str | None]:
    names = ("pessimistic area", "average precision")
    found = {name: first["methods"][method].get(f"{name}, interval") for name in names}
    return {
        f"{name}, 95 %": None if one is None else f"{one[0]:.3f} – {one[1]:.3f}"
        for name, one in found.items()
    }


def _heads_section(folder: Path, edges: dict[str, Any]) -> Section:
    columns = ("pessimistic area", "trapezoid area", "average precision")
    table = pd.DataFrame(
        [
            {"task": task, "method": name, **{column: row.get(column) for column in columns}}
            for task, seeds in edges.items()
            for name, row in seeds[0]["heads"].items()
        ]
    )
    table.to_csv(folder / "heads-found.csv", index=False)
    true = ", ".join(f"{task} {seeds[0]['true heads']}" for task, seeds in edges.items())
    protocol = (
        "How methods rank heads, draw 0. A head is true if it alone, carrying what it wrote in the "
        f"counterfactual run, moves the metric by more than {TRUE:.0%} of its range: {true}. A "
        "head's score is the |sum| over the edges it writes to; discrete codes (O'Neill & Bui) "
        'count codes that occur on clean prompts only, and "pairs counted by head" is what its '
        "authors call their edge score: it too says heads."
    )
    return "Heads found", protocol, [table], []


def _acdc_section(folder: Path, edges: dict[str, Any], settings: Settings) -> Section:
    table = pd.DataFrame(
        [{"task": task, **row} for task, seeds in edges.items() for row in seeds[0]["ACDC"]]
    )
    table.to_csv(folder / "acdc.csv", index=False)
    protocol = (
        f"ACDC by KL divergence (nats) of {settings.acdc_pairs} pairs, resampled; faithfulness and "
        f"KL of its circuits on {settings.test_pairs} others, draw 0."
    )
    return "ACDC", protocol, [table], []


def _agreement_section(folder: Path, found: dict[str, Any], settings: Settings) -> Section:
    table = pd.DataFrame(
        [
            {"task": task, "kind": kind, **row}
            for task, kinds in found.items()
            for kind, row in kinds.items()
        ]
    )
    table.to_csv(folder / "agreement.csv", index=False)
    protocol = (
        "Pearson correlation with activation patching: a node alone is set to what it wrote in "
        "the counterfactual run, the real model reacting. "
        f"{settings.patched_prompts} pairs a task, all nodes of them together; of every kind the "
        f"{settings.patched_nodes} in each sublayer whose write changed most. Metric: right logits "
        "less wrong ones, of greater-than means of both. Neurons, heads, MLP outputs and tokens: "
        "the model read by neurons and heads; features, Lorsa heads and errors: by transcoders and "
        "Lorsa. Contrast and the held trace follow the reading at hand, the others are derivatives "
        "in the real model. A score is the difference of what a node wrote times a derivative; of "
        "`held trace` and gradient × activation what it wrote in the clean run, without the "
        "counterfactual."
    )
    return "Agreement with activation patching", protocol, [table], []


def _bases_section(folder: Path, found: dict[str, Any], settings: Settings) -> Section:
    rows = [
        {"task": task, "basis, score": name, "all nodes": kept["nodes"]}
        | {size: row[0] for size, row in kept.items() if size != "nodes"}
        | {"complement of 100": kept["100"][1], "errors of 100": kept["100"][2]}
        for task, cases in found.items()
        for name, kept in cases.items()
    ]
    table = pd.DataFrame(rows)
    table.to_csv(folder / "bases.csv", index=False)
    pictures = [
        chart(
            f"{task}: circuits of nodes in two bases",
            ("nodes of a run (logarithmic)", "share of the metric kept"),
            lines={
                name: [(int(size), row[0]) for size, row in kept.items() if size != "nodes"]
                for name, kept in cases.items()
            },
            high=1.2,
            low=-0.2,
            logarithmic=True,
        )
        for task, cases in found.items()
    ]
    protocol = (
        "The share of the metric that the n strongest nodes of a run keep, "
        f"{settings.basis_prompts} prompts a task, everything else set to the counterfactual run, "
        "tokens kept. Nodes: heads and neurons, or heads, transcoder features and errors, of those "
        "that differ between the runs (`all nodes`). Means of the metric are taken first. Metric "
        "as above."
    )
    return "Neurons and transcoder features", protocol, [table], pictures


def _circuit_section(folder: Path, task: str, found: dict[str, Any], settings: Settings) -> Section:
    heads, neurons = pd.DataFrame(found["heads"]), pd.DataFrame(found["neurons"])
    heads.to_csv(folder / f"heads-{task}.csv", index=False)
    picture = folder / "pictures" / f"{task}.svg"
    protocol = (
        f"Parts (heads and neurons, by role) of the mean of {settings.prompts} traces, of their "
        "contrasts with counterfactuals and of those with each other, strongest first, as many as "
        f"keep 93 % of the metric on {2 * settings.prompts} other prompts; on as many "
        f"more: {found['parts']} parts, {found['share of nodes']:.2%} of the "
        f"nodes, alone {found['alone']:.1%} of the metric with all others mean-ablated by role, "
        f"complement {found['complement']:.1%}, as many nodes at random {found['random']:.1%}. "
        "`without`: the metric with that head alone mean-ablated at its role. The picture shows "
        "the strongest parts of what sets prompts of one length apart."
    )
    tables = [one for one in (heads, neurons) if len(one)]
    return f"Circuit: {task}", protocol, tables, [picture.read_text(encoding="utf-8")]


def _cross_section(folder: Path, model: str, cross: dict[str, Any], settings: Settings) -> Section:
    kept = pd.DataFrame(cross["faithfulness"]).T.rename_axis("metric of").reset_index()
    alike = pd.DataFrame(cross["overlap"]).rename_axis("circuit of").reset_index()
    name = model.replace("/", "--")
    kept.to_csv(folder / f"cross-faithfulness-{name}.csv", index=False)
    alike.to_csv(folder / f"overlap-{name}.csv", index=False)
    protocol = (
        f"Circuits of edges in {model} by the contrast, draw 0, {settings.pairs} pairs to score by "
        f"and {settings.test_pairs} others; edges of {cross['of']}, less those on no path: "
        f"{', '.join(f'{task} {count}' for task, count in cross['edges'].items())}. First: the "
        "share of the row's metric that the column's circuit keeps (edges outside are resampled). "
        "Second: edges of both over edges of either."
    )
    return f"Circuits across tasks: {model}", protocol, [kept, alike], []


def _exact_section(folder: Path, cells: Sequence[dict[str, Any]], settings: Settings) -> Section:
    rows = [
        {"program": cell["program"], "variant": cell["variant"], **row}
        for cell in cells
        for row in cell["rows"]
    ]
    table = pd.DataFrame(rows)
    table.to_csv(folder / "exact.csv", index=False)
    protocol = (
        f"Compiled models, {settings.program_pairs} pairs each. Truth: cutting the edge alone "
        "changes the metric; resample for the contrast, with patterns frozen for the held trace, "
        "which cannot contain query and key edges. The basis is a random rotation where said."
    )
    return "Exact models", protocol, [table], []


def _published_section(folder: Path) -> Section:
    table = pd.DataFrame([{**asdict(row), "here": measured_here()} for row in ROWS])
    table = table.rename(columns={"value": "published"})
    table.to_csv(folder / "published.csv", index=False)
    return f"Published figures ({MODEL})", "As printed by their authors.", [table], []


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers with three digits, nothing where there is none."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return "" if value != value else f"{value:.3f}"
        return "" if value is None else str(value)

    return table.map(text)


def _markdown(facts: str, sections: Sequence[Section]) -> str:
    lines = ["# Known circuits, found again", "", facts, ""]
    for heading, protocol, tables, _ in sections:
        lines += [f"## {heading}", "", protocol, ""]
        for table in tables:
            rows = [list(table.columns), ["---"] * len(table.columns), *_shown(table).to_numpy()]
            lines += ["| " + " | ".join(str(x).replace("|", "\\|") for x in r) + " |" for r in rows]
            lines.append("")
    return "\n".join(lines)


def _html(facts: str, sections: Sequence[Section]) -> str:
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>Known circuits, found again</title><style>{STYLE}</style></head><body>",
        f"<h1>Known circuits, found again</h1><p>{escape(facts)}</p>",
    ]
    for heading, protocol, tables, pictures in sections:
        parts += [f"<h2>{escape(heading)}</h2><p>{escape(protocol)}</p>", *pictures]
        parts += [_shown(table).to_html(index=False, border=0) for table in tables]
    return "\n".join([*parts, "</body></html>\n"])
