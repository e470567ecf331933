"""Edges of components: how well each method finds those that matter, and what its circuits keep.

An edge (or a head) counts as true if patching it alone (resample, both directions of effect) moves
the mean metric by more than `TRUE` of the difference between clean and corrupted runs; that is
exhaustive patching's own judgement, so it is no row of the recovery table. Faithfulness needs no
truth: the edges outside a circuit carry what the corrupted run wrote.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
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
    eliminated,
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
from benchmarks.faithfulness import Judge, drawn
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
from benchmarks.tasks.counterfactuals import RULES
from circuits import load
from replacement.model import ReplacementModel

TRUE = 0.01
TRUTH = "exhaustive patching"
OURS = "contrast"
ACDC = "ACDC"
ELIMINATION = "backward elimination"


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


def elimination_figures(task: str, seed: int, settings: Settings) -> Figures:
    """Return what circuits keep whose edges were eliminated one by one, on ACDC's pairs."""
    source = load(settings.model, mlp="neurons", attention="heads")
    model = EdgeModel(source)
    train, test = train_and_test(source, task, seed, settings)
    few = train.part(slice(settings.acdc_pairs))
    return Judge(model, test).figures(eliminated(model, few, settings.elimination_share))


def acdc_row(
    circuits: Sequence[Bool[Tensor, " edge"]], truth: Bool[Tensor, " edge"], judge: Judge
) -> dict[str, Any]:
    """Return ACDC's areas over its thresholds, and what its circuits keep by their sizes."""
    row: dict[str, Any] = {
        "curve": {str(int(kept.sum())): judge.faithfulness(kept) for kept in circuits}
    }
    if 0 < int(truth.sum()) < len(truth):
        kept = torch.stack(list(circuits)).double()
        points = acdc_points(kept[:, ~truth], kept[:, truth])
        row |= {
            "pessimistic area": pessimistic_area(points),
            "pessimistic area, interval": acdc_interval(kept[:, ~truth], kept[:, truth]),
            "trapezoid area": trapezoid_area(points),
            "ROC": pareto(points),
        }
    return row


def acdc_points(
    wrong: Float[Tensor, "circuit false"], right: Float[Tensor, "circuit true"]
) -> list[tuple[float, float]]:
    """Return the rates of false and of true edges in each circuit, between none and all."""
    rates = zip(wrong.mean(1).tolist(), right.mean(1).tolist(), strict=True)
    return [(0.0, 0.0), *rates, (1.0, 1.0)]


def acdc_interval(
    wrong: Float[Tensor, "circuit false"],
    right: Float[Tensor, "circuit true"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of the pessimistic area, edges of both kinds drawn again."""
    source = np.random.default_rng(seed)

    def again(side: Float[Tensor, "circuit edge"]) -> Float[Tensor, "circuit edge"]:
        return side[:, torch.from_numpy(source.integers(side.shape[1], size=side.shape[1]))]

    areas = [pessimistic_area(acdc_points(again(wrong), again(right))) for _ in range(resamples)]
    low, high = np.percentile(areas, [2.5, 97.5]).tolist()
    return low, high


def divergence(model: EdgeModel, pairs: Pairs, kept: Bool[Tensor, " edge"]) -> float:
    """Return the KL divergence of a circuit's answers from the model's."""
    runs = Patching(model, pairs)
    whole = model.logits(runs.clean.final, pairs.end)
    return kl_divergence(whole, runs.logits(kept.to(whole.dtype)))


def train_and_test(
    source: ReplacementModel, task: str, seed: int, settings: Settings
) -> tuple[Pairs, Pairs]:
    """Return pairs to score by, and others to measure on; sequences as they are published."""
    train, test = (
        drawn(source, task, count, 2 * seed + half, published=task not in RULES)
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
