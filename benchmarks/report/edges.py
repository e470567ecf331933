"""Edges of components: how well each method finds those that matter, and what its circuits keep.

An edge (or a head) counts as true if patching it alone (resample, both directions of effect) moves
the mean metric by more than `TRUE` of the difference between clean and corrupted runs; that is
exhaustive patching's own judgement, so it is no row of the recovery table. Faithfulness needs no
truth: the edges outside a circuit carry what the corrupted run wrote.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.baselines import (
    acdc,
    contrast,
    discrete_codes,
    eap,
    eap_ig_activations,
    eap_ig_inputs,
    exhaustive_edges,
    exhaustive_nodes,
    gradient_activation,
    head_outputs,
    held,
    node_scores,
    pair_edges,
    random_scores,
    recorded,
    relp,
)
from benchmarks.baselines.discrete_sae import heads_of
from benchmarks.edges import EdgeModel, Pairs, Patching, top_circuit
from benchmarks.faithfulness import Judge
from benchmarks.report.cells import Figures
from benchmarks.report.settings import Settings
from benchmarks.scores import (
    area_intervals,
    average_precision,
    bootstrap_jaccard,
    kl_divergence,
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
ACDC = "ACDC"


def edge_figures(task: str, seed: int, settings: Settings) -> Figures:
    """Return every method's figures for one task and draw of pairs."""
    source = load(settings.model, mlp="neurons", attention="heads")
    model = EdgeModel(source)
    train, test = train_and_test(source, task, seed, settings)
    some = train.part(slice(settings.test_pairs))
    runs = recorded(model, train)
    flows = contrast(model, train, runs)
    codes = discrete_codes(*head_outputs(model, train), seed=seed)
    scores = {
        "random": random_scores(model.graph, seed),
        "EAP": eap(model, train),
        "EAP-IG-5": eap_ig_inputs(model, train, 5),
        "EAP-IG-5, activations": eap_ig_activations(model, train, 5),
        "RelP": relp(model, train),
        "gradient × activation": gradient_activation(model, train),
        "held trace": held(model, train, runs).mean(0),
        OURS: flows.mean(0),
        "discrete codes": pair_edges(model.graph, codes),
        "contrast, reset network": _reset(source, train, seed),
        TRUTH: exhaustive_edges(model, some),
    }
    judge = Judge(model, test)
    least = TRUE * abs(judge.whole - judge.empty)
    truth = scores[TRUTH].abs() > least
    found = {}
    for name, one in scores.items():
        row = judge.figures(one)
        row["Pearson"] = float(torch.corrcoef(torch.stack([one, scores[TRUTH]]))[0, 1])
        found[name] = row if name == TRUTH else row | recovery(one.abs(), truth)
    few = train.part(slice(settings.acdc_pairs))
    circuits = [acdc(model, few, threshold) for threshold in settings.acdc_thresholds]
    found[ACDC] = acdc_row(circuits, truth, judge)
    heads = heads_of(model.graph)
    true_heads = exhaustive_nodes(model, some)[heads].abs() > least
    of_heads = {
        "discrete codes": codes.node_scores,
        "discrete codes, pairs counted by head": codes.pair_heads,
        **{
            name: node_scores(model.graph, one)[heads].abs()
            for name, one in scores.items()
            if name not in ("discrete codes", TRUTH)
        },
    }
    tenth = len(truth) // 10
    return {
        "edges": len(truth),
        "true edges": int(truth.sum()),
        "whole": judge.whole,
        "empty": judge.empty,
        "stability": bootstrap_jaccard(flows, tenth, seed=seed),
        "methods": found,
        "heads": {name: recovery(one, true_heads) for name, one in of_heads.items()},
        "true heads": int(true_heads.sum()),
        "ACDC": [
            {"threshold": threshold, "edges": int(kept.sum())}
            | {"faithfulness": judge.faithfulness(kept), "KL": divergence(model, test, kept)}
            for threshold, kept in zip(settings.acdc_thresholds, circuits, strict=True)
        ],
        "circuit": top_circuit(model.graph, scores[OURS], tenth).nonzero().flatten().tolist(),
    }


def recovery(scores: Float[Tensor, " edge"], truth: Bool[Tensor, " edge"]) -> dict[str, Any]:
    """Return the areas of scores against what is true, with intervals; nothing without both kinds.

    Intervals are over edges drawn with replacement.
    """
    if not 0 < int(truth.sum()) < len(truth):
        return {}
    points = roc_points(scores, truth)
    intervals = area_intervals(scores, truth)
    return {
        "pessimistic area": pessimistic_area(points),
        "trapezoid area": trapezoid_area(points),
        "average precision": average_precision(scores, truth),
        **{f"{name}, interval": interval for name, interval in intervals.items()},
        "ROC": pareto(points),
    }


def acdc_row(
    circuits: Sequence[Bool[Tensor, " edge"]], truth: Bool[Tensor, " edge"], judge: Judge
) -> dict[str, Any]:
    """Return ACDC's areas over its thresholds, and what its circuits keep by their sizes."""
    row: dict[str, Any] = {
        "curve": {str(int(kept.sum())): judge.faithfulness(kept) for kept in circuits}
    }
    if 0 < int(truth.sum()) < len(truth):
        rates = [
            (float(kept[~truth].float().mean()), float(kept[truth].float().mean()))
            for kept in circuits
        ]
        points = [(0.0, 0.0), *rates, (1.0, 1.0)]
        row |= {
            "pessimistic area": pessimistic_area(points),
            "trapezoid area": trapezoid_area(points),
            "ROC": pareto(points),
        }
    return row


def divergence(model: EdgeModel, pairs: Pairs, kept: Bool[Tensor, " edge"]) -> float:
    """Return the KL divergence of a circuit's answers from the model's."""
    runs = Patching(model, pairs)
    whole = model.logits(runs.clean.final, pairs.end)
    return kl_divergence(whole, runs.logits(kept.to(whole.dtype)))


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
        judge = Judge(model, train_and_test(source, task, 0, settings)[1])
        kept[task] = {name: judge.faithfulness(mask) for name, mask in masks.items()}
    alike = {
        one: {
            other: float((mask & masks[other]).sum() / (mask | masks[other]).sum())
            for other in masks
        }
        for one, mask in masks.items()
    }
    return {"faithfulness": kept, "overlap": alike}


def train_and_test(
    source: ReplacementModel, task: str, seed: int, settings: Settings
) -> tuple[Pairs, Pairs]:
    """Return pairs to score by, and others to measure on."""
    tokenizer, d_vocab = source.tokenizer, source.weights.d_vocab
    train, test = (
        pairs_of(counterfactuals(task, count, seed=2 * seed + half), tokenizer, d_vocab)
        for half, count in enumerate((settings.pairs, settings.test_pairs))
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
