"""Direct effects: identities 3 and 4, autograd on a frozen model, clamped passes, and controls."""

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution import effect_blocks, effect_sources
from attribution.direct_effects import DirectEffects, direct_effects
from attribution.effect_blocks import EffectRows
from attribution.effect_sources import Span, Writes, columns_of
from attribution.effect_targets import rows_of_nodes
from attribution.flow import flow_edges
from attribution.sweep import sweep
from replacement.held import HeadPassage, HeldFeatures, HeldMLP, LowRank
from replacement.held.mlp import SkipPassage
from replacement.run import Run
from replacement.target import Target
from tests.attribution.frozen import FrozenGPT2, Held, attributions, measure
from tests.samples import (
    CASES,
    SHAPES,
    TARGETS,
    Case,
    attentions_of,
    mlps_of,
    random_gpt2,
    random_ids,
    random_run,
)

EXACT = 1e-9
WELL_ABOVE = 1e-4
ALL_LORSA = Case("two layers", "topk gated", attention="lorsa rotary", seed=1)
SKIPS = Case("two layers", "relu", skip=True)
COVERED = [case for case in CASES if not case.streams]
each_case = pytest.mark.parametrize("case", COVERED, ids=str)


@lru_cache(maxsize=64)
def effects_of(case: Case) -> DirectEffects:
    return direct_effects(random_run(case))


def values_of(run: Run) -> Tensor:
    """Every active scalar node's pre-activation, by the layers' own arithmetic."""
    found = []
    for layer in run.sublayers:
        if isinstance(layer, HeldFeatures):
            places = zip(layer.active.pos.tolist(), layer.active.index.tolist(), strict=True)
            found += [
                run.feature(layer.layer, pos, index, layer.name).value for pos, index in places
            ]
    return torch.tensor(found, dtype=run.next_logits.dtype)


def off(effects: DirectEffects, values: Tensor) -> float:
    """The largest difference of a row's sum from its value, as a share of Σ|terms|."""
    size = torch.from_numpy(abs(effects.matrix()).sum(axis=1))
    return float(((effects.sums - values).abs() / size).max())


@each_case
def test_rows_sum_to_pre_activations(case: Case) -> None:
    """Identity 3, of every active node and of every kind of target."""
    run, effects = random_run(case), effects_of(case)
    assert off(effects, values_of(run)) <= EXACT
    targets = [make(run) for make in TARGETS.values()]
    asked = direct_effects(run, targets)
    assert off(asked, run.next_logits.new_tensor([target.value for target in targets])) <= EXACT
    assert asked.targets["label"].tolist() == [target.label for target in targets]


@pytest.mark.parametrize("case", COVERED[::3], ids=str)
def test_rows_sum_in_float32(case: Case) -> None:
    run = random_run(case, torch.float32)
    assert off(direct_effects(run), values_of(run)) <= 1e-4


@lru_cache(maxsize=64)
def oracle_of(case: Case, kind: type[FrozenGPT2] = FrozenGPT2) -> tuple[Any, Held]:
    shape = SHAPES[case.shape]
    oracle = kind(
        random_gpt2(shape, case.seed), mlps_of(case), attentions_of(case), errors=case.errors
    )
    return oracle, oracle.freeze(random_ids(shape, case.seed))


def stopping(run: Run) -> list[Tensor]:
    """Masks for the frozen model: gradients stop at features, neurons and Lorsa, not at heads."""
    masks = []
    for layer in run.sublayers:
        n_pos, is_head = len(run.tokens), not isinstance(layer, HeldFeatures)
        width = layer.n_nodes // n_pos if is_head else layer.features.n_features
        masks.append(torch.full((n_pos, width), is_head))
    return masks


def row(effects: DirectEffects, number: int, run: Run) -> dict[str, Any]:
    """One row as dense tables: tokens, positions, errors, and every sublayer's features."""
    sources = effects.sources.assign(effect=effects.matrix()[[number], :].toarray()[0])
    n_pos = len(run.tokens)

    def table(rows: Any, width: int, column: str) -> Tensor:
        made = torch.zeros(n_pos, width, dtype=torch.float64)
        where = (rows["pos"].tolist(), rows[column].tolist() if width > 1 else 0)
        made[where] = torch.tensor(rows["effect"].tolist(), dtype=torch.float64)
        return made

    found: dict[str, Any] = {
        kind: table(sources[sources["kind"].eq(kind)], 1, "index")[:, 0]
        for kind in ("token", "position")
    }
    for layer in run.sublayers:
        here = sources["layer"].eq(layer.layer) & sources["sublayer"].eq(layer.name)
        name = (layer.layer, layer.name)
        found["error", *name] = table(sources[here & sources["kind"].eq("error")], 1, "index")[:, 0]
        if isinstance(layer, HeldFeatures):
            nodes = sources[here & ~sources["kind"].isin(["error", "bias"])]
            found["nodes", *name] = table(nodes, layer.features.n_features, "index")
    return found


def difference(run: Run, target: Target, found: dict[str, Any], made: Any) -> float:
    """The largest difference of a row from value · gradient, as a share of Σ|terms|."""
    expected = attributions(target, made)
    pairs = [(found["token"], expected.token), (found["position"], expected.position)]
    for number, layer in enumerate(run.sublayers):
        pairs.append((found["error", layer.layer, layer.name], expected.errors[number]))
        if isinstance(layer, HeldFeatures):
            pairs.append((found["nodes", layer.layer, layer.name], expected.nodes[number]))
    worst = max(float((one - other).abs().max()) for one, other in pairs)
    return worst / expected.magnitude()


def target_of(run: Run, effects: DirectEffects, number: int) -> Target:
    kind, layer, sublayer, pos, index, _ = effects.targets.iloc[number]
    assert kind in ("feature", "neuron", "lorsa")
    return run.feature(int(layer), int(pos), int(index), sublayer)


@each_case
def test_rows_are_gradients_that_stop_at_features(case: Case) -> None:
    """value · d pre / d value on a frozen model whose features pass no gradient on."""
    run, effects, (oracle, held) = random_run(case), effects_of(case), oracle_of(case)
    made = oracle.forward(held, keep=stopping(run))
    rows = range(len(effects.targets) - 1, -1, -max(1, len(effects.targets) // 6))
    for number in rows:
        target = target_of(run, effects, number)
        assert difference(run, target, row(effects, number, run), made) <= EXACT
    targets = [make(run) for make in TARGETS.values()]
    asked = direct_effects(run, targets)
    for number, target in enumerate(targets):
        assert difference(run, target, row(asked, number, run), made) <= EXACT


class Clamped(FrozenGPT2):
    """The frozen model with the outputs of features, neurons and Lorsa heads at given values."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.outputs: dict[int, Tensor] = {}

    def _write(self, sublayer: int, active: Sequence[Tensor], *rest: Any, **named: Any) -> Tensor:
        fixed = [self.outputs.get(number, one) for number, one in enumerate(active)]
        return super()._write(sublayer, fixed, *rest, **named)


@each_case
def test_columns_are_what_writing_once_more_does(case: Case) -> None:
    """A forward pass with one output doubled and all others clamped, against the run's own."""
    run, effects, (oracle, held) = random_run(case), effects_of(case), oracle_of(case, Clamped)
    oracle.outputs = {}
    whole = oracle.forward(held)
    plain = {
        number: node.parts.detach()
        for number, (node, layer) in enumerate(zip(whole.sublayers, run.sublayers, strict=True))
        if isinstance(layer, HeldFeatures)
    }
    targets = [target_of(run, effects, number) for number in range(len(effects.targets))]
    logit = TARGETS["combination"](run)
    oracle.outputs = plain
    before = oracle.forward(held)
    matrix, to_logit = effects.matrix(), direct_effects(run, logit).matrix()
    nodes = effects.sources.index[effects.sources["kind"].isin(["feature", "neuron", "lorsa"])]
    for column in nodes[:: max(1, len(nodes) // 5)]:
        _, layer, sublayer, pos, index, _ = effects.sources.iloc[column]
        number = 2 * layer + (sublayer == "mlp")
        doubled = plain[number].clone()
        doubled[pos, index] *= 2
        oracle.outputs = {**plain, number: doubled}
        after = oracle.forward(held)
        for found, asked in ((matrix, targets), (to_logit, [logit])):
            one = torch.from_numpy(found[:, [column]].toarray()[:, 0])
            with torch.no_grad():
                moved = [float(measure(each, after) - measure(each, before)) for each in asked]
            size = abs(found).sum(axis=1).max()
            assert float((one - run.next_logits.new_tensor(moved)).abs().max()) <= EXACT * size


@pytest.mark.parametrize(
    "case", [ALL_LORSA, Case("two layers", "neurons", attention="lorsa")], ids=str
)
def test_with_lorsa_everywhere_flow_is_weight_times_effect(case: Case) -> None:
    """Identity 4: flow[n, s] = u_n · gate_n · effect[n, s], in a gated sweep too."""
    run, effects = random_run(case), effects_of(case)
    matrix, n_sources = effects.matrix().toarray(), 2 * len(run.tokens)
    entering = effects.sources.index[effects.sources["kind"].isin(["token", "position"])]
    by_kind = [*effects.sources.loc[entering].sort_values(["kind", "pos"]).index]
    by_kind = by_kind[len(run.tokens) :] + by_kind[: len(run.tokens)]  # tokens, then positions
    order = np.concatenate([by_kind, *[nodes.numpy() for nodes in effects.nodes]]).astype(int)
    target = TARGETS["difference"](run)
    for cutoff in (0.0, 0.05):
        swept = sweep(target, run.sublayers, cutoff)
        flow = flow_edges(target, run.sublayers, swept)
        kept, attribution = torch.cat(swept.keep), torch.cat(swept.attribution)
        weight = (attribution / effects.sums)[kept].numpy()
        assert 0 < kept.sum() <= len(kept)
        columns = np.concatenate([order[:n_sources], order[n_sources:][kept.numpy()]])
        expected = weight[:, None] * matrix[kept.numpy()][:, columns]
        found = np.zeros((len(weight) + 1 + n_sources, len(columns) + 1))
        found[flow.target, flow.source] = flow.amount
        size = np.abs(expected).max()
        assert np.abs(found[n_sources:-1, :-1] - expected).max() <= EXACT * size


@each_case
def test_first_heads_add_up(case: Case) -> None:
    run = random_run(case)
    for targets in (None, [make(run) for make in TARGETS.values()]):
        split = direct_effects(run, targets, via="head")
        whole = direct_effects(run, targets).matrix().toarray()
        parts = np.stack([split.matrix(way).toarray() for way in split.ways])
        assert np.abs(parts.sum(0) - whole).max() <= EXACT * np.abs(whole).max()
        read_by_heads = any(layer.attention is None for layer in run.weights.layers)
        if len(run.tokens) > 1 and read_by_heads:
            assert np.abs(parts[:-1]).max() > WELL_ABOVE
            assert np.abs(parts[-1]).max() > WELL_ABOVE


def test_first_head_is_the_one_that_reads_the_source() -> None:
    """Without a head of layer 0, what passed it first is gone, and nothing else of the tokens."""
    run = random_run(Case("two layers", "relu"))
    target = run.logit(3)
    split = direct_effects(run, target, via="head")
    layer = run.layers[0]
    pattern = layer.attention.pattern.clone()
    pattern[1] = 0
    attention = dataclasses.replace(layer.attention, pattern=pattern)
    cut = dataclasses.replace(
        run, layers=[dataclasses.replace(layer, attention=attention), *run.layers[1:]]
    )
    less = direct_effects(cut, [dataclasses.replace(target, run=cut)])
    tokens = split.sources["kind"].eq("token").to_numpy()
    gone = (split.matrix() - less.matrix()).toarray()[:, tokens]
    through = split.matrix("L0.h1").toarray()[:, tokens]
    np.testing.assert_allclose(gone, through, rtol=0, atol=1e-12)
    assert np.abs(through).max() > WELL_ABOVE


def test_features_of_attention_read_through_their_own_heads() -> None:
    """Nothing of what they read by passes no head; of what MLPs above read, something does."""
    run = random_run(Case("deep", "batchtopk", attention="sae topk", seed=6))
    split = direct_effects(run, via="head")
    through = split.targets["sublayer"].eq("attn").to_numpy()
    bypass = abs(split.matrix("bypass").toarray()[:, :-1]).max(axis=1)
    assert bypass[through].max() == 0
    assert bypass[~through].max() > WELL_ABOVE
    for layer in range(3):
        rows = through & split.targets["layer"].eq(layer).to_numpy()
        for way in split.ways[:-1]:
            found = abs(split.matrix(way).toarray()[rows]).max(initial=0.0)
            assert (found > 0) == way.startswith(f"L{layer}."), (layer, way)


def test_a_span_may_have_no_places() -> None:
    """Where no feature is active and nothing is left over there is nothing to meet."""
    run = random_run(Case("deep and long", "cross topk", seed=3))
    layer = run.sublayer(0, "mlp")
    nothing = Span(first=2, end=4, begin=3, width=0, nodes=torch.zeros(2, 0, dtype=torch.long))
    for stage in layer.write_stages:
        writes = Writes(layer, stage, layer.error[:, None][:, :0], [nothing])
        assert writes.vectors(0, 2, 4).shape == (2, 0, layer.error.shape[1])
        assert writes.places(torch.zeros(7, 3), 0, 2, 4).shape == (7, 2, 0)


def test_batches_and_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One vector at a time, all at once, with and without images of tokens: the same numbers."""
    for case in (CASES[1], SKIPS, Case("deep", "topk", seed=2)):
        run = random_run(case)
        passages = [layer.passage() for layer in run.sublayers]
        every = [
            torch.arange(layer.n_active if isinstance(layer, HeldFeatures) else 0)
            for layer in run.sublayers
        ]
        _, groups = rows_of_nodes(run.sublayers, every)
        expected = effects_of(case).matrix().toarray()
        for ahead, batch_rows in ((True, 1), (False, 1), (True, 7), (False, 10**6)):
            columns = columns_of(run, every, passages, ahead=ahead)
            assert columns.seen_ahead == ahead
            found = np.zeros_like(expected)
            rows = EffectRows(run.sublayers, columns, passages, batch_rows)
            for _, block in rows.blocks(groups):
                found[np.ix_(block.row, block.column)] = block.values
            assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
        for count, padding, n_spans in ((1, 10**6, 1), (10**6, 1.0, len(run.tokens))):
            monkeypatch.setattr(effect_sources, "SPANS", count)
            monkeypatch.setattr(effect_sources, "PADDING", padding)
            columns = columns_of(run, every, passages)
            assert len(columns.spans) == n_spans
            found = np.zeros_like(expected)
            for _, block in EffectRows(run.sublayers, columns, passages).blocks(groups):
                found[np.ix_(block.row, block.column)] = block.values
            assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
        monkeypatch.setattr(effect_blocks, "BATCH_EFFECTS", 1)
        rows = EffectRows(run.sublayers, columns_of(run, every, passages), passages)
        blocks = [block for _, block in rows.blocks(groups)]
        assert all(len(block.row) == 1 for block in blocks)
        found = np.zeros_like(expected)
        for block in blocks:
            found[np.ix_(block.row, block.column)] = block.values
        assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
        monkeypatch.undo()
    monkeypatch.setattr(effect_sources, "IMAGE_BYTES", 0)
    assert not columns_of(run, every, passages).seen_ahead


def test_chosen_targets_and_sources_are_rows_and_columns_of_the_whole() -> None:
    case = SKIPS
    run, whole = random_run(case), effects_of(case)
    masks: list[Any] = [None] * len(run.sublayers)
    masks[1] = torch.zeros(run.sublayers[1].n_nodes, dtype=torch.bool)
    masks[1][[2, 5]] = True
    masks[3] = [0, 4]
    some = direct_effects(run, masks, masks)
    rows = [int(whole.nodes[1][2]), int(whole.nodes[1][5])]
    assert some.targets[["layer", "pos", "index"]].to_numpy().tolist() == (
        whole.sources.loc[[*rows, *whole.nodes[3][[0, 4]].tolist()], ["layer", "pos", "index"]]
        .to_numpy()
        .tolist()
    )
    offset = len(whole.nodes[1])
    names = ["kind", "layer", "sublayer", "pos", "index"]
    keys = [tuple(values) for values in whole.sources[names].to_numpy()]
    columns = [keys.index(tuple(values)) for values in some.sources[names].to_numpy()]
    expected = whole.matrix().toarray()[[2, 5, offset, offset + 4]][:, columns]
    np.testing.assert_allclose(some.matrix().toarray(), expected, rtol=0, atol=1e-13)


def test_nodes_and_targets_in_one_call_are_those_of_two() -> None:
    run = random_run(SKIPS)
    nodes: list[Any] = [None, [2, 5], None, [0]]
    targets = [run.logit(1), run.logit(2) - run.logit(1)]
    both = direct_effects(run, [*nodes, *targets])
    parts = [direct_effects(run, nodes), direct_effects(run, targets)]
    expected = np.concatenate([part.matrix().toarray() for part in parts])
    np.testing.assert_allclose(both.matrix().toarray(), expected, rtol=0, atol=1e-13)
    assert both.targets["label"].tolist()[3:] == [target.label for target in targets]
    assert both.sums[3:].tolist() == pytest.approx([target.value for target in targets], abs=1e-9)


def test_the_second_heads_passed_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are passed by the few vectors that the first ones left, where positions are more.

    At an early position they are not fewer, and the table of positions is what is carried.
    """
    run = random_run(Case("deep and long", "topk", seed=2))
    target, early = run.logit(1), run.logit(1, 2)
    assert abs(direct_effects(run, target).sums[0] - target.value) < 1e-9 * abs(target.value)
    exact = HeadPassage.at_values

    def without_few(self: HeadPassage, gradient: Tensor | LowRank, *given: Any) -> Tensor:
        made = exact(self, gradient, *given)
        return made.zero_() if isinstance(gradient, LowRank) else made

    monkeypatch.setattr(HeadPassage, "at_values", without_few)
    assert abs(direct_effects(run, target).sums[0] - target.value) > 1e-6 * abs(target.value)
    assert abs(direct_effects(run, early).sums[0] - early.value) < 1e-9 * abs(early.value)


def test_only_the_cone_is_in_the_blocks() -> None:
    """No block has a column at a later position, or of a sublayer above what its rows read."""
    for case in (CASES[0], ALL_LORSA, SKIPS):
        effects = effects_of(case)
        for block in effects.blocks:
            targets, sources = effects.targets.iloc[block.row], effects.sources.iloc[block.column]
            (pos,), (layer,) = set(targets["pos"]), set(targets["layer"])
            assert sources["pos"].max() <= pos
            assert sources["layer"].max() <= layer
            is_mlp = set(targets["sublayer"]) == {"mlp"}
            if is_mlp and case == ALL_LORSA:
                assert set(sources["pos"]) <= {pos, -1}, "a local row sees its own position only"


def with_pattern(run: Run, factor: float) -> Run:
    layers = [
        dataclasses.replace(
            layer,
            attention=dataclasses.replace(
                layer.attention, pattern=factor * layer.attention.pattern
            ),
        )
        for layer in run.layers
    ]
    return dataclasses.replace(run, layers=layers)


def without_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldMLP, "passage", lambda _self: None)


def with_unscaled_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: SkipPassage, gradient: Tensor, _cones: Any, onto: Tensor, *_: Any) -> None:
        onto += gradient @ self.matrix

    monkeypatch.setattr(SkipPassage, "first", careless)
    monkeypatch.setattr(SkipPassage, "back", careless)


def with_transposed_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    right = HeadPassage.pattern
    monkeypatch.setattr(
        HeadPassage, "pattern", lambda self, n_pos: right(self, n_pos).transpose(-1, -2)
    )


def without_value_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    right = HeadPassage.__init__

    def careless(self: HeadPassage, *given: Any) -> None:
        right(self, *given)
        self.constant = torch.zeros_like(self.constant)

    monkeypatch.setattr(HeadPassage, "__init__", careless)


@pytest.mark.parametrize(
    "mistake",
    [
        without_skips,
        with_unscaled_skips,
        with_transposed_patterns,
        without_value_constants,
    ],
)
def test_a_mistake_breaks_the_sums(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: each breaks identity 3 by far."""
    mistake(monkeypatch)
    run = random_run(SKIPS)
    assert off(direct_effects(run), values_of(run)) > WELL_ABOVE


def test_another_pattern_breaks_the_sums() -> None:
    run = random_run(CASES[0])
    changed = with_pattern(run, 0.999)
    assert off(direct_effects(changed), values_of(run)) > 1e-6
    assert off(direct_effects(with_pattern(run, 1.0)), values_of(run)) <= EXACT


def test_table_has_what_the_matrix_has() -> None:
    run = random_run(SKIPS)
    split = direct_effects(run, run.logit(3), via="head")
    table = split.table()
    assert set(table["via"]) <= set(split.ways)
    assert "bypass" in set(table["via"])
    summed = table.groupby(["target", "source"])["effect"].sum()
    whole = direct_effects(run, run.logit(3)).table()
    assert set(whole["via"]) == {""}
    expected = whole.set_index(["target", "source"])["effect"]
    joined = expected.sub(summed, fill_value=0).abs()
    assert joined.max() <= 1e-12


def test_bf16_is_for_the_products_alone_and_close() -> None:
    """torch's setting is as before after the block, and after an error in it."""
    settings, on_gpus = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before, gpus_before = settings.fp32_precision, on_gpus.fp32_precision
    with pytest.raises(KeyError), effect_blocks.products_in("bf16"):
        assert settings.fp32_precision == "bf16"
        raise KeyError
    with effect_blocks.products_in("tf32"):
        assert (settings.fp32_precision, on_gpus.fp32_precision) == ("ieee", "tf32")
    assert on_gpus.fp32_precision == gpus_before
    run = random_run(SKIPS, torch.float32)
    rounded, exact = (
        direct_effects(run, precision=name).matrix().toarray() for name in ("bf16", "float32")
    )
    assert settings.fp32_precision == before
    assert np.abs(rounded - exact).max() <= 0.02 * np.abs(exact).max()
