"""Knock-outs: what the sweep predicts, what plain PyTorch hooks measure, and a model left alone."""

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from attribution.sweep import sweep
from replacement.edits import Node, free_knock_outs, held_knock_outs
from replacement.held import Sublayer
from replacement.layers import Transcoder
from replacement.model import ReplacementModel
from replacement.run import Run
from replacement.target import Target
from tests.attribution.by_hand import gate_by_hand
from tests.samples import (
    CASES,
    HEADS,
    SHAPES,
    TARGETS,
    Case,
    mlps_of,
    random_gpt2,
    random_run,
)

SMOOTH = CASES[0]
SPARSE = Case("two layers", "jumprelu", skip=True)
CUTOFFS = (0.0, 0.05)
MADE = ("difference", "combination", "feature", "direction at the start")


def every_node(layer: Sublayer) -> list[Node]:
    """Return one removal per node of a sublayer, in node order."""
    rows = layer.rows(torch.arange(layer.n_nodes))
    return [
        Node(kind, layer.layer, layer.name, pos, index)
        for kind, pos, index in zip(rows.kind, rows.pos.tolist(), rows.index.tolist(), strict=True)
    ]


def every_source(kind: str, run: Run) -> list[Node]:
    return [Node(kind, -1, "", pos, -1) for pos in range(len(run.tokens))]


def every_error(layer: Sublayer, run: Run) -> list[Node]:
    return [Node("error", layer.layer, layer.name, pos, -1) for pos in range(len(run.tokens))]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_held_knock_out_is_value_minus_attribution(case: Case, cutoff: float) -> None:
    """A second implementation, forwards: taking a node out costs the target its attribution.

    For nodes, tokens, positions and errors alike; nodes the gate stopped are clamped.
    """
    run = random_run(case)
    sublayers = run.sublayers
    for name in MADE if case in HEADS else ("combination", "scores and logits"):
        target = TARGETS[name](run)
        swept = sweep(target, sublayers, cutoff)
        removals = [*every_source("token", run), *every_source("position", run)]
        predicted = [swept.leaves.token, swept.leaves.position]
        for number, layer in enumerate(sublayers):
            removals += every_node(layer) + every_error(layer, run)
            predicted += [swept.attribution[number], swept.leaves.error[number]]
        measured = held_knock_outs(target, swept.keep, removals)
        expected = target.value - torch.cat(predicted)
        scale = float(torch.cat(predicted).abs().sum())
        assert float((measured - expected).abs().max()) <= 1e-9 * scale


def test_nodes_not_clamped_give_another_value() -> None:
    """Control: predictions of a gated circuit do not hold when pruned nodes react too."""
    target = TARGETS["difference"](random_run(SMOOTH))
    sublayers = target.run.sublayers
    swept = sweep(target, sublayers, 0.1)
    kept = [
        (removal, float(attribution))
        for layer, keep, attributions in zip(sublayers, swept.keep, swept.attribution, strict=True)
        for removal, chosen, attribution in zip(every_node(layer), keep, attributions, strict=True)
        if chosen and layer.layer == 0
    ]
    removals = [removal for removal, _ in kept]
    predicted = target.value - torch.tensor([amount for _, amount in kept], dtype=torch.float64)
    free = held_knock_outs(target, [torch.ones_like(keep) for keep in swept.keep], removals)
    assert float((free - predicted).abs().max()) > 1e-3 * abs(target.value)


@pytest.mark.parametrize("case", [SMOOTH, SPARSE], ids=str)
def test_held_forward_is_affine_in_what_enters(case: Case) -> None:
    """f(ax + by) - f(0) = a(f(x) - f(0)) + b(f(y) - f(0)) in the library's held forward pass."""
    target = TARGETS["combination"](random_run(case))
    x, y = torch.randn(2, *target.run.token_writes.shape, dtype=torch.float64)
    everything = [torch.ones(layer.n_nodes, dtype=torch.bool) for layer in target.run.sublayers]

    def value(entering: Tensor) -> float:
        nothing = torch.zeros_like(entering)
        run = dataclasses.replace(target.run, token_writes=entering, position_writes=nothing)
        none_lost = [Node("position", -1, "", 0, -1)]
        moved = dataclasses.replace(target, run=run)
        return float(held_knock_outs(moved, everything, none_lost))

    zero = value(0 * x)
    both = 2.5 * (value(x) - zero) - 0.75 * (value(y) - zero)
    assert value(2.5 * x - 0.75 * y) - zero == pytest.approx(both, rel=1e-10)


@pytest.mark.parametrize(
    "removal",
    [
        Node("neuron", 0, "mlp", 0, 12),
        Node("feature", 0, "mlp", 0, 0),
        Node("head", 0, "attn", 0, 2),
        Node("head", 1, "attn", 5, 0),
        Node("skip", 1, "mlp", 0, -1),
        Node("neuron", 0, "mlp", -1, 0),
    ],
)
@pytest.mark.parametrize("knock_out", ["held", "free"])
def test_nodes_that_do_not_exist_are_refused(knock_out: str, removal: Node) -> None:
    """An error that names the node, not a knock-out of something else."""
    target = TARGETS["logit"](random_run(SMOOTH))
    everything = [torch.ones(layer.n_nodes, dtype=torch.bool) for layer in target.run.sublayers]
    with pytest.raises(ValueError, match=f"{removal.kind} {removal.index} of layer"):
        if knock_out == "held":
            held_knock_outs(target, everything, [removal])
        else:
            free_knock_outs(target, [removal])


def test_no_removals_give_no_values() -> None:
    """An empty batch is an empty answer, held or free."""
    target = TARGETS["logit"](random_run(SMOOTH))
    everything = [torch.ones(layer.n_nodes, dtype=torch.bool) for layer in target.run.sublayers]
    assert held_knock_outs(target, everything, []).shape == (0,)
    assert free_knock_outs(target, []).shape == (0,)


# ---------------------------------------------------------------- free knock-outs, by plain hooks


def written_by(run: Run, case: Case, model: nn.Module, removal: Node) -> Tensor:
    """Return what a node wrote in the original model, from PyTorch hooks and plain weights."""
    base, seen = model.transformer, {}
    layer, pos, index = removal.layer, removal.pos, removal.index
    ids = run.token_ids
    if removal.kind == "token":
        return base.wte.weight[ids[pos]]
    if removal.kind == "position":
        return base.wpe.weight[pos]
    block = base.h[layer]
    handles = [
        block.attn.c_proj.register_forward_pre_hook(lambda _, given: seen.update(mixed=given[0])),
        block.mlp.register_forward_hook(lambda _, given, out: seen.update(y=given[0], mlp=out)),
        block.mlp.c_proj.register_forward_pre_hook(lambda _, given: seen.update(act=given[0])),
    ]
    model(ids[None])
    for handle in handles:
        handle.remove()
    if removal.kind == "head":
        width = run.weights.d_model // block.attn.num_heads
        rows = slice(index * width, (index + 1) * width)
        return seen["mixed"][0, pos, rows] @ block.attn.c_proj.weight[rows]
    if removal.kind == "neuron":
        return seen["act"][0, pos, index] * block.mlp.c_proj.weight[index]
    mlps = mlps_of(case)
    assert mlps is not None
    transcoder, y = mlps[layer], seen["y"][0]
    assert isinstance(transcoder, Transcoder)
    around = y @ transcoder.skip.T if transcoder.skip is not None else torch.zeros_like(y)
    pre = y @ transcoder.read.T + transcoder.read_bias
    activation = gate_by_hand(transcoder, pre) * pre
    match removal.kind:
        case "feature":
            return activation[pos, index] * transcoder.write[index]
        case "skip":
            return around[pos]
    rebuilt = activation @ transcoder.write + transcoder.write_bias + around
    return (seen["mlp"][0] - rebuilt)[pos]


def measured_with_hooks(target: Target, model: nn.Module, removal: Node, lost: Tensor) -> float:
    """Return the target in the original model with `lost` taken out, by PyTorch forward hooks."""
    base, stages = model.transformer, {}

    def lose(output: Tensor) -> Tensor:
        changed = output.clone()
        changed[0, removal.pos] -= lost
        return changed

    if removal.kind in ("token", "position"):
        edit = base.drop.register_forward_hook(lambda _, __, out: lose(out))
    elif removal.sublayer == "attn":
        edit = base.h[removal.layer].attn.register_forward_hook(
            lambda _, __, out: (lose(out[0]), *out[1:])
        )
    else:
        edit = base.h[removal.layer].mlp.register_forward_hook(lambda _, __, out: lose(out))
    handles = [edit]
    for number, block in enumerate(base.h):
        handles += [
            block.ln_1.register_forward_pre_hook(keep_in(stages, ("entering", number))),
            block.ln_2.register_forward_hook(
                lambda _, __, out, number=number: stages.update({("normed", number): out[0]})
            ),
        ]
    handles.append(base.ln_f.register_forward_pre_hook(keep_in(stages, ("entering", len(base.h)))))
    logits = model(target.run.token_ids[None]).logits[0]
    for handle in handles:
        handle.remove()
    total = 0.0
    for term in target.terms:
        match term.kind:
            case "logit":
                value = logits[term.pos, term.index]
            case "centered_logit":
                value = logits[term.pos, term.index] - logits[term.pos].mean()
            case "direction":
                value = stages["entering", term.layer][term.pos] @ term.vector
            case "feature":
                layer = target.run.weights.layers[term.layer].mlp
                y = stages["normed", term.layer][term.pos]
                value = y @ layer.read[term.index] + layer.read_bias[term.index]
        total += term.weight * float(value)
    return total


def keep_in(stages: dict, name: tuple[str, int]):
    return lambda _, given: stages.update({name: given[0][0]})


FREE_CASES = [
    (SMOOTH, [("head", 0, "attn", 1), ("head", 1, "attn", 0), ("neuron", 0, "mlp", 3),
              ("neuron", 1, "mlp", 7), ("token", -1, "", -1), ("position", -1, "", -1)]),
    (SPARSE, [("head", 0, "attn", 1), ("skip", 0, "mlp", -1), ("skip", 1, "mlp", -1),
              ("error", 0, "mlp", -1), ("error", 1, "mlp", -1), ("token", -1, "", -1)]),
    (Case("width is vocabulary", "relu", skip=True, seed=3),
     [("head", 1, "attn", 1), ("skip", 0, "mlp", -1), ("position", -1, "", -1)]),
]  # fmt: skip


@pytest.mark.parametrize(("case", "kinds"), FREE_CASES, ids=[str(case) for case, _ in FREE_CASES])
def test_free_knock_out_is_what_hooks_measure(
    case: Case, kinds: list[tuple[str, int, str, int]]
) -> None:
    """The whole batch at once through the library = one hooked Hugging Face run per node."""
    run, model = random_run(case), random_gpt2(SHAPES[case.shape], case.seed)
    removals = [
        Node(kind, layer, sublayer, pos, index)
        for (kind, layer, sublayer, index), pos in itertools.product(kinds, (0, 2, 4))
    ]
    if case.mlp != "neurons":
        for number, layer in enumerate(run.layers):
            active = layer.mlp.active
            first = [int(active.offsets[pos]) for pos in (0, 2)]
            removals += [
                Node("feature", number, "mlp", pos, int(active.index[place]))
                for pos, place in zip((0, 2), first, strict=True)
            ]
    for name in ("difference", "centered", "combination", "feature"):
        target = TARGETS[name](run)
        found = free_knock_outs(target, removals)
        with torch.no_grad():
            expected = [
                measured_with_hooks(target, model, removal, written_by(run, case, model, removal))
                for removal in removals
            ]
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
        )
        assert float((found - target.value).abs().max()) > 1e-3, "the knock-outs do something"


def test_free_and_held_differ() -> None:
    """Control: letting patterns, norms and gates react changes what a knock-out does."""
    target = TARGETS["difference"](random_run(SMOOTH))
    removals = every_node(target.run.sublayers[0])
    everything = [torch.ones(layer.n_nodes, dtype=torch.bool) for layer in target.run.sublayers]
    held = held_knock_outs(target, everything, removals)
    assert float((held - free_knock_outs(target, removals)).abs().max()) > 1e-3


# ------------------------------------------------------------------------- the model is left alone


def state_of(model: nn.Module) -> dict:
    """Return all that a run might change in a model, apart from its weights."""
    return {
        "training": [module.training for module in model.modules()],
        "attention": model.config._attn_implementation,
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "classes": [type(module) for module in model.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        ],
    }


def awkward_model(attention: str = "sdpa") -> nn.Module:
    """Return a model in training mode, some of it frozen, with the default attention."""
    model = random_gpt2(attention=attention).train()
    model.transformer.h[1].eval()
    model.transformer.wte.weight.requires_grad_(False)
    return model


def do_everything(model: nn.Module) -> None:
    """Load, run, and knock out."""
    run = ReplacementModel(model).run([1, 2, 3])
    removals = [Node("head", 0, "attn", 1, 0), Node("token", -1, "", 0, -1)]
    free_knock_outs(run.logit(2), removals)
    masks = [torch.ones(layer.n_nodes, dtype=torch.bool) for layer in run.sublayers]
    held_knock_outs(run.logit(2), masks, removals)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_runs_and_edits_leave_the_model_as_it_was(attention: str) -> None:
    """Weights bit for bit, flags, hooks, and what the model computes afterwards."""
    model = awkward_model(attention)
    weights, before = copy.deepcopy(model.state_dict()), state_of(model)
    ids = torch.tensor([[1, 2, 3]])
    twin = copy.deepcopy(model).eval()
    do_everything(model)
    assert state_of(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert torch.equal(model.eval()(ids).logits, twin(ids).logits)
    later = copy.deepcopy(model)
    with torch.no_grad():
        later.transformer.h[0].mlp.c_proj.weight.zero_()
    assert not torch.equal(later(ids).logits, twin(ids).logits), "a copy has its own weights"
    assert torch.equal(model(ids).logits, twin(ids).logits)


@contextlib.contextmanager
def broken(model: nn.Module, name: str) -> Iterator[None]:
    """Make one submodule raise."""

    def refuse(*_: object) -> None:
        raise RuntimeError("the model broke")

    handle = model.get_submodule(name).register_forward_hook(refuse)
    yield
    handle.remove()


@pytest.mark.parametrize("where", ["transformer.h.0.attn", "transformer.h.1.mlp", "lm_head"])
def test_an_exception_leaves_the_model_as_it_was(where: str) -> None:
    """Flags come back, and the next run is as good as any."""
    model = awkward_model()
    wrapped = ReplacementModel(model)
    run = wrapped.run([1, 2, 3])
    with broken(model, where):
        before = state_of(model)
        with pytest.raises(Exception, match="the model broke"):
            wrapped.run([1, 2, 3])
        assert state_of(model) == before
        with pytest.raises(Exception, match="the model broke"):
            free_knock_outs(run.logit(2), [Node("head", 0, "attn", 1, 0)])
        assert state_of(model) == before
    assert torch.equal(wrapped.run([1, 2, 3]).logits, run.logits)
