"""Free knock-outs where attention is read through learned layers, against plain PyTorch hooks.

Nodes, errors and sources are taken out of the original model, or of one whose sublayers the layers
replace; logits, scores and features of attention are then measured by hand.
"""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from replacement.edits import Node, free_knock_outs, held_knock_outs
from replacement.run import Run
from replacement.target import Target
from tests.hooked import Hooked, Place, activations, hooked_pass, layers_of, measured, rebuilt
from tests.samples import (
    HEADS,
    LEARNED,
    REPLACED,
    RESIDUAL,
    SHAPES,
    TARGETS,
    Case,
    random_gpt2,
    random_run,
)

EXACT = 1e-9
CASES = [HEADS[0], LEARNED[2], LEARNED[3], LEARNED[5], LEARNED[9], *RESIDUAL, *REPLACED]
MADE: dict[str, Callable[[Run], Target]] = {
    "scores and logits": TARGETS["scores and logits"],
    "both sides": lambda run: run.attention_score(run.weights.n_layers - 1, 1, -1, -2),
    "query side": lambda run: run.attention_score(1, 0, -1, -2, side="query"),
    "key side": lambda run: run.attention_score(1, 0, -1, -2, side="key"),
    "combination": TARGETS["combination"],
}


def some_nodes(run: Run) -> Iterator[Node]:
    """A node of every kind of every sublayer, and an error, at one of the last two positions."""
    last = len(run.tokens) - 1
    yield from (Node("token", -1, "", last - 1, -1), Node("position", -1, "", last, -1))
    for number, layer in enumerate(run.sublayers):
        pos = last - number // 2 % 2
        rows = layer.rows((layer.positions() == pos).nonzero(as_tuple=True)[0])
        for kind, index in dict(zip(rows.kind, rows.index.tolist(), strict=True)).items():
            yield Node(kind, layer.layer, layer.name, pos, index)
        yield Node("error", layer.layer, layer.name, pos, -1)


def written_by(case: Case, seen: Hooked, run: Run, model, removal: Node) -> dict[Place, Tensor]:
    """Return what a node wrote, by place, from plain weights and what hooks saw."""
    base, pos, index = model.transformer, removal.pos, removal.index
    if removal.kind == "token":
        return {(-1, ""): base.wte.weight[run.token_ids[pos]]}
    if removal.kind == "position":
        return {(-1, ""): base.wpe.weight[pos]}
    place, layers = (removal.layer, removal.sublayer), layers_of(case)
    if removal.sublayer in ("resid", "mid"):
        layer, x = layers[place], seen.front[place]
        if removal.kind == "error":
            rebuilt_stream = activations(layer, x, x) @ layer.write + layer.write_bias
            return {place: (x - rebuilt_stream)[pos] * case.errors}
        return {place: activations(layer, x, x)[pos, index] * layer.write[index]}
    block = base.h[removal.layer]
    if removal.kind == "neuron":
        return {place: seen.acted[removal.layer][pos, index] * block.mlp.c_proj.weight[index]}
    if removal.kind == "head":
        width = run.weights.d_model // block.attn.num_heads
        rows = slice(index * width, (index + 1) * width)
        return {place: seen.mixed[removal.layer][pos, rows] @ block.attn.c_proj.weight[rows]}
    layer = layers.get(place)
    if removal.kind == "error" and (layer is None or not case.errors):
        return {place: torch.zeros(run.weights.d_model, dtype=torch.float64)}
    assert layer is not None
    y, wrote = seen.normed[place], seen.wrote[place]
    if removal.kind == "error":
        return {place: (wrote - rebuilt(layers, place, seen))[pos]}
    if removal.kind == "skip":
        assert layer.skip is not None
        return {place: layer.skip @ y[pos]}
    vectors = activations(layer, y, wrote)[pos, index] * layer.write[index]
    return {
        (removal.layer + later, removal.sublayer): vector
        for later, vector in enumerate(vectors.split(run.weights.d_model))
    }


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_free_knock_outs_are_what_hooks_measure(case: Case) -> None:
    """The whole batch at once through the library = one hooked Hugging Face run per node."""
    run, model = random_run(case), random_gpt2(SHAPES[case.shape], case.seed)
    layers = {} if case.errors else layers_of(case)
    before = hooked_pass(model, run.token_ids, layers, {})
    removals = list(some_nodes(run))
    after = []
    for removal in removals:
        lost = {}
        for place, vector in written_by(case, before, run, model, removal).items():
            lost[place] = torch.zeros_like(run.token_writes)
            lost[place][removal.pos] = vector
        after.append(hooked_pass(model, run.token_ids, layers, lost))
    for make in MADE.values():
        target = make(run)
        assert measured(target, model, before, before) == pytest.approx(target.value, abs=EXACT)
        found = free_knock_outs(target, removals)
        expected = [measured(target, model, seen, before) for seen in after]
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=torch.float64), rtol=EXACT, atol=EXACT
        )
        assert float((found - target.value).abs().max()) > 1e-3, "the knock-outs do something"


@pytest.mark.parametrize("case", [LEARNED[1], REPLACED[0]], ids=str)
def test_free_and_held_differ(case: Case) -> None:
    """Control: letting Lorsa's patterns and gates react changes what a knock-out does."""
    run = random_run(case)
    target = TARGETS["difference"](run)
    removals = [removal for removal in some_nodes(run) if removal.kind == "lorsa"]
    everything = [torch.ones(layer.n_nodes, dtype=torch.bool) for layer in run.sublayers]
    held = held_knock_outs(target, everything, removals)
    assert float((held - free_knock_outs(target, removals)).abs().max()) > 1e-3


def test_a_replacement_run_is_edited_as_a_replacement_run() -> None:
    """Control: the same vectors taken out of the original model do something else."""
    run = random_run(REPLACED[0])
    target = run.logit(2)
    removals = [removal for removal in some_nodes(run) if removal.kind == "token"]
    of_original = dataclasses.replace(run, errors=True)
    other = free_knock_outs(dataclasses.replace(target, run=of_original), removals)
    assert float((free_knock_outs(target, removals) - other).abs().max()) > 1e-2


@pytest.mark.parametrize("knock_out", ["held", "free"])
@pytest.mark.parametrize(
    "removal",
    [
        Node("head", 0, "attn", 0, 0),
        Node("feature", 0, "attn", 0, 0),
        Node("lorsa", 0, "attn", 0, 12),
        Node("lorsa", 0, "attn", 9, 0),
        Node("lorsa", 0, "attn", -1, 0),
        Node("lorsa", 0, "mlp", 0, 0),
        Node("lorsa", 1, "attn", 0, 0),
    ],
)
def test_nodes_that_do_not_exist_are_refused(removal: Node, knock_out: str) -> None:
    """Layer 0 is read through Lorsa, layer 1 through heads."""
    target = random_run(LEARNED[2]).logit(1)
    everything = [torch.ones(layer.n_nodes, dtype=torch.bool) for layer in target.run.sublayers]
    with pytest.raises(ValueError, match=f"{removal.kind} {removal.index} of layer"):
        if knock_out == "held":
            held_knock_outs(target, everything, [removal])
        else:
            free_knock_outs(target, [removal])


def test_a_lorsa_head_that_is_not_active_is_refused() -> None:
    run = random_run(LEARNED[1])
    active = run.layers[0].attention.active
    assert active is not None
    here = active.index[active.pos == 2].tolist()
    idle = next(index for index in range(active.n_features) if index not in here)
    with pytest.raises(ValueError, match=f"lorsa {idle} of layer 0 is not active at position 2"):
        free_knock_outs(run.logit(1), [Node("lorsa", 0, "attn", 2, idle)])
