"""Edited runs: predicted is measured, hooks measure the same, and nothing is left behind."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attribution.prediction import predicted_changes
from circuits import Ablate, Add, Node, Scale, Set, SetPattern, load
from replacement.edits import changes_of, held_values, recorded
from replacement.families import family_of
from replacement.held import FeatureNodes
from replacement.model import ReplacementModel
from replacement.precision import KeepDouble
from replacement.run import Run
from tests.attribution.test_families import layers_for, residuals_for, run_of
from tests.families import CONFIGS, IDS, tiny
from tests.replacement.test_edits import awkward_model, broken, state_of
from tests.samples import CASES, SHAPES, TARGETS, Case, random_gpt2, random_ids, random_run

EXACT = 1e-9
each_family = pytest.mark.parametrize("name", CONFIGS)


def nodes_of_every_kind(run: Run) -> list[Node]:
    """Return nodes of every kind the run has, at two positions: active, idle and errors."""
    last = len(run.tokens) - 1
    found = [Node("token", pos=last // 2)]
    if run.weights.position_embedding is not None:
        found.append(Node("position", pos=last))
    for number, layer in enumerate(run.sublayers):
        rows = layer.rows(torch.arange(layer.n_nodes))
        place = last if number % 2 else last // 2
        active = [
            Node(kind, layer.layer, layer.name, int(pos), int(index))
            for kind, pos, index in zip(rows.kind, rows.pos, rows.index, strict=True)
            if pos == place
        ]
        found += [active[0], active[len(active) // 2], active[-1]] if active else []
        found.append(Node("error", layer.layer, layer.name, place))
        if isinstance(layer, FeatureNodes) and layer.node_kind != "neuron":
            used = {node.index for node in active}
            idle = next(one for one in range(layer.features.n_features) if one not in used)
            found.append(Node(layer.node_kind, layer.layer, layer.name, place, idle))
    return list(dict.fromkeys(found))


def some_value(run: Run, node: Node, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(recorded(run, node).shape, generator=source, dtype=torch.float64)


def edits_of(run: Run, other: Run) -> list[list[Any]]:
    """Return lists of edits: every node alone, each by another kind of edit, and groups."""
    nodes = nodes_of_every_kind(run)
    alone: list[list[Any]] = []
    for number, node in enumerate(nodes):
        made = [
            Scale(node, 0),
            Scale(node, -1.5),
            Set(node, some_value(run, node, number)),
            Add(node, some_value(run, node, number)),
            Ablate(node, other),
            Ablate(node, [run, other]),
        ]
        alone.append([made[number % 6]])
    added = [Add(node, some_value(run, node, number)) for number, node in enumerate(nodes)]
    set_one = Set(nodes[1], some_value(run, nodes[1], 99))
    together = [[Scale(nodes, 0)], [Scale(nodes[::2], 0.5), set_one], added]
    return [*alone, *together, [Scale(nodes[::3], 2), *added[1::3]]]


def assert_predicted(run: Run, other: Run) -> None:
    target = run.logit(3) - 0.7 * run.logit(5, pos=len(run.tokens) // 2)
    target = target + run.feature(run.weights.n_layers - 1, -1, 2)
    lists = edits_of(run, other)
    predicted = predicted_changes(target, lists)
    measured = held_values(target, changes_of(run, lists)) - target.value
    scale = max(1.0, float(predicted.abs().max()))
    off = (predicted - measured).abs()
    assert float(off.max()) <= EXACT * scale, lists[int(off.argmax())]
    assert float((predicted.abs() > 1e-6).double().mean()) > 0.3, "the edits do something"


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_held_is_predicted_for_every_node_kind(case: Case) -> None:
    """Alone and in groups; features that were not active too."""
    run = random_run(case)
    assert_predicted(run, run.model.run(random_ids(SHAPES[case.shape], 50), errors=case.errors))


@each_family
@pytest.mark.parametrize("learned", [False, "across"])
def test_held_is_predicted_in_every_family(name: str, learned: bool | str) -> None:
    run = run_of(name, learned)
    assert_predicted(run, run.model.run(IDS[::-1]))


def test_held_is_predicted_where_the_stream_is_replaced() -> None:
    model: Any = tiny("Gemma-2, grouped keys")
    made = ReplacementModel(model, None, *layers_for(model), residuals_for(model))
    assert_predicted(made.run(IDS), made.run(IDS[::-1]))


def test_a_stop_that_passes_on_is_noticed() -> None:
    """Control: a group predicted as the sum of its members alone is wrong."""
    run = random_run(CASES[0])
    target, nodes = run.logit(3), nodes_of_every_kind(run)
    apart = predicted_changes(target, [[Scale(node, 0)] for node in nodes]).sum()
    together = predicted_changes(target, [[Scale(nodes, 0)]])[0]
    assert abs(float(apart - together)) > 1e-3


# ------------------------------------------------------------------- without edits, bit for bit


@each_family
@pytest.mark.parametrize("learned", [False, True])
def test_no_edits_change_no_bit(name: str, learned: bool) -> None:
    run = run_of(name, learned)
    for mode in ("held", "patterns", "free"):
        assert torch.equal(run.edited([], mode).logits, run.logits)
    target = run.logit(3)
    assert run.edited([], "free").value(target) == pytest.approx(target.value, abs=EXACT)


@each_family
def test_edits_that_change_nothing_change_nothing(name: str) -> None:
    """Every node scaled by 1, its layer computed anew: all three modes give the run."""
    for learned, errors in ((False, True), (True, True), (True, False), ("across", True)):
        run = run_of(name, learned, errors)
        same = [Scale(nodes_of_every_kind(run), 1)]
        for mode in ("patterns", "free"):
            edited = run.edited(same, mode)
            assert (edited.logits - run.logits).abs().max() <= EXACT * run.logits.abs().max()
        target = run.logit(3)
        assert run.edited(same, "held").value(target) == pytest.approx(target.value, rel=EXACT)


# ------------------------------------------------------------------- against plain hooks

OUTPUTS = {"c_proj", "dense_4h_to_h", "fc_out", "fc2", "down_proj", "o_proj", "dense", "out_proj"}


def output_of(block: nn.Module, path: str) -> nn.Module:
    """Return the last linear map of an attention layer or MLP."""
    part = block.get_submodule(path)
    if path in OUTPUTS:
        return part
    named = dict(part.named_modules())
    return next(named[name] for name in named if name.split(".")[-1] in OUTPUTS)


@contextlib.contextmanager
def entering(model: Any, edits: dict[tuple[int, str], Any]) -> Iterator[None]:
    """Change what enters W_O (heads) or the MLP's last map (neurons) by functions of it."""
    family, handles = family_of(model), []
    blocks: Any = model.get_submodule(family.layers)
    for (layer, name), change in edits.items():
        path = family.attention if name == "attn" else family.mlp
        # fc2 of OPT is reached by its own name; its input is flat in some versions
        handles.append(
            output_of(blocks[layer], path).register_forward_pre_hook(
                lambda _, given, change=change: (change(given[0]), *given[1:])
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@each_family
@torch.no_grad()
def test_free_edits_are_what_hooks_measure(name: str) -> None:
    """Heads and neurons of two layers set together: the later ones react to the earlier."""
    model: Any = tiny(name)
    run = run_of(name, learned=False)
    width = run.weights.layers[0].heads.output.shape[0] // run.weights.layers[0].heads.n_heads
    last = run.weights.n_layers - 1
    value = torch.linspace(-1, 1, width, dtype=torch.float64)

    def heads(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, 3, :width] = value
        x[0, 5, -width:] += value
        return x

    def neurons(x: Tensor) -> Tensor:
        flat = x.clone().view(-1, x.shape[-1])
        flat[3, 2], flat[6, 4] = 1.25, 0.0
        flat[7, 1] += 0.5
        return flat.view(x.shape)

    n_heads = run.weights.layers[0].heads.n_heads
    edits = []
    for layer in {0, last}:
        edits += [
            Set(Node("head", layer, index=0, pos=3), value),
            Add(Node("head", layer, index=n_heads - 1, pos=5), value),
            Set(Node("neuron", layer, index=2, pos=3), 1.25),
            Ablate(Node("neuron", layer, index=4), positions=[6]),
            Add(Node("neuron", layer, index=1, pos=-1), 0.5),
        ]
    hooks = {(layer, part): change for layer in (0, last) for part, change in
             (("attn", heads), ("mlp", neurons))}  # fmt: skip
    with entering(model, hooks), KeepDouble():
        expected = model(torch.tensor([IDS])).logits[0]
    edited = run.edited(edits)
    assert (edited.logits - expected).abs().max() <= 1e-8 * expected.abs().max()
    assert (edited.logits - run.logits).abs().max() > 1e-3, "the edits do something"
    apart = run.edited([Scale(Node("neuron", 0, index=2, pos=3), 0)])
    assert (edited.logits - apart.logits).abs().max() > 1e-3


@contextlib.contextmanager
def softmax_gives(monkeypatch: pytest.MonkeyPatch, patterns: Sequence[Tensor]) -> Iterator[None]:
    """Make the softmax of each attention layer in turn give a pattern."""
    left = list(patterns)
    with monkeypatch.context() as patched:
        patched.setattr(nn.functional, "softmax", lambda *_, **__: left.pop(0)[None])
        yield
    assert not left


@torch.no_grad()
def test_patterns_held_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_gpt2(SHAPES["deep"])
    run = load(model).run(random_ids(SHAPES["deep"]))
    edits = [
        Scale(Node("neuron", 0, index=3, pos=1), -20),
        Scale(Node("head", 1, index=1, pos=2), 0),
    ]
    patterns = [layer.attention.pattern for layer in run.layers]
    head = recorded(run, Node("head", 1, "attn", 2, 1))
    width = head.shape[0]
    neuron = recorded(run, Node("neuron", 0, "mlp", 1, 3))

    def change_neuron(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, 1, 3] = -20 * neuron
        return x

    def change_head(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, 2, width : 2 * width] = 0
        return x

    hooks = {(0, "mlp"): change_neuron, (1, "attn"): change_head}
    with softmax_gives(monkeypatch, patterns), entering(model, hooks):
        expected = model(run.token_ids[None]).logits[0]
    found = run.edited(edits, "patterns").logits
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found - run.edited(edits, "free").logits).abs().max() > 1e-4, "patterns react"
    held = run.edited(edits, "held").logits
    assert (found - held).abs().max() > 1e-4, "norms and gates react"


@torch.no_grad()
def test_a_clamped_pattern_is_what_the_head_mixes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_gpt2(SHAPES["deep"])
    run = load(model).run(random_ids(SHAPES["deep"]))
    weights = torch.tensor([0.5, 0.25, 0.75, 0.0], dtype=torch.float64)
    clamp = SetPattern(0, 1, weights, queries=2)
    patterns = [layer.attention.pattern.clone() for layer in run.layers]
    patterns[0][1, 2] = weights
    with softmax_gives(monkeypatch, patterns):
        expected = model(run.token_ids[None]).logits[0]
    torch.testing.assert_close(run.edited([clamp], "patterns").logits, expected)
    free = run.edited([clamp], "free").logits
    assert (free - expected).abs().max() > 1e-4 and (free - run.logits).abs().max() > 1e-4
    target = run.direction(torch.ones(6), layer=1, pos=2)  # with one layer, all is held but it
    change = run.edited([clamp], "held").value(target) - target.value
    by_hand = (weights - run.layers[0].attention.pattern[1, 2]) @ run.weights.layers[
        0
    ].heads.values(
        run.weights.layers[0].attention_norm.apply(run.residuals[0], run.layers[0].attention.scale)
    )[:, 1]
    added = by_hand @ run.weights.layers[0].heads.output_of_head[1]
    mlp = predicted_changes(target, [[Add(Node("head", 0, index=1, pos=2), by_hand)]])[0]
    assert change == pytest.approx(float(mlp), rel=1e-9) and float(added.norm()) > 1e-3


def test_lorsa_patterns_can_be_clamped() -> None:
    """To those of the run: nothing changes; to looking at one key only: something does."""
    run = random_run(Case("two layers", "neurons", attention="lorsa"))
    pattern = run.layers[1].attention.pattern
    first = torch.eye(len(run.tokens), dtype=torch.float64)[0]
    for mode in ("held", "patterns", "free"):
        same = run.edited([SetPattern(1, head, one) for head, one in enumerate(pattern)], mode)
        torch.testing.assert_close(same.logits, run.logits, rtol=1e-9, atol=1e-9)
        other = run.edited([SetPattern(1, head, first) for head in range(len(pattern))], mode)
        assert (other.logits - run.logits).abs().max() > 1e-4


# ------------------------------------------------------------------- generation


@each_family
@torch.no_grad()
def test_generation_without_edits_is_generate(name: str) -> None:
    model: Any = tiny(name)
    with KeepDouble():
        expected = model.generate(
            torch.tensor([IDS]),
            do_sample=False,
            max_new_tokens=6,
            pad_token_id=0,
            eos_token_id=None,
        )[0]
    assert load(model).generate(IDS, max_new_tokens=6).token_ids.tolist() == expected.tolist()


@each_family
@pytest.mark.parametrize("learned", [False, True])
def test_generation_under_edits_is_the_edited_run_of_each_prefix(name: str, learned: bool) -> None:
    """With the cache token by token = without it, the whole text edited anew for every token."""
    made = run_of(name, learned).model
    run, vector = made.run(IDS), torch.linspace(-3, 3, made.weights.d_model, dtype=torch.float64)
    first = made.weights.layers[0].heads
    width = first.output.shape[0] // first.n_heads
    edits: list[Any] = [
        Set(Node("head", 0, index=0), torch.full((width,), 2.0), slice(7, None)),
        Add(Node("token"), vector, [6, 7]),
        Set(Node("token"), vector, slice(9, None)),
        Ablate(Node("head", 0, index=1 % first.n_heads), positions=[2, 5]),
    ]
    last = made.weights.n_layers - 1
    if learned:
        edits.append(Set(Node("feature", last, index=3), 4.0, "all"))
        if last:
            edits.append(Add(Node("lorsa", last, index=2), 3.0, "all"))
    else:
        edits.append(Set(Node("neuron", last, index=3), 4.0, "all"))
    if first.n_heads == 1:
        edits.pop(2)
    text = made.generate(IDS, edits=edits, max_new_tokens=5).token_ids.tolist()
    ids = list(IDS)
    for _ in range(5):
        begun = [one for one in edits if getattr(one.positions, "start", 0) < len(ids)]
        ids.append(int(made.run(ids).edited(begun).logits[-1].argmax()))
    assert text == ids
    plain = made.generate(IDS, max_new_tokens=5).token_ids.tolist()
    strong = [Add(Node("token"), 20 * vector, slice(len(run.tokens), None))]
    bent = made.generate(IDS, edits=strong, max_new_tokens=5).token_ids.tolist()
    assert bent[: len(IDS) + 1] == plain[: len(IDS) + 1], "the first token has no edit before it"


@pytest.mark.parametrize("part", ["token", "position"])
def test_what_enters_is_edited_at_its_own_position_while_generating(part: str) -> None:
    """A token without its vector still has its own position's, and the other way round."""
    made = run_of("GPT-2", learned=False).model
    assert made.weights.position_embedding is not None
    for edit in (Scale(Node(part), 0, "all"), Scale(Node(part), 3, "all")):
        ids = list(IDS)
        for _ in range(6):
            ids.append(int(made.run(ids).edited([edit]).logits[-1].argmax()))
        assert made.generate(IDS, edits=[edit], max_new_tokens=6).token_ids.tolist() == ids


@pytest.mark.parametrize("name", ["GPT-2", "Gemma-3", "GPT-NeoX"])
def test_a_replacement_run_is_generated_with_the_cache_too(name: str) -> None:
    """Lorsa heads read the tokens before, of which only the last one is new."""
    made = run_of(name, learned=True).model
    edits = [Add(Node("lorsa", 1, index=2), 3.0, "all"), Scale(Node("head", 0, index=0), 0, [3])]
    ids = list(IDS)
    for _ in range(4):
        edited = made.run(ids, errors=False).edited(edits)
        ids.append(int(edited.logits[-1].argmax()))
    text = made.generate(IDS, edits=edits, max_new_tokens=4, errors=False)
    assert text.token_ids.tolist() == ids and text.tokens[text.n_prompt :]


def test_edits_reach_new_tokens_only_where_they_are_open_ended() -> None:
    model = load("four-tasks", mlp="neurons", attention="heads")
    run = model.run("When Mary and John went to the store, John gave a drink to")
    john, mary = (model.weights.unembedding[run.token_ids[pos]] for pos in (4, 2))
    steer = Node("error", model.weights.n_layers - 1, "mlp"), 10 * (john - mary)
    texts = [
        model.generate(run.prompt, edits=[Add(*steer, where)], max_new_tokens=3).text
        for where in ([14], slice(14, None), slice(-1, None), slice(15, None))
    ]
    assert model.generate(run.prompt, max_new_tokens=3).text == " Mary. Mary"
    assert texts == [" John. Mary", " John. John", " John. John", " Mary. John"]


# ------------------------------------------------------------------- the model is left alone


def test_edits_leave_the_model_as_it_was() -> None:
    model = awkward_model("sdpa")
    wrapped = ReplacementModel(model)
    run = wrapped.run([1, 2, 3])
    weights, before = copy.deepcopy(model.state_dict()), state_of(model)
    edits = [Scale(Node("head", 0, index=1, pos=0), 0), Add(Node("neuron", 1, index=2), 1.0, "all")]
    for mode in ("held", "patterns", "free"):
        run.edited(edits, mode)
    wrapped.generate([1, 2, 3], edits=edits, max_new_tokens=2)
    with broken(model, "transformer.h.1.mlp"):
        hooked = state_of(model)
        for mode in ("patterns", "free"):
            with pytest.raises(Exception, match="the model broke"):
                run.edited(edits, mode)
        with pytest.raises(Exception, match="the model broke"):
            wrapped.generate([1, 2, 3], edits=edits, max_new_tokens=2)
        assert state_of(model) == hooked
    assert state_of(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert torch.equal(wrapped.run([1, 2, 3]).logits, run.logits)


def test_any_target_is_measured_under_edits() -> None:
    """The same number as a knock-out of that node alone."""
    run = random_run(CASES[0])
    node = Node("head", 0, "attn", 1, 1)
    for name, make in TARGETS.items():
        target = make(run)
        swept = predicted_changes(target, [[Scale(node, 0)]])[0]
        value = run.edited([Scale(node, 0)], "held").value(target)
        assert value - target.value == pytest.approx(float(swept), abs=1e-9), name
        assert run.edited([Scale(node, 1)], "free").value(target) == pytest.approx(
            target.value, abs=1e-9
        )
