"""Edges of components: how well each method finds those that matter, and what its circuits keep.

An edge counts as true if patching it alone (resample, both directions of effect) moves the mean
metric by more than `TRUE` of the difference between clean and corrupted runs; that is exhaustive
patching's own judgement, so it is no row of the recovery table. Faithfulness needs no truth: the
edges outside a circuit carry what the corrupted run wrote.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.baselines import (
    contrast,
    eap,
    eap_ig_activations,
    eap_ig_inputs,
    exhaustive_edges,
    gradient_activation,
    held,
    random_scores,
    recorded,
    relp,
)
from benchmarks.edges import EdgeModel, Pairs, top_circuit
from benchmarks.faithfulness import Judge
from benchmarks.report.cells import Figures
from benchmarks.report.settings import Settings
from benchmarks.scores import (
    average_precision,
    bootstrap_jaccard,
    pareto,
    pessimistic_area,
    roc_points,
    trapezoid_area,
)
from benchmarks.tasks.counterfactuals import counterfactuals, pairs_of
from circuits import load
from replacement.model import ReplacementModel

TRUE = 0.01
TRUTH = "exhaustive patching"
OURS = "contrast"


def edge_figures(task: str, seed: int, settings: Settings) -> Figures:
    """Return every method's figures for one task and draw of pairs."""
    source = load(settings.model, mlp="neurons", attention="heads")
    model = EdgeModel(source)
    train, test = _pairs(source, task, seed, settings.pairs)
    runs = recorded(model, train)
    flows = contrast(model, train, runs)
    scores = {
        "random": random_scores(model.graph, seed),
        "EAP": eap(model, train),
        "EAP-IG-5": eap_ig_inputs(model, train, 5),
        "EAP-IG-5, activations": eap_ig_activations(model, train, 5),
        "RelP": relp(model, train),
        "gradient × activation": gradient_activation(model, train),
        "held trace": held(model, train, runs).mean(0),
        OURS: flows.mean(0),
        "contrast, reset network": _reset(source, train, seed),
        TRUTH: exhaustive_edges(model, train),
    }
    judge = Judge(model, test)
    truth = scores[TRUTH].abs() > TRUE * abs(judge.whole - judge.empty)
    found = {}
    for name, one in scores.items():
        row = judge.figures(one)
        row["Pearson"] = float(torch.corrcoef(torch.stack([one, scores[TRUTH]]))[0, 1])
        if name != TRUTH and 0 < int(truth.sum()) < len(truth):
            points = roc_points(one.abs(), truth)
            row |= {
                "pessimistic area": pessimistic_area(points),
                "trapezoid area": trapezoid_area(points),
                "average precision": average_precision(one.abs(), truth),
                "ROC": pareto(points),
            }
        found[name] = row
    tenth = len(truth) // 10
    return {
        "edges": len(truth),
        "true edges": int(truth.sum()),
        "whole": judge.whole,
        "empty": judge.empty,
        "stability": bootstrap_jaccard(flows, tenth, seed=seed),
        "methods": found,
        "circuit": top_circuit(model.graph, scores[OURS], tenth).nonzero().flatten().tolist(),
    }


def cross_figures(circuits: dict[str, list[int]], settings: Settings) -> Figures:
    """Return what every task's circuit of edges keeps of every task's metric, and their overlap."""
    source = load(settings.model, mlp="neurons", attention="heads")
    model = EdgeModel(source)
    masks = {}
    for task, edges in circuits.items():
        masks[task] = torch.zeros(model.graph.n_edges, dtype=torch.bool)
        masks[task][edges] = True
    kept: dict[str, Any] = {}
    for task in circuits:
        judge = Judge(model, _pairs(source, task, 0, settings.pairs)[1])
        kept[task] = {name: judge.faithfulness(mask) for name, mask in masks.items()}
    alike = {
        one: {
            other: float((mask & masks[other]).sum() / (mask | masks[other]).sum())
            for other in masks
        }
        for one, mask in masks.items()
    }
    return {"faithfulness": kept, "overlap": alike}


def _pairs(source: ReplacementModel, task: str, seed: int, count: int) -> tuple[Pairs, Pairs]:
    """Pairs to score by, and pairs to measure on."""
    tokenizer, d_vocab = source.tokenizer, source.weights.d_vocab
    train, test = (
        pairs_of(counterfactuals(task, count, seed=2 * seed + half), tokenizer, d_vocab)
        for half in (0, 1)
    )
    return train, test


def _reset(source: ReplacementModel, pairs: Pairs, seed: int) -> Float[Tensor, " edge"]:
    """Scores by our contrast in a network of the same shape whose weights were drawn anew."""
    hf_model: Any = copy.deepcopy(source.hf_model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf_model.named_parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.std())
            elif name.endswith("bias"):
                weight.zero_()
    model = EdgeModel(load(hf_model, tokenizer=source.tokenizer, mlp="neurons", attention="heads"))
    return contrast(model, pairs, recorded(model, pairs)).mean(0)
