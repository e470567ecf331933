"""Circuits of edges by each method, and how much of the metric they keep: CPR and CMD.

For every task and seed, edges are scored on some held-out pairs and circuits measured on others.
A circuit is the n edges of largest |score|, less those on no path from input to output (MIB's way;
with `--greedy` grown from the output instead); edges outside it carry what the corrupted run wrote.
`f` is faithfulness, CPR ∫ f dk, CMD ∫ |1−f| dk (benchmarks/scores.py). "CMD, edges" is on a grid of
sizes from 1 edge up, since MIB's begins below one edge in a model this small. "complement" is f
without the top tenth of the edges, 0 where all that matters is among them. "Pearson" is the
correlation of scores with exhaustive single-edge patching of the same pairs. A run that was stopped
goes on: the file holds what is done.
"""

import itertools
import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.baselines import (
    contrast,
    eap,
    eap_ig_activations,
    eap_ig_inputs,
    exhaustive_edges,
    gradient_activation,
    held,
    node_scores,
    random_scores,
    recorded,
    relp,
)
from benchmarks.baselines.discrete_sae import heads_of
from benchmarks.edges import EdgeModel, Pairs, Patching, greedy_circuit, top_circuit
from benchmarks.four_tasks.folder import write_json
from benchmarks.published import circuits_of
from benchmarks.report.cells import rounded
from benchmarks.scores import (
    MIB_GRID,
    cmd,
    cpr,
    edge_grid,
    faithfulness,
    pessimistic_area,
    roc_points,
)
from benchmarks.speed.machine import machine_facts
from benchmarks.tasks.counterfactuals import RULES, counterfactuals, pairs_of
from benchmarks.tasks.texts import pairs_of_texts, text_pairs
from circuits import load
from replacement.model import ReplacementModel
from replacement.secant import SecantRule

Scores = dict[str, Float[Tensor, " edge"]]
WEIGHTS = (0.0, 0.5, 1.0)
DEFAULT = (SecantRule().norm, SecantRule().query_key, SecantRule().pattern_value)
FEW = (DEFAULT, (0.5, 0.5, 0.5), (0.5, 0, 0), (0.5, 0, 1), (0.5, 1, 0), (0.5, 1, 1), (0, 1, 1))
"""Weights of norm, query × key and pattern × value: the default, the means, the corners, and the
best of 27."""
FIGURES = ("CMD", "CPR", "CMD, edges", "complement", "Pearson")


@dataclass(frozen=True)
class Settings:
    """What one measurement depends on."""

    pairs: int = 200
    every_rule: bool = False
    """All weights of the contrast's product rules, not the few that did best."""
    exhaustive_pairs: int = 200
    """Pairs by which edges are patched one by one: the costly part; 0 leaves it out."""
    greedy: bool = False
    """Circuits grown from the output (Hanna et al.), not the top n of all edges (MIB)."""
    model: str = "four-tasks"
    """What `load` takes."""
    published: bool = False
    """Prompts of `benchmarks.tasks.texts`, with a BOS where the authors put one."""


def secant_rules(*, every: bool) -> dict[str, SecantRule]:
    """Return rules by name: weights of norm, query × key and pattern × value, the default first."""
    weights = (DEFAULT, *itertools.product(WEIGHTS, repeat=3)) if every else FEW
    return {
        f"contrast norm={norm:g} qk={qk:g} pv={pv:g}": SecantRule(pv, qk, norm)
        for norm, qk, pv in weights
    }


def scores_of(model: EdgeModel, pairs: Pairs, settings: Settings, seed: int) -> Scores:
    """Return the scores of every method on the same pairs."""
    made: Scores = {
        "random": random_scores(model.graph, seed),
        "EAP": eap(model, pairs),
        "EAP-IG-5": eap_ig_inputs(model, pairs, 5),
        "EAP-IG-50": eap_ig_inputs(model, pairs, 50),
        "EAP-IG-5, activations": eap_ig_activations(model, pairs, 5),
        "RelP": relp(model, pairs),
        "RelP, patterns held": relp(model, pairs, hold_patterns=True),
        "gradient × activation": gradient_activation(model, pairs),
    }
    runs = recorded(model, pairs)
    made["held trace"] = held(model, pairs, runs).mean(0)
    rules = secant_rules(every=settings.every_rule)
    made |= {name: contrast(model, pairs, runs, rule).mean(0) for name, rule in rules.items()}
    corners = [made[name] for name, rule in rules.items() if _is_corner(rule)]
    made["contrast, mean of corners"] = torch.stack(corners).mean(0)
    made["contrast, largest of corners"] = _largest(torch.stack(corners))
    if settings.exhaustive_pairs:
        some = pairs.part(slice(settings.exhaustive_pairs))
        made["exhaustive patching"] = exhaustive_edges(model, some)
    return made


def _is_corner(rule: SecantRule) -> bool:
    """Whether a rule takes query × key and pattern × value from one side each."""
    return rule.norm == 0.5 and {rule.query_key, rule.pattern_value} <= {0, 1}


def _largest(scores: Float[Tensor, "rule edge"]) -> Float[Tensor, " edge"]:
    """Of each edge the score that is largest in absolute value."""
    best = scores.abs().argmax(0, keepdim=True)
    return scores.gather(0, best)[0]


class Judge:
    """How faithful circuits are on a set of pairs."""

    def __init__(self, model: EdgeModel, pairs: Pairs, *, greedy: bool = False) -> None:
        self.graph = model.graph
        self.circuit = greedy_circuit if greedy else top_circuit
        self.batches = [Patching(model, part) for part in pairs.by_length().parts(50)]
        every = torch.ones(self.graph.n_edges, dtype=torch.bool)
        self.whole, self.empty = self.metric(every), self.metric(~every)

    def metric(self, mask: Bool[Tensor, " edge"]) -> float:
        """Return the mean metric with only the marked edges."""
        if not mask.any() or mask.all():
            runs = [batch.clean if mask.all() else batch.corrupt for batch in self.batches]
            found = [
                batch.pairs.metric(batch.model.logits(run.final, batch.pairs.end))
                for batch, run in zip(self.batches, runs, strict=True)
            ]
            return float(torch.cat(found).mean())
        kept = mask.float()
        return float(torch.cat([batch.metric(kept) for batch in self.batches]).mean())

    def faithfulness(self, mask: Bool[Tensor, " edge"]) -> float:
        """Return the share of the metric that a circuit keeps."""
        return faithfulness(self.metric(mask), self.empty, self.whole)

    def figures(self, scores: Float[Tensor, " edge"]) -> dict[str, Any]:
        """Return CPR and CMD of a method's circuits, with the curves behind them."""
        n_edges = self.graph.n_edges
        sizes = [int(share * n_edges) for share in MIB_GRID]
        curve = {
            size: self.faithfulness(self.circuit(self.graph, scores, size))
            for size in sorted({*sizes, *edge_grid(n_edges)})
        }
        edges = [curve[size] for size in edge_grid(n_edges)]
        tenth = self.circuit(self.graph, scores, n_edges // 10)
        return {
            "CMD": cmd(MIB_GRID, [curve[size] for size in sizes]),
            "CPR": cpr(MIB_GRID, [curve[size] for size in sizes]),
            "CMD, edges": cmd([size / n_edges for size in edge_grid(n_edges)], edges),
            "complement": self.faithfulness(~tenth),
            "curve": {str(size): f for size, f in curve.items()},
        }


def name_of(cell: tuple[str, int]) -> str:
    """Return what the figures of a task and seed are stored under."""
    return f"{cell[0]}, seed {cell[1]}"


def stored(output: Path, settings: Settings) -> dict[str, Any]:
    """Return the cells that a file holds already; ValueError where its settings are others."""
    if not output.is_file():
        return {}
    found = json.loads(output.read_text())
    if found["settings"] != asdict(settings):
        raise ValueError(
            f"{output.name} was measured with {found['settings']}, now {asdict(settings)} are "
            "asked for. Give the same settings to go on, or another file."
        )
    return found["cells"]


def measure(cell: tuple[str, int], settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the figures of every method for one task and seed."""
    task, seed = cell
    torch.set_num_threads(1)
    source = load(settings.model, mlp="neurons", attention="heads")
    model = EdgeModel(source)
    train, test = (
        drawn(source, task, settings.pairs, 2 * seed + half, published=settings.published)
        for half in (0, 1)
    )
    scores = scores_of(model, train, settings, seed)
    judge = Judge(model, test, greedy=settings.greedy)
    found = {name: judge.figures(one) for name, one in scores.items()}
    truth = scores.get("exhaustive patching")
    for name, one in scores.items():
        both = None if truth is None else torch.stack([one, truth])
        found[name]["Pearson"] = None if both is None else float(torch.corrcoef(both)[0, 1])
        if settings.published:
            found[name]["published heads"] = published_heads(model, task, one)
    return rounded(found)


def published_heads(
    model: EdgeModel, task: str, scores: Float[Tensor, " edge"]
) -> dict[str, float]:
    """Return how well scores find the heads of each published circuit: the pessimistic area.

    A head's score is the |sum| over the edges it writes to.
    """
    heads, found = heads_of(model.graph), {}
    of_heads = node_scores(model.graph, scores)[heads].abs()
    for name, circuit in circuits_of(task, model).items():
        named = {f"a{layer}.h{head}" for layer, head in circuit.heads}
        truth = torch.tensor([model.graph.writers[head] in named for head in heads])
        found[name] = pessimistic_area(roc_points(of_heads, truth))
    return found


def drawn(source: ReplacementModel, task: str, count: int, seed: int, *, published: bool) -> Pairs:
    """Return so many pairs of a task, by our prompts or by the published ones."""
    tokenizer, d_vocab = source.tokenizer, source.weights.d_vocab
    if published:
        texts = text_pairs(task, tokenizer, count, seed=seed)
        return pairs_of_texts(texts, tokenizer, d_vocab, bos=texts[0].bos)
    return pairs_of(counterfactuals(task, count, seed=seed), tokenizer, d_vocab)


def summary(cells: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return, for every method, mean, lowest and highest of each figure over the seeds."""
    made: dict[str, dict[str, Any]] = {}
    for method in cells[0]:
        row: dict[str, Any] = {}
        for figure in FIGURES:
            values = [cell[method][figure] for cell in cells]
            if None not in values:
                row[figure] = [statistics.mean(values), min(values), max(values)]
        sizes = cells[0][method]["curve"]
        row["curve"] = {
            size: statistics.mean(cell[method]["curve"][size] for cell in cells) for size in sizes
        }
        made[method] = row
    return made


def lines_of(task: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return a task's table as lines of text: means, and half the spread of CMD over seeds."""
    lines = [f"\n{task:34}" + "".join(f"{name:>13}" for name in FIGURES)]
    for method, row in sorted(rows.items(), key=lambda item: item[1]["CMD"][0]):
        shown = [f"{row[name][0]:13.3f}" if name in row else f"{'':13}" for name in FIGURES]
        spread = (row["CMD"][2] - row["CMD"][1]) / 2
        lines.append(f"{method:34}" + "".join(shown) + f"   CMD ± {spread:.3f}")
    return lines


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = ",".join(RULES),
    pairs: Annotated[int, typer.Option(help="Pairs to score by, and as many to measure on.")] = 200,
    seeds: Annotated[int, typer.Option(help="Independent draws of pairs.")] = 3,
    first: Annotated[int, typer.Option(help="The first seed.")] = 0,
    exhaustive: Annotated[int, typer.Option(help="Pairs for single-edge patching.")] = 200,
    jobs: Annotated[int, typer.Option(help="Processes, one thread each.")] = 1,
    every_rule: Annotated[bool, typer.Option(help="All 27 weights of the contrast.")] = False,
    greedy: Annotated[bool, typer.Option(help="Grow circuits from the output.")] = False,
    model: Annotated[str, typer.Option(help="What `load` takes.")] = "four-tasks",
    published: Annotated[bool, typer.Option("--published", help="The papers' prompts.")] = False,
) -> None:
    """Compare methods by the faithfulness of their circuits."""
    settings = Settings(pairs, every_rule, exhaustive, greedy, model, published)
    names = tasks.split(",")
    command = (
        f"python -m benchmarks.faithfulness --tasks {tasks} --pairs {pairs} --seeds {seeds} "
        f"--first {first} --exhaustive {exhaustive} --jobs {jobs}"
        f"{' --every-rule' if every_rule else ''}{' --greedy' if greedy else ''} "
        f"--model {model}{' --published' if published else ''} "
        f"-o benchmarks/results/{output.name}"
    )
    facts = {"command": command, "machine": machine_facts(), "settings": asdict(settings)}
    cells = stored(output, settings)
    wanted = [(task, seed) for seed in range(first, first + seeds) for task in names]
    with ProcessPoolExecutor(jobs) as pool:
        left = [cell for cell in wanted if name_of(cell) not in cells]
        running = {pool.submit(measure, cell, settings): cell for cell in left}
        for done in tqdm(as_completed(running), total=len(running), desc="cells"):
            cells[name_of(running[done])] = done.result()
            write_json(output, {**facts, "cells": dict(sorted(cells.items()))})
    for task in names:
        rows = summary([cells[name_of(cell)] for cell in wanted if cell[0] == task])
        typer.echo("\n".join(lines_of(task, rows)))


if __name__ == "__main__":
    typer.run(main)
