"""What tasks share: circuits of edges on one another's prompts, and their overlap."""

from typing import Any

import torch

from benchmarks.baselines import contrast, random_scores, recorded
from benchmarks.edges import EdgeModel, top_circuit
from benchmarks.faithfulness import Judge
from benchmarks.report.cells import Figures
from benchmarks.report.edges import train_and_test
from benchmarks.report.settings import Settings
from benchmarks.tasks.counterfactuals import RULES
from benchmarks.tasks.vocabulary import MEMBERS
from circuits import load


def cross_figures(name: str, circuits: dict[str, list[int]], settings: Settings) -> Figures:
    """Return what every task's circuit of edges keeps of every task's metric, and their overlap.

    Beside them as many edges drawn at random; with the number of edges.
    """
    source = load(name, mlp="neurons", attention="heads")
    model = EdgeModel(source)
    masks = {}
    for task, edges in circuits.items():
        masks[task] = torch.zeros(model.graph.n_edges, dtype=torch.bool)
        masks[task][edges] = True
    most = max(map(len, circuits.values()))
    masks["random"] = top_circuit(model.graph, random_scores(model.graph, 0), most)
    kept: dict[str, Any] = {}
    for task in circuits:
        judge = Judge(model, train_and_test(source, task, 0, settings)[1])
        kept[task] = {name: judge.faithfulness(mask) for name, mask in masks.items()}
    alike = {
        one: {
            other: float((mask & masks[other]).sum() / (mask | masks[other]).sum())
            for other in masks
        }
        for one, mask in masks.items()
    }
    sizes = {task: int(mask.sum()) for task, mask in masks.items()}
    return {"edges": sizes, "of": model.graph.n_edges, "faithfulness": kept, "overlap": alike}


def second_figures(settings: Settings) -> Figures:
    """Return the same of the model that continues sequences: its five tasks, these by kind.

    Circuits are the contrast's top fifth of edges: a tenth keeps less than half of sequences.
    """
    source = load(settings.second_model, mlp="neurons", attention="heads")
    model, circuits = EdgeModel(source), {}
    for task in (*RULES, *MEMBERS):
        train, _ = train_and_test(source, task, 0, settings)
        scores = contrast(model, train, recorded(model, train)).mean(0)
        fifth = top_circuit(model.graph, scores, model.graph.n_edges // 5)
        circuits[task] = fifth.nonzero().flatten().tolist()
    return cross_figures(settings.second_model, circuits, settings)
