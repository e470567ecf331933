"""The forward pass of components is the model's, and its cuts are cuts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.truth.components import Component, Edge, edges_of, writers_of
from benchmarks.truth.exhaustive import ComponentModel, edge_effects, edge_truth
from benchmarks.truth.program import Pair
from benchmarks.truth.programs import PROGRAMS
from circuits import load
from tests.families import IDS, tiny

OTHER = [7, 1, 2, 1, 11, 9, 0, 6]
PAIR = Pair(IDS, OTHER, frozenset({3}), {3: 1.0, 5: -0.5})
FAMILIES = ["GPT-2", "OPT", "GPT-Neo", "Llama, grouped keys", "Qwen3", "Mistral, window"]


def components_of(name: str) -> ComponentModel:
    """A program in disguise, or a tiny random model of a family: norms, rotary, grouped keys."""
    if name in PROGRAMS:
        model = PROGRAMS[name].build(rotated=True, dummies=1, count=1).model
    else:
        model = tiny(name)
    return ComponentModel(load(model, attention="heads", mlp="neurons"))


@pytest.mark.parametrize("name", [*FAMILIES, "symbolic_ioi", "closing_bracket"])
def test_without_cuts_it_is_the_model_and_with_all_the_counterfactual(name: str) -> None:
    components = components_of(name)
    pair = PAIR if name in FAMILIES else PROGRAMS[name].build(count=1).pairs[0]
    entering, clean = components.entering(pair.clean), components.run(pair.clean)
    other = components.forward(components.entering(pair.other), [[]])

    passed = components.forward(entering, [[], components.edges], other.outputs[:, 0])

    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(passed.logits[0], clean.logits[-1], **close)
    torch.testing.assert_close(passed.logits[1], components.run(pair.other).logits[-1], **close)
    assert float((passed.logits[0] - passed.logits[1]).abs().max()) > 1e-3
    for layer, pattern in zip(clean.layers, passed.patterns, strict=True):
        torch.testing.assert_close(pattern[0], layer.attention.pattern, **close)
    # held patterns: the same run; another run's: another one
    for patterns, same in ((passed.patterns, True), (other.patterns, False)):
        held = [one[:1] for one in patterns]
        logits = components.forward(entering, [[]], None, held).logits[0]
        assert torch.allclose(logits, clean.logits[-1], **close) is same


def patched_by_hand(model: Any, edge: Edge, writes: tuple[Tensor, Tensor]) -> Tensor:
    """GPT-2 with one edge cut by hooks; `writes`: what the writer wrote, and what it did there."""
    block, config = model.transformer.h[edge.reader.layer], model.config
    own, theirs = writes
    d_head = config.n_embd // config.n_head

    def into_head(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del inputs
        changed = block.attn.c_attn.forward(block.ln_1.forward(seen["stream"] - own + theirs))
        start = "qkv".index(edge.via) * config.n_embd + edge.reader.index * d_head
        found = output.clone()
        found[..., start : start + d_head] = changed[..., start : start + d_head]
        return found

    def into_mlp(_module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        return block.ln_2.forward(inputs[0] - own + theirs)

    def into_output(_module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        return model.transformer.ln_f.forward(inputs[0] - own + theirs)

    seen: dict[str, Tensor] = {}
    hooks = [block.ln_1.register_forward_hook(lambda _m, given, _o: seen.update(stream=given[0]))]
    where = {"mlp": (block.ln_2, into_mlp), "out": (model.transformer.ln_f, into_output)}
    module, hook = where.get(edge.via, (block.attn.c_attn, into_head))
    hooks.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            return model(torch.tensor([IDS])).logits[0, -1]
    finally:
        for one in hooks:
            one.remove()


@pytest.mark.parametrize("via", ["q", "k", "v", "mlp", "out"])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("writer", ["head", "mlp"])
def test_a_cut_is_what_hooks_do(via: str, ablation: str, writer: str) -> None:
    """Head 1 of layer 0, or its MLP, as read by head 0 of layer 1, by its MLP, by the logits."""
    model: Any = tiny("GPT-2")
    components = components_of("GPT-2")
    reader = {"mlp": Component("mlp", 1), "out": Component("output")}.get(
        via, Component("head", 1, 0)
    )
    source = Component("mlp", 0) if writer == "mlp" else Component("head", 0, 1)
    edge = Edge(source, reader, via)
    layer = 1 if reader.layer < 0 else reader.layer
    attention, mlp = model.transformer.h[0].attn, model.transformer.h[0].mlp
    d_head = model.config.n_embd // model.config.n_head
    kept: dict[str, Tensor] = {}

    def written(ids: list[int]) -> Tensor:
        hooks = [
            attention.c_proj.register_forward_hook(lambda _m, given, _o: kept.update(z=given[0])),
            mlp.register_forward_hook(lambda _m, _given, out: kept.update(mlp=out)),
        ]
        with torch.no_grad():
            model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        rows = slice(d_head, 2 * d_head)
        by_head = kept["z"][..., rows] @ attention.c_proj.weight[rows]
        return (kept["mlp"] if writer == "mlp" else by_head).detach()

    theirs = written(OTHER) if ablation == "resample" else torch.zeros(())
    at = Edge(source, reader._replace(layer=layer), via)
    by_hand = patched_by_hand(model, at, (written(IDS), theirs))

    instead = None
    if ablation == "resample":
        instead = components.forward(components.entering(OTHER), [[]]).outputs[:, 0]
    found = components.forward(components.entering(IDS), [[edge]], instead).logits[0]

    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-9)
    clean = components.run(IDS).logits[-1]
    assert float((found - clean).abs().max()) > 1e-6


def test_effects_are_those_of_cuts_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    components = components_of("Llama, grouped keys")
    whole = edge_effects(components, PAIR)
    monkeypatch.setattr("benchmarks.truth.exhaustive.AT_ONCE", 7)
    torch.testing.assert_close(edge_effects(components, PAIR), whole, rtol=0, atol=1e-12)
    assert len(whole) == len(components.edges)
    # the last edges are into the output
    instead = components.forward(components.entering(OTHER), [[]]).outputs[:, 0]
    entering = components.entering(IDS)
    cut = components.forward(entering, [[components.edges[-1]]], instead).logits
    clean = components.forward(entering, [[]]).logits
    assert float(whole[-1]) == pytest.approx(float(PAIR.metric(cut) - PAIR.metric(clean)))


def test_with_patterns_held_edges_by_q_and_k_do_nothing() -> None:
    components = components_of("Qwen3")
    effects = edge_effects(components, PAIR, frozen=True)
    free = edge_effects(components, PAIR)
    looks = torch.tensor([edge.via in ("q", "k") for edge in components.edges])
    assert float(effects[looks].abs().max()) < 1e-12
    assert float(free[looks].abs().max()) > 1e-4
    assert float(effects[~looks].abs().min()) > 0


def test_edges_are_every_writer_before_every_reader() -> None:
    edges = edges_of(2, 2)
    assert len(edges) == len(set(edges)) == 3 * 2 * 1 + 3 + 3 * 2 * 4 + 6 + 7
    order = {one: number for number, one in enumerate([*writers_of(2, 2), Component("output")])}
    assert all(order[edge.writer] < order[edge.reader] for edge in edges)
    assert Edge(Component("head", 0, 0), Component("head", 0, 1), "q") not in edges


def test_an_edge_is_true_where_one_pair_shows_it() -> None:
    effects = torch.tensor([[0.0, 1e-9, 0.5], [1e-3, 1e-9, 0.0]])
    truth = edge_truth(effects, torch.tensor([2.0, -1.0]), 1e-6)
    assert truth.tolist() == [True, False, True]
