"""The component graph and patched passes: identities, and a slow reference written differently."""

import dataclasses

import pytest
import torch

from benchmarks.edges import EdgeGraph, EdgeModel, Pairs, Patching, greedy_circuit, top_circuit
from tests.benchmarks.edge_models import edge_model, random_pairs
from tests.families import tiny

FAMILIES = (
    "GPT-2",
    "GPT-Neo",
    "GPT-NeoX",
    "GPT-NeoX, not parallel",
    "GPT-J",
    "Llama, grouped keys",
    "Qwen3, grouped keys",
    "Mistral, window",
    "OPT, no biases",
)


def own_logits(model: EdgeModel, ids: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """What the recorded model says at the ends, in whole float64 (Hugging Face rounds within)."""
    runs = [model.source.run(row.tolist()) for row in ids]
    return torch.stack([run.logits[int(pos)] for run, pos in zip(runs, end, strict=True)])


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_writer_is_read_by_everything_after_it(layers: int) -> None:
    graph = EdgeGraph(layers, n_heads=3)
    expected = []
    nodes = ["input"]
    for layer in range(layers):
        heads = [f"a{layer}.h{head}" for head in range(3)]
        expected += [f"{one}->{head}<{way}>" for way in "qkv" for head in heads for one in nodes]
        nodes += heads
        expected += [f"{one}->m{layer}" for one in nodes]
        nodes.append(f"m{layer}")
    expected += [f"{one}->output" for one in nodes]
    assert graph.names == expected
    assert graph.n_edges == len(set(expected))
    assert [graph.edge(name) for name in expected] == list(range(len(expected)))


def test_gpt_2_small_has_the_published_number_of_edges() -> None:
    assert EdgeGraph(12, 12).n_edges == 32491


def test_in_parallel_blocks_an_mlp_does_not_read_its_own_layers_heads() -> None:
    names = EdgeGraph(2, 2, parallel=True).names
    assert "a0.h0->m0" not in names
    assert "a0.h0->m1" in names
    assert "a1.h0->output" in names


@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_are_the_model_and_none_the_corrupted_run(family: str) -> None:
    model, pairs = edge_model(family), random_pairs()
    runs = Patching(model, pairs)
    every = torch.ones(model.graph.n_edges, dtype=torch.float64)
    clean = own_logits(model, pairs.clean, pairs.end)
    corrupt = own_logits(model, pairs.corrupt, pairs.end)
    assert torch.allclose(runs.logits(every), clean, atol=1e-10)
    assert torch.allclose(runs.logits(0 * every), corrupt, atol=1e-10)
    assert not torch.allclose(clean, corrupt, atol=1e-3)
    assert torch.allclose(model.logits(runs.clean.final, pairs.end), clean, atol=1e-10)


def by_hand(model: EdgeModel, pairs: Pairs, kept: set[str], row: int) -> torch.Tensor:
    """A patched pass of a GPT-2 by its own modules: one prompt, node by node, edge by edge."""
    hf: torch.nn.Module = model.source.hf_model
    trunk, length = hf.transformer, int(pairs.end[row]) + 1
    width, n_heads = hf.config.n_embd, hf.config.n_head
    size = width // n_heads

    def embedded(ids: torch.Tensor) -> torch.Tensor:
        return trunk.wte(ids[row, :length]) + trunk.wpe(torch.arange(length))

    def run(made: dict[str, torch.Tensor], other: dict[str, torch.Tensor] | None) -> torch.Tensor:
        biases = torch.zeros(length, width, dtype=torch.float64)

        def read(reader: str) -> torch.Tensor:
            total = biases.clone()
            for writer, value in made.items():
                inside = other is None or f"{writer}->{reader}" in kept
                total = total + (value if inside else other[writer])
            return total

        for number, block in enumerate(trunk.h):
            weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
            written = {}
            for head in range(n_heads):
                q, k, v = (
                    block.ln_1(read(f"a{number}.h{head}<{way}>")) @ weight[:, start : start + size]
                    + bias[start : start + size]
                    for way, start in zip(
                        "qkv", (head * size + part * width for part in range(3)), strict=True
                    )
                )
                hidden = torch.ones(length, length).triu(1).bool()
                scores = (q @ k.T / size**0.5).masked_fill(hidden, -torch.inf)
                rows = block.attn.c_proj.weight[head * size : (head + 1) * size]
                written[f"a{number}.h{head}"] = scores.softmax(-1) @ v @ rows
            made |= written
            biases = biases + block.attn.c_proj.bias
            made[f"m{number}"] = block.mlp(block.ln_2(read(f"m{number}")))
        return hf.lm_head(trunk.ln_f(read("output")))[-1]

    with torch.no_grad():
        other = {"input": embedded(pairs.corrupt)}
        run(other, None)
        return run({"input": embedded(pairs.clean)}, other)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_patched_logits_are_those_of_a_slow_reference(share: float) -> None:
    model, pairs = edge_model("GPT-2"), random_pairs()
    graph = model.graph
    masks = torch.rand(len(pairs), graph.n_edges) < share
    found = Patching(model, pairs).logits(masks.double())
    for row in range(len(pairs)):
        kept = {name for name, inside in zip(graph.names, masks[row], strict=True) if inside}
        assert torch.allclose(found[row], by_hand(model, pairs, kept, row), atol=1e-10)
    flipped = masks.clone()
    flipped[:, graph.edge("input->a0.h1<k>")] ^= True
    assert not torch.allclose(Patching(model, pairs).logits(flipped.double()), found, atol=1e-6)


@pytest.mark.parametrize("family", ["GPT-2", "GPT-NeoX", "Qwen3, grouped keys"])
@pytest.mark.parametrize("ablation", ["corrupt", "mean", "zero"])
def test_single_edges_are_the_same_resumed_or_from_the_start(family: str, ablation: str) -> None:
    model, pairs = edge_model(family), random_pairs()
    runs = Patching(model, pairs, ablation)
    for edge in range(0, model.graph.n_edges, 3):
        mask = torch.ones(model.graph.n_edges, dtype=torch.float64)
        mask[edge] = 0
        assert torch.allclose(runs.without(edge), runs.logits(mask), atol=1e-10), edge


def test_mean_and_zero_stand_in() -> None:
    model, pairs = edge_model("GPT-2"), random_pairs()
    written = Patching(model, pairs).corrupt.written
    stops = [int(end) + 1 for end in pairs.end]
    real = torch.cat([written[row, :, :stop] for row, stop in enumerate(stops)], 1)
    mean = Patching(model, pairs, "mean")
    assert torch.allclose(mean.stand_in[0, :, 0], real.mean(1))
    nothing = torch.zeros(model.graph.n_edges, dtype=torch.float64)
    last = model.source.hf_model.transformer
    constant = sum(block.attn.c_proj.bias for block in last.h)
    with torch.no_grad():
        expected = model.source.hf_model.lm_head(last.ln_f(constant))
    assert torch.allclose(Patching(model, pairs, "zero").logits(nothing), expected, atol=1e-10)


def test_what_stands_behind_the_answer_does_not_matter() -> None:
    model, pairs = edge_model("GPT-2"), random_pairs()
    behind = ~pairs.real
    other = dataclasses.replace(
        pairs,
        clean=pairs.clean.masked_fill(behind, 0),
        corrupt=pairs.corrupt.masked_fill(behind, 7),
    )
    mask = (torch.rand(model.graph.n_edges) < 0.5).double()
    found = [Patching(model, some).logits(mask) for some in (pairs, other, pairs.by_length())]
    assert torch.allclose(found[0], found[1], atol=1e-12)
    assert torch.allclose(found[0][pairs.end.argsort(stable=True)], found[2], atol=1e-12)


def test_metrics_read_logits_or_probabilities() -> None:
    pairs = random_pairs()
    logits = torch.randn(3, 13, dtype=torch.float64)
    weights = pairs.weights.double()
    assert torch.allclose(pairs.metric(logits), (weights * logits).sum(1))
    probabilities = dataclasses.replace(pairs, probability=True)
    assert torch.allclose(probabilities.metric(logits), (weights * logits.softmax(1)).sum(1))


def test_dangling_edges_are_taken_out() -> None:
    graph = EdgeGraph(2, 1)
    chosen = {
        "input->a0.h0<v>",
        "a0.h0->output",
        "a0.h0->m1",  # m1 leads nowhere
        "m0->a1.h0<q>",  # nothing enters m0
        "a1.h0->output",
    }
    mask = torch.tensor([name in chosen for name in graph.names])
    left = {name for name, kept in zip(graph.names, graph.connected(mask), strict=True) if kept}
    assert left == {"input->a0.h0<v>", "a0.h0->output"}
    assert graph.connected(torch.ones(graph.n_edges, dtype=torch.bool)).all()


def test_circuits_of_a_size() -> None:
    graph = EdgeGraph(2, 1)
    scores = torch.zeros(graph.n_edges)
    for name, score in {"input->m0": 3.0, "m0->output": -2.0, "input->a0.h0<q>": 9.0}.items():
        scores[graph.edge(name)] = score

    def names(mask: torch.Tensor) -> set[str]:
        return {name for name, kept in zip(graph.names, mask, strict=True) if kept}

    assert names(top_circuit(graph, scores, 3)) == {"input->m0", "m0->output"}
    assert names(greedy_circuit(graph, scores, 2)) == {"input->m0", "m0->output"}
    assert names(top_circuit(graph, scores, 2)) == set(), "the strongest two do not connect"
    assert greedy_circuit(graph, scores, graph.n_edges).all()


def test_a_model_in_training_is_read_without_dropout_and_left_as_it_was() -> None:
    model, ids = edge_model("GPT-2"), torch.tensor([[1, 2, 3]])
    hf = tiny("GPT-2")
    expected, block = model.entering(ids), hf.transformer.h[0]
    hooks = len(block._forward_pre_hooks)
    try:
        hf.train()
        assert torch.equal(model.entering(ids), expected)
        assert block.training
    finally:
        hf.eval()
    assert len(block._forward_pre_hooks) == hooks
