"""The head finder by discrete codes (O'Neill & Bui) on an exact model."""

from typing import Any

import torch

from benchmarks.baselines import discrete_codes, exhaustive_nodes, head_outputs, pair_edges
from benchmarks.baselines.discrete_sae import heads_of
from benchmarks.edges import EdgeModel
from benchmarks.scores import pessimistic_area, roc_points, trapezoid_area
from benchmarks.truth.measure import TOLERANCE, Measured
from benchmarks.truth.others import batch_of, edge_order


def discrete_rows(of: Measured) -> list[dict[str, Any]]:
    """Return how the discrete codes of heads rank true edges, and true heads.

    A head is true if it alone, carrying what it wrote in the counterfactual run, changes the target
    of some pair; where all are or none is, there is nothing to rank. "pairs counted by head" is
    what the authors call their edge score.
    """
    pairs, model = of.program.pairs, EdgeModel(of.components.model)
    d_vocab = of.components.model.weights.d_vocab
    outputs = head_outputs(model, batch_of(pairs, d_vocab))
    codes = discrete_codes(*(one.float() for one in outputs))
    fallen = torch.stack([exhaustive_nodes(model, batch_of([one], d_vocab)) for one in pairs])
    least = TOLERANCE * torch.stack([of.components.difference(one) for one in pairs]).abs().mean()
    heads = (fallen[:, heads_of(model.graph)].abs() > least).any(0)
    edges = pair_edges(model.graph, codes)[edge_order(model.graph, of.components)]
    asked = (
        ("discrete codes", "resample", edges, of.truths["resample"]),
        ("discrete codes", "resample, heads", codes.node_scores, heads),
        ("discrete codes, pairs counted by head", "resample, heads", codes.pair_heads, heads),
    )
    rows = []
    for method, name, scores, truth in asked:
        row = {"method": method, "truth": name, "edges": len(truth), "true": int(truth.sum())}
        if 0 < row["true"] < row["edges"]:
            points = roc_points(scores, truth)
            row["roc_auc"] = trapezoid_area(points)
            row["pessimistic_area"] = pessimistic_area(points)
        rows.append(row)
    return rows
