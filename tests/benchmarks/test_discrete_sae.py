"""The head finder by discrete codes, on codes and activations whose answer is known."""

import pytest
import torch

from benchmarks.baselines.discrete_sae import (
    Codes,
    discrete_codes,
    head_outputs,
    heads_of,
    pair_edges,
)
from benchmarks.edges import EdgeGraph, EdgeModel
from benchmarks.tasks.counterfactuals import counterfactuals, pairs_of
from circuits import load

CODES = Codes(
    positive=torch.tensor([[1, 5, 7], [2, 6, 7], [1, 5, 7]]),
    negative=torch.tensor([[1, 5, 7], [1, 6, 7], [1, 6, 7]]),
)
"""Head 0 takes 2 on positives alone; heads 1 and 2 take nothing new."""


def test_a_head_scores_by_codes_of_its_own_on_positives() -> None:
    assert CODES.node_scores.tolist() == pytest.approx(
        torch.tensor([1.0, 0.0, 0.0]).softmax(0).tolist()
    )


def test_pairs_are_of_codes_seen_together() -> None:
    """(2, 6) and (2, 7) are new; (1, 5), (5, 7) and (6, 7) are not, (1, 7) neither."""
    assert CODES.pairs.tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    counts = torch.tensor([2.0, 1.0, 1.0])
    assert torch.allclose(CODES.pair_heads, counts.softmax(0))


def test_pairs_as_edges_end_at_heads() -> None:
    graph = EdgeGraph(n_layers=2, n_heads=2)
    codes = Codes(torch.tensor([[1, 2, 3, 4], [2, 2, 3, 4]]), torch.tensor([[1, 2, 3, 4]]))
    scores = pair_edges(graph, codes)
    named = dict(zip(graph.names, scores.tolist(), strict=True))
    assert {name for name, score in named.items() if score} == {
        f"a0.h0->a1.h{head}<{way}>" for head in (0, 1) for way in "qkv"
    }


def test_a_head_that_says_something_else_on_positives_is_found() -> None:
    """Of 6 heads of fixed directions, head 4 writes one of two, by kind of prompt."""
    source = torch.Generator().manual_seed(0)
    directions = torch.randn(7, 16, generator=source) * 2
    positive, negative = (
        directions[:6] + 0.05 * torch.randn(40, 6, 16, generator=source) for _ in range(2)
    )
    positive[:, 4] += directions[6] - directions[4]
    found = discrete_codes(positive, negative, hidden=40)
    assert int(found.node_scores.argmax()) == 4
    assert int(found.pair_heads.argmax()) == 4
    same = discrete_codes(negative, negative, hidden=40)
    assert torch.allclose(same.node_scores, torch.full((6,), 1 / 6)), "control: no difference"


def test_head_outputs_are_means_over_the_prompt_alone() -> None:
    source = load("four-tasks", mlp="neurons", attention="heads")
    model = EdgeModel(source)
    pairs = pairs_of(counterfactuals("ioi", 4), source.tokenizer, source.weights.d_vocab)
    clean, corrupt = head_outputs(model, pairs)
    assert clean.shape == corrupt.shape == (4, 16, 128)
    assert heads_of(model.graph)[:5] == [1, 2, 3, 4, 6]
    assert float(torch.cat([clean, corrupt]).square().mean()) == pytest.approx(1, rel=1e-4)
    ids = pairs.clean[1, : int(pairs.end[1]) + 1][None]
    alone = model.run(model.entering(ids)).written[0, heads_of(model.graph)].mean(1)
    assert torch.nn.functional.cosine_similarity(clean[1], alone).min() > 0.9999
