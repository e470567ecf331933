"""A run is the original model's own forward pass, and features are a dense layer's entries."""

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from replacement.layers import (
    Active,
    FeatureLayer,
    JumpReLU,
    Lorsa,
    Neurons,
    ReLU,
    Smooth,
    TopK,
    Transcoder,
    neuron_activation,
)
from replacement.layers.activation import SMOOTH_GATES
from replacement.layers.active import active_from_gates
from replacement.model import ReplacementModel
from tests.attribution.by_hand import gate_by_hand
from tests.hooked import arriving_at
from tests.random_layers import random_transcoder
from tests.samples import (
    CASES,
    HEADS,
    KINDS,
    LEARNED,
    RESIDUAL,
    SHAPES,
    TARGETS,
    Case,
    Shape,
    random_gpt2,
    random_ids,
    random_run,
)

SPARSE = [case for case in HEADS if case.mlp != "neurons"]


@pytest.mark.parametrize("case", [*HEADS, *LEARNED, *RESIDUAL], ids=str)
def test_a_run_is_the_plain_forward_pass(case: Case) -> None:
    """Logits, residuals and patterns are bit for bit those that Hugging Face returns.

    Logits of the last position are those that it returns for this position alone, which a product
    of another shape may round otherwise.
    """
    run, shape = random_run(case), SHAPES[case.shape]
    with torch.no_grad():
        asked = random_gpt2(shape, case.seed), torch.tensor([random_ids(shape, case.seed)])
        plain = asked[0](asked[1], output_hidden_states=True, output_attentions=True)
        alone = asked[0](asked[1], logits_to_keep=1, output_attentions=True)
    assert torch.equal(run.logits[:-1], plain.logits[0, :-1])
    assert torch.equal(run.logits[-1], alone.logits[0, -1])
    assert torch.equal(run.next_logits, run.logits[-1])
    torch.testing.assert_close(run.next_logits, plain.logits[0, -1], rtol=0, atol=1e-12)
    # the last hidden state is behind the final norm, so it is compared as logits above
    for stage, hidden in enumerate(plain.hidden_states[:-1]):
        assert torch.equal(run.residuals[2 * stage], hidden[0])
    for layer, block, pattern in zip(run.layers, run.weights.layers, plain.attentions, strict=True):
        if not isinstance(block.attention, Lorsa):  # which has patterns of its own
            assert torch.equal(layer.attention.pattern, pattern[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nodes_constants_and_errors_rebuild_the_stream(case: Case) -> None:
    """Every stage = the one before + the sublayer's output + its error; output = nodes + bias."""
    run = random_run(case)
    torch.testing.assert_close(run.token_writes + run.position_writes, arriving_at(run, 0))
    for number, layer in enumerate(run.sublayers):
        after, found = layer.output + layer.error, run.residuals[layer.writes_at]
        if not layer.replaces:
            after = after + run.residuals[layer.reads_at]
            found = arriving_at(run, layer.writes_at)
        torch.testing.assert_close(found, after, rtol=0, atol=1e-12)
        nodes = torch.zeros_like(layer.output)
        for writer in run.sublayers[: number + 1]:
            if layer.writes_at in writer.write_stages and layer.replaces == writer.replaces:
                written = writer.writes(torch.arange(writer.n_nodes), layer.writes_at)
                nodes.index_add_(0, writer.positions(), written)
        assert layer.write_bias is not None
        torch.testing.assert_close(nodes + layer.write_bias, layer.output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", *SMOOTH_GATES])
def test_heads_and_neurons_leave_no_error(activation: str) -> None:
    """The model's own parts rebuild it exactly, for every activation function that is known."""
    shape = Shape(activation=activation)
    model = random_gpt2(shape)
    run = ReplacementModel(model).run(random_ids(shape))
    for number, (layer, weights) in enumerate(zip(run.layers, run.weights.layers, strict=True)):
        assert float(layer.attention.error.abs().max()) == 0
        assert float(layer.mlp.error.abs().max()) == 0
        block = model.transformer.h[number]
        with torch.no_grad():
            y = block.ln_2(run.residuals[2 * number + 1])
            exact = block.mlp(y)
        rebuilt = weights.mlp.decode(weights.mlp.encode(y), y)
        # gelu_fast rounds sqrt(2/pi) to ten digits
        torch.testing.assert_close(rebuilt, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", SPARSE, ids=str)
def test_errors_are_what_transcoders_miss(case: Case) -> None:
    """error = MLP(y) - transcoder(y), large for random ones; and it is not folded into features."""
    run, model = random_run(case), random_gpt2(SHAPES[case.shape], case.seed)
    for number, layer in enumerate(run.layers):
        block = model.transformer.h[number]
        with torch.no_grad():
            y = block.ln_2(run.residuals[2 * number + 1])
            exact = block.mlp(y)
        mlp = run.weights.layers[number].mlp
        missed = exact - dense_output(mlp, y)
        torch.testing.assert_close(layer.mlp.error, missed, rtol=0, atol=1e-11)
        assert float(missed.abs().max()) > 0.1


@pytest.mark.parametrize("training", [False, True])
def test_sdpa_gives_the_same_run_and_comes_back(training: bool) -> None:
    """A model with fused attention, dropout on, is recorded as eager, without dropout."""
    shape = SHAPES["two layers"]
    fused = random_gpt2(shape, attention="sdpa").train(training)
    run = ReplacementModel(fused).run(random_ids(shape))
    assert torch.equal(run.logits, random_run(Case("two layers", "neurons")).logits)
    assert fused.config._attn_implementation == "sdpa"
    assert all(module.training == training for module in fused.modules())
    assert all(parameter.requires_grad for parameter in fused.parameters())


def test_the_same_prompt_gives_the_same_run() -> None:
    """No randomness: two runs are equal bit for bit, and neither holds on to a gradient."""
    model = ReplacementModel(random_gpt2())
    first, second = model.run([1, 2, 3]), model.run([1, 2, 3])
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad
    for one, two in zip(first.layers, second.layers, strict=True):
        assert torch.equal(one.mlp.active.activation, two.mlp.active.activation)
        assert not one.mlp.active.activation.requires_grad


# ------------------------------------------------------------------------ features of a layer


def dense_output(layer: FeatureLayer, y: Tensor) -> Tensor:
    """Return a layer's output as one dense computation over all features."""
    pre = y @ layer.read.T + layer.read_bias
    output = (gate_by_hand(layer, pre) * pre) @ layer.write + layer.write_bias
    return output if layer.skip is None else output + torch.einsum("pd,ed->pe", y, layer.skip)


def assert_is_dense(layer: FeatureLayer, y: Tensor) -> Active:
    """Assert that encode and decode agree with the dense computation; return what is active."""
    active = layer.encode(y)
    pre = y @ layer.read.T + layer.read_bias
    expected = gate_by_hand(layer, pre)
    table = torch.zeros_like(pre)
    table[active.pos, active.index] = active.activation
    torch.testing.assert_close(table, expected * pre)
    assert len(active) == int(expected.sum())
    assert active.n_pos == len(y)
    order = active.pos * layer.n_features + active.index
    assert bool((order.diff() > 0).all()), "sorted by position, then index, each once"
    torch.testing.assert_close(layer.decode(active, y), dense_output(layer, y))
    return active


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("n_pos", [1, 6])
def test_transcoders_agree_with_a_dense_computation(kind: str, skip: bool, n_pos: int) -> None:
    """act(y·read + b)·write + b' (+ skip·y), some features active and some not."""
    layer = random_transcoder(kind, skip=skip)
    active = assert_is_dense(layer, torch.randn(n_pos, 8, dtype=torch.float64))
    assert 0 < len(active) < n_pos * layer.n_features


@pytest.mark.parametrize("kind", KINDS)
def test_transcoders_where_nothing_is_active(kind: str) -> None:
    """All positions empty, or only the middle one: rows of zero features are rows all the same."""
    layer = random_transcoder(kind, skip=True)
    off = Transcoder(**{**vars(layer), "read_bias": torch.full_like(layer.read_bias, -50.0)})
    assert len(assert_is_dense(off, torch.randn(3, 8, dtype=torch.float64))) == 0
    y = torch.randn(3, 8, dtype=torch.float64)
    y[1] = 0  # at y = 0 only the bias speaks
    silent = Transcoder(**{**vars(layer), "read_bias": torch.full_like(layer.read_bias, -0.01)})
    active = assert_is_dense(silent, y)
    assert int(active.offsets[1]) == int(active.offsets[2])
    assert len(active) > 0


@pytest.mark.parametrize(
    ("layer", "pre", "gate"),
    [
        (ReLU(), [-1.0, 0.0, 2.0], [0, 0, 1]),
        (JumpReLU(torch.tensor([0.5, 0.5, -2.0])), [0.5, 0.6, -1.0], [0, 1, 1]),
        (TopK(2), [1.0, 3.0, 2.0], [0, 1, 1]),
        (TopK(2), [-1.0, 3.0, -2.0], [0, 1, 0]),
        (TopK(9), [1.0, -3.0, 2.0], [1, 0, 1]),
    ],
)
def test_gates_by_hand(layer, pre: list[float], gate: list[int]) -> None:
    """A threshold is exceeded, not met; TopK keeps positive inputs only, at most as many as are."""
    assert layer.gate(torch.tensor([pre]))[0].tolist() == gate


@pytest.mark.parametrize("name", ["relu", *SMOOTH_GATES])
def test_gates_are_the_closed_form_of_activation_over_input(name: str) -> None:
    """gate(x)·x is Hugging Face's function, at 0 and far out too, where a division would fail."""
    x = torch.cat([torch.linspace(-30, 30, 121), torch.tensor([1e-300, -1e-300, 0.0])]).double()
    activation = neuron_activation(name)
    gate = activation.gate(x[None])[0]
    assert bool(torch.isfinite(gate).all())
    torch.testing.assert_close(gate * x, ACT2FN[name](x), rtol=1e-9, atol=1e-11)


def test_unknown_activations_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'mish'.*known: relu, gelu"):
        Smooth("mish")


@pytest.mark.parametrize("dense", [False, True])
def test_products_with_active_features(dense: bool) -> None:
    """dots, combine and sum_by_pos are masked dense products."""
    pre = torch.randn(5, 7, dtype=torch.float64)
    gate = torch.rand(5, 7, dtype=torch.float64) + 0.1 if dense else (pre > 0.3).double()
    if not dense:
        gate[2] = 0  # a position without active features
    active = active_from_gates(pre, gate, dense=dense)
    rows = torch.randn(7, 4, dtype=torch.float64)
    vectors = torch.randn(5, 4, dtype=torch.float64)
    mask = gate != 0
    torch.testing.assert_close(active.dots(rows, vectors), (vectors @ rows.T)[mask])
    coefficient = torch.randn(len(active), dtype=torch.float64)
    table = torch.zeros(5, 7, dtype=torch.float64).masked_scatter(mask, coefficient)
    torch.testing.assert_close(active.combine(rows, coefficient), table @ rows)
    torch.testing.assert_close(active.sum_by_pos(coefficient), table.sum(1))
    torch.testing.assert_close(active.activation, (gate * pre)[mask])
    torch.testing.assert_close(active.gate, gate[mask])


def test_products_without_any_active_feature() -> None:
    """Nothing in, nothing out, in the right shapes."""
    nothing = torch.zeros(3, 4)
    active = active_from_gates(nothing, nothing, dense=False)
    assert len(active) == 0
    assert active.n_pos == 3
    assert active.dots(torch.ones(4, 2), torch.ones(3, 2)).shape == (0,)
    assert active.combine(torch.ones(4, 2), torch.zeros(0)).tolist() == [[0, 0]] * 3
    assert active.sum_by_pos(torch.zeros(0)).tolist() == [0, 0, 0]


def test_neurons_are_views_of_the_models_weights() -> None:
    """No copy and no folding: the neurons read the model's own storage."""
    model = random_gpt2()
    weights = ReplacementModel(model).weights
    mlp, own = weights.layers[0].mlp, model.transformer.h[0].mlp
    assert isinstance(mlp, Neurons)
    assert mlp.write.data_ptr() == own.c_proj.weight.data_ptr()
    assert mlp.read.data_ptr() == own.c_fc.weight.data_ptr()
    assert weights.unembedding.data_ptr() == model.lm_head.weight.data_ptr()


@pytest.mark.parametrize("case", [CASES[0], SPARSE[1], LEARNED[2], LEARNED[5]], ids=str)
def test_every_node_is_found_by_its_name(case: Case) -> None:
    """rows and find are inverse; what is not active, or not there, is not found."""
    run = random_run(case)
    for layer in run.sublayers:
        rows = layer.rows(torch.arange(layer.n_nodes))
        assert torch.equal(rows.pos, layer.positions())
        for number, (kind, pos, index) in enumerate(
            zip(rows.kind, rows.pos.tolist(), rows.index.tolist(), strict=True)
        ):
            assert layer.find(kind, pos, index) == number
        n_pos = len(run.tokens)
        kind = rows.kind[0]
        for pos, index in [(-1, 0), (n_pos, 0), (0, -2), (0, 10_000)]:
            assert layer.find(kind, pos, index) == -1
        assert layer.find("token", 0, 0) == -1
        recorded = run.layers[layer.layer]
        active = recorded.mlp.active if layer.name == "mlp" else recorded.attention.active
        if active is not None and not active.dense:
            here = active.index[active.pos == 0].tolist()
            idle = next(index for index in range(active.n_features) if index not in here)
            assert layer.find(kind, 0, idle) == -1


@pytest.mark.parametrize("count", [1, 9])
def test_shortest_and_longest_prompts(count: int) -> None:
    """One token (it can only look at itself) and as many as the context takes."""
    shape = SHAPES["two layers"]
    run = ReplacementModel(random_gpt2(shape)).run([1] * count)
    assert len(run.tokens) == count
    assert run.layers[0].attention.pattern.shape == (2, count, count)
    assert float(run.layers[0].attention.pattern.sum(-1).sub(1).abs().max()) < 1e-12
    assert TARGETS["logit"](run).pos == count - 1


def test_models_that_cannot_be_held_are_refused() -> None:
    """NaN weights, layers for another model, another dtype, and too few of them: by name."""
    broken = random_gpt2()
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_fc.bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.mlp\.c_fc\.bias holds 1 NaN"):
        ReplacementModel(broken)
    model = random_gpt2()
    relu, single = random_transcoder("relu"), random_transcoder("relu", dtype=torch.float32)
    table = [
        ([relu], "1 replacement layers for a model of 2 MLPs"),
        ([relu, random_transcoder("relu", 6)], "of MLP 1 reads vectors of 6"),
        ([single, single], r"torch\.float32 on cpu, the model torch\.float64"),
    ]
    for mlps, message in table:
        with pytest.raises(ValueError, match=message):
            ReplacementModel(model, mlps=mlps)


@pytest.mark.parametrize("errors", [True, False], ids=["original", "replaced"])
@pytest.mark.parametrize("case", [HEADS[0], *LEARNED[:4], *RESIDUAL[:1]], ids=str)
def test_prompts_of_one_length_run_together_as_they_do_alone(case: Case, errors: bool) -> None:
    """In the order given, whatever the lengths; a prompt in another's place is far off."""
    model = random_run(case).model
    ids = random_ids(SHAPES[case.shape], case.seed)
    prompts = [ids, ids[:3], ids[::-1], ids[1:4]]
    for prompt, run in zip(prompts, model.runs(prompts, errors=errors), strict=True):
        alone = model.run(prompt, errors=errors)
        assert run.token_ids.tolist() == list(prompt)
        torch.testing.assert_close(run.logits, alone.logits, rtol=0, atol=1e-10)
        for one, other in zip(run.layers, alone.layers, strict=True):
            torch.testing.assert_close(one.mlp.error, other.mlp.error, rtol=0, atol=1e-10)
            torch.testing.assert_close(
                one.attention.pattern, other.attention.pattern, rtol=0, atol=1e-10
            )
    first, third = model.runs([prompts[0], prompts[2]], errors=errors)
    assert (first.logits - third.logits).abs().max() > 1e-3
