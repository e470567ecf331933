"""What only a model can say about the nodes of a circuit, as plain data that its files keep."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.score_pairs import ScorePairs
from circuits.attention import READ_BY_HEADS, attention_of
from circuits.card_details import of_nodes
from circuits.testing import KnockOuts, Patches, as_nodes
from graphs.graph import Graph
from graphs.nodes import INTERIOR
from replacement.edits import Node, number_of
from replacement.held import writing
from replacement.run import Run

_PAIRS = 8


def details_of(
    graph: Graph,
    run: Run,
    tokens: int,
    attention: int,
    test: KnockOuts | Patches | None,
    cards: Any,
) -> dict[str, Any]:
    """Return `meta["details"]`: by node number, tokens it promotes, attention, measured effects.

    `tokens`: {node: {"promoted": [[token, change of its logit], …], "suppressed": […]}}, by what
    the node wrote, through the held final norm, less the mean over the vocabulary.
    `attention`: of the strongest so many heads and Lorsa heads, {node: {"keys", "pattern",
    "moved", "why": [{"key", "score", "contrast"}]}}; score and contrast are {"value", "pairs":
    [[query, key, amount], …], "rest"}, which sum to the value.
    `measured`: {node: {"predicted", "held", "free", …}}: changes of the target.
    `cards`: what `circuits.card_details.of_nodes` says of the features that have cards.
    """
    nodes = graph.nodes.loc[graph.is_kind(*INTERIOR)]
    details: dict[str, Any] = {}
    if tokens:
        details["tokens"] = {
            str(node): _tokens(run, place, tokens)
            for node, place in zip(nodes.index.tolist(), as_nodes(nodes), strict=True)
        }
    heads = nodes.loc[nodes["kind"].isin(READ_BY_HEADS)]
    strongest = np.argsort(-heads["attribution"].abs().to_numpy(), kind="stable")[:attention]
    if len(strongest):
        details["attention"] = {
            str(node): _attention(graph, run, node)
            for node in heads.index.to_numpy()[strongest].tolist()
        }
    if test is not None:
        details["measured"] = measured(test.table)
    if cards is not None:
        details["cards"] = of_nodes(graph, cards)
    return details


def measured(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the rows of a test's table by node number."""
    rows = table.drop(columns="name").astype(float).to_dict("index")
    return {
        str(node): {str(name): number for name, number in row.items()} for node, row in rows.items()
    }


def _tokens(run: Run, place: Node, count: int) -> dict[str, list[list[Any]]]:
    change = _logit_changes(run, place)
    found = {}
    for name, sign in (("promoted", 1), ("suppressed", -1)):
        best = torch.topk(sign * change, min(count, len(change))).indices.tolist()
        found[name] = [[run.model.token_text(token), float(change[token])] for token in best]
    return found


@torch.no_grad()
def _logit_changes(run: Run, place: Node) -> Float[Tensor, " d_vocab"]:
    """What a node adds to every logit at its position by itself, less the mean."""
    weights = run.weights
    written = run.residuals[-1].new_zeros(weights.d_model)
    for layer, stages in writing(run.sublayers, 2 * weights.n_layers):
        if (layer.layer, layer.name) == (place.layer, place.sublayer):
            node = torch.tensor([number_of(layer, place)], device=written.device)
            written = sum((layer.writes(node, stage)[0] for stage in stages), written)
    normed = weights.final_norm.held(written[None], run.final_scale[place.pos][None])[0]
    change = weights.unembedding @ normed
    return change - change.mean()


def _attention(graph: Graph, run: Run, node: int) -> dict[str, Any]:
    answer = attention_of(graph, run, node, keys=2, max_nodes=24)
    return {
        "keys": answer.keys.index.tolist(),
        "pattern": answer.keys["pattern"].tolist(),
        "moved": answer.keys["moved"].tolist(),
        "why": [
            {
                "key": key,
                "score": _split(pairs),
                "contrast": _split(answer.contrasts[key]) if key in answer.contrasts else None,
            }
            for key, pairs in answer.pairs.items()
        ],
    }


def _split(pairs: ScorePairs) -> dict[str, Any]:
    strongest = pairs.strongest(_PAIRS)
    amounts = strongest["amount"].tolist()
    rows = zip(strongest["query"], strongest["key"], amounts, strict=True)
    return {
        "value": pairs.value,
        "pairs": [list(row) for row in rows],
        "rest": float(pairs.matrix.sum()) - sum(amounts),
    }
