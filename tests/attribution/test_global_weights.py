"""Global weights against explicit matrices, against the held map of runs, and dense ones."""

import dataclasses
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from attribution.coactivation import held_at
from attribution.connections import connections
from attribution.global_weights import (
    parts_in,
    parts_out,
    strongest_weights,
    virtual_weights,
    ways_of,
)
from attribution.places import Place, Places
from attribution.vocabulary import feature_tokens, token_writes
from replacement.held import HeadPassage, Reads, writing
from replacement.model import ReplacementModel
from replacement.run import Run
from tests.families import CONFIGS, IDS, tiny
from tests.random_layers import random_mlp
from tests.samples import CASES, Case, random_run

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
WITH_ERRORS = [case for case in CASES if case.errors]
EXPLICIT = ("GPT-2", "Llama, grouped keys", "Gemma-2, grouped keys", "GPT-NeoX, not parallel")


def explicit(name: str) -> dict[str, Any]:
    """Matrices of layers 0 and 1 of a tiny model, straight from its parameters.

    norm: of what each sublayer of layer 1 reads; read, value, output: columns that a stream vector
    is multiplied with; write: rows that MLP 0 writes.
    """
    state = {key: value.double() for key, value in tiny(name).state_dict().items()}
    width = next(value for key, value in state.items() if "embed" in key or "wte" in key).shape[1]
    centre = torch.eye(width, dtype=torch.float64) - 1 / width
    if name == "GPT-2":
        h = "transformer.h."
        qkv = state[h + "1.attn.c_attn.weight"]
        return {
            "norm": {
                "attn": torch.diag(state[h + "1.ln_1.weight"]) @ centre,
                "mlp": torch.diag(state[h + "1.ln_2.weight"]) @ centre,
            },
            "read": state[h + "1.mlp.c_fc.weight"].T,
            "value": qkv[:, 2 * width :].T,
            "output": state[h + "1.attn.c_proj.weight"].T,
            "write": state[h + "0.mlp.c_proj.weight"].T,
            "group": 1,
            "d_head": width // 2,
        }
    if name.startswith("GPT-NeoX"):
        h = "gpt_neox.layers."
        qkv = state[h + "1.attention.query_key_value.weight"].view(2, 3, width // 2, width)
        return {
            "norm": {
                "attn": torch.diag(state[h + "1.input_layernorm.weight"]) @ centre,
                "mlp": torch.diag(state[h + "1.post_attention_layernorm.weight"]) @ centre,
            },
            "read": state[h + "1.mlp.dense_h_to_4h.weight"],
            "value": qkv[:, 2].reshape(width, width),
            "output": state[h + "1.attention.dense.weight"],
            "write": state[h + "0.mlp.dense_4h_to_h.weight"],
            "group": 1,
            "d_head": width // 2,
        }
    gemma = name.startswith("Gemma")
    h, one = "model.layers.", 1.0 if gemma else 0.0
    before = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
    output, write = state[h + "1.self_attn.o_proj.weight"], state[h + "0.mlp.down_proj.weight"]
    if gemma:
        output = torch.diag(1 + state[h + "1.post_attention_layernorm.weight"]) @ output
        write = torch.diag(1 + state[h + "0.post_feedforward_layernorm.weight"]) @ write
    return {
        "norm": {
            "attn": torch.diag(one + state[h + "1.input_layernorm.weight"]),
            "mlp": torch.diag(one + state[h + f"1.{before}.weight"]),
        },
        "read": state[h + "1.mlp.up_proj.weight"],
        "value": state[h + "1.self_attn.v_proj.weight"],
        "output": output,
        "write": write,
        "group": 2,
        "d_head": 4 if gemma else 2,
    }


@pytest.mark.parametrize("name", EXPLICIT)
def test_neurons_against_explicit_matrices(name: str) -> None:
    """Norms before and behind, centring, grouped values: written out as matrices."""
    model, given = ReplacementModel(tiny(name)), explicit(name)
    reads = given["read"] @ given["norm"]["mlp"]
    found = virtual_weights(model, (1, "mlp"), (0, "mlp"))
    torch.testing.assert_close(found, reads @ given["write"], **CLOSE)
    size = given["d_head"]
    for head in range(model.weights.layers[1].heads.n_heads):
        of = slice(head // given["group"] * size, (head // given["group"] + 1) * size)
        moves = given["output"][:, head * size : (head + 1) * size] @ given["value"][of]
        expected = reads @ moves @ given["norm"]["attn"] @ given["write"]
        found = virtual_weights(model, (1, "mlp"), (0, "mlp"), f"L1.head {head}")
        torch.testing.assert_close(found, expected, **CLOSE)


def model_of(case: Case | str) -> Any:
    """The model of a case, or of a family."""
    return ReplacementModel(tiny(case)) if isinstance(case, str) else random_run(case).model


ACROSS = ", across layers"
RUNS = [*CONFIGS, *(name + ACROSS for name in CONFIGS), *map(str, WITH_ERRORS)]


@lru_cache(maxsize=128)
def run_named(name: str) -> Run:
    """A case, or a family, its MLPs read as neurons or by features that write across layers."""
    cases = {str(case): case for case in WITH_ERRORS}
    if name in cases:
        return random_run(cases[name])
    hf_model = tiny(name.removesuffix(ACROSS))
    if name in CONFIGS:
        return ReplacementModel(hf_model).run(IDS)
    width = hf_model.get_input_embeddings().weight.shape[1]
    count = hf_model.config.num_hidden_layers
    made = [
        random_mlp(
            "cross relu",
            width,
            n_later=count - 1 - layer,
            skip=False,
            seed=layer,
            dtype=torch.float64,
        )
        for layer in range(count)
    ]
    return ReplacementModel(hf_model, mlps=made).run(IDS)


def scale_of(held: Any, number: int, pos: Tensor) -> Tensor:
    scale = held.joints[number].scale
    plain = held.joints[number].norm is None or scale is None
    return torch.ones(len(pos), dtype=torch.float64) if plain else scale[pos]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_factors_times_global_weights(name: str) -> None:
    """What features read of what others wrote, by the held map of a run, is activation × pattern /
    denominators × weight: along the stream and through each head."""
    run = run_named(name)
    places = Places(run.weights)
    checked = 0
    for reader in places.every:
        held = held_at(run, reader)
        pos, index = held.active.pos, held.active.index
        if not len(index):
            continue
        reads = held.reads_of(pos, index)
        in_front = [one for one in run.sublayers if one is not held or not reader.replaces]
        seen = dict(writing(in_front, reader.reads_at))
        for writer in places.every:
            other = held_at(run, writer)
            if not len(other.active.index):
                continue
            stages = seen.get(other, [])
            for way in ways_of(places, reader):
                parts = parts_in(places, reader, way, index, writer)
                found = sum(
                    (
                        part[:, other.active.index]
                        * (other.active.activation / scale_of(other, number, other.active.pos))
                        for number, part in parts.items()
                    ),
                    torch.zeros(len(index), len(other.active.index), dtype=torch.float64),
                )
                if way.head is not None:
                    expected = through(run, reads, other, way.head)
                    found = found * factor_through(run, reads, way.head)[:, other.active.pos]
                elif way.branch.via == "gate":
                    continue
                else:
                    part = reader.branches.index(way.branch)
                    one = slice(part, part + 1)
                    only = Reads(reads.vector[:, one], reads.factor[:, one], reads.constant)
                    expected = torch.zeros_like(found)
                    if stages:
                        written = other.written(torch.arange(found.shape[1]), stages)
                        expected = only.products(written, other.active.pos)["residual"]
                    found = found * reads.factor[:, part][:, other.active.pos]
                torch.testing.assert_close(found, expected, **CLOSE)
                checked += int((expected != 0).sum())
    assert checked or run.weights.n_layers == 1


def factor_through(run: Run, reads: Reads, head: Any) -> Tensor:
    held = run.layers[head.layer].attention
    at = reads.factor[:, 0]
    if held.post_scale is not None:
        at = at / held.post_scale
    return at @ held.pattern[head.index] / held.scale


def through(run: Run, reads: Reads, other: Any, head: Any) -> Tensor:
    """The same by the map that direct effects are carried with, of one head alone."""
    layer = run.sublayer(head.layer, "attn")
    passage = layer.passage()
    assert isinstance(passage, HeadPassage)
    stages = dict(writing(run.sublayers, 2 * head.layer)).get(other, [])
    shape = (len(reads.vector), len(other.active.index))
    if not stages:
        return torch.zeros(shape, dtype=torch.float64)
    written = other.written(torch.arange(shape[1]), stages)
    total = torch.zeros(shape, dtype=torch.float64)
    size = passage.reading.shape[1] // layer.n_heads
    alone = torch.zeros_like(passage.reading)
    alone[:, head.index * size : (head.index + 1) * size] = passage.reading[
        :, head.index * size : (head.index + 1) * size
    ]
    with mock.patch.object(HeadPassage, "reading", alone):
        for query, ahead in enumerate(passage.ahead(written, other.active.pos)):
            there = slice(len(ahead))
            total[:, there] += (reads.vector[:, 0] @ ahead.T) * reads.factor[:, 0, query, None]
    return total


@pytest.mark.parametrize("name", RUNS[::3])
def test_both_directions_are_the_same_weights(name: str) -> None:
    places = Places(run_named(name).weights)
    for reader in places.every:
        for way in ways_of(places, reader):
            for writer in places.every:
                inward = parts_in(places, reader, way, torch.arange(reader.n_features), writer)
                outward = parts_out(places, writer, torch.arange(writer.n_features), reader, way)
                assert inward.keys() == outward.keys()
                for number, part in inward.items():
                    torch.testing.assert_close(part, outward[number].T, **CLOSE)


MIXED = Case("deep", "cross relu | cross topk | batchtopk", attention="heads | sae", seed=10)
LORSA = Case("two layers", "topk gated", attention="lorsa rotary", seed=1)
HEADS = Case("deep", "jumprelu", skip=True, seed=1)
BEHIND = "Gemma-2, grouped keys"
"""With norms behind attention and MLPs."""


def dense_in(model: Any, place: Place, via: str) -> pd.DataFrame:
    """Every weight into every feature of a place."""
    rows = []
    for writer in Places(model.weights).every:
        table = virtual_weights(model, (place.layer, place.name), (writer.layer, writer.name), via)
        for (feature, index), weight in np.ndenumerate(table.numpy()):
            rows.append((feature, writer.layer, writer.name, index, weight))
    return pd.DataFrame(rows, columns=["feature", "layer", "sublayer", "index", "weight"])


@pytest.mark.parametrize("numbers", [1, 40, 10**6])
@pytest.mark.parametrize("case", [MIXED, LORSA, HEADS], ids=str)
def test_streaming_equals_dense(case: Case, numbers: int) -> None:
    model = model_of(case)
    last = Places(model.weights).every[-1]
    for way in ways_of(Places(model.weights), last):
        found = strongest_weights(model, (last.layer, last.name), 3, via=way.via, numbers=numbers)
        dense = dense_in(model, last, way.via)
        dense = dense[dense["weight"] != 0]
        order = dense["weight"].abs().sort_values(ascending=False).index
        best = dense.loc[order].groupby("feature").head(3)
        best = best.sort_values("feature", kind="stable").reset_index(drop=True)
        columns = ["feature", "layer", "sublayer", "index"]
        assert found[columns].values.tolist() == best[columns].values.tolist()
        np.testing.assert_allclose(found["weight"], best["weight"], rtol=1e-9)


@pytest.mark.parametrize("case", [MIXED, LORSA, HEADS], ids=str)
def test_streaming_outward_equals_inward(case: Case) -> None:
    """All weights out of the first place, found from either end."""
    model = model_of(case)
    places = Places(model.weights)
    first = places.every[0]
    every = sum(place.n_features for place in places.every)
    found = strongest_weights(model, (first.layer, first.name), every, direction="out", numbers=50)
    wanted = 0
    for reader in places.every:
        if "residual" not in [way.via for way in ways_of(places, reader)]:
            continue
        table = virtual_weights(model, (reader.layer, reader.name), (first.layer, first.name))
        part = found[found["layer"].eq(reader.layer) & found["sublayer"].eq(reader.name)]
        mine = np.zeros(tuple(table.shape))
        mine[part["index"], part["feature"]] = part["weight"]
        np.testing.assert_allclose(mine, table.numpy(), **CLOSE)
        wanted += int((table != 0).sum())
    assert len(found) == wanted > 0


@pytest.mark.parametrize("case", [MIXED, LORSA, HEADS], ids=str)
def test_connections_are_the_strongest_of_all(case: Case) -> None:
    model = model_of(case)
    place = Places(model.weights).every[-1]
    table = connections(model, (place.layer, place.name, 2), k=4)
    inward = table[table["direction"].eq("in")]
    for through in (False, True):
        dense = (
            pd.concat(
                dense_in(model, place, way.via).assign(via=way.via)
                for way in ways_of(Places(model.weights), place)
                if (way.head is not None) == through
            )
            if any(
                (way.head is not None) == through for way in ways_of(Places(model.weights), place)
            )
            else None
        )
        if dense is None:
            continue
        mine = dense[dense["feature"].eq(2) & dense["weight"].ne(0)]
        best = mine.loc[:, "weight"].abs().nlargest(4)
        heads = inward["via"].str.contains("head") if not case.attention.startswith("sae") else None
        part = inward if heads is None else inward[heads == through]
        np.testing.assert_allclose(part["weight"].abs(), best, rtol=1e-9)


@pytest.mark.parametrize("weighting", ["active", "activation"])
@pytest.mark.parametrize("case", [MIXED, LORSA, HEADS, BEHIND], ids=str)
def test_expected_weights_are_means_over_runs(case: Case | str, weighting: str) -> None:
    """The mean of what was read in runs, by the held map, one position after another."""
    model = model_of(case)
    runs = [model.run(ids) for ids in ([1, 2, 3], [4, 5, 6, 1], [2, 2])]
    places = Places(model.weights)
    place = places.every[-1]
    index = next(
        int(held_at(run, place).active.index[0]) for run in runs if len(held_at(run, place).active)
    )
    found = connections(
        model, (place.layer, place.name, index), k=1000, runs=iter(runs), weighting=weighting
    )
    found = found[found["direction"].eq("in")].groupby(["layer", "sublayer", "index"])
    total = found["expected"].sum()
    expected: dict[tuple[int, str, int], float] = {}
    size = 0.0
    for run in runs:
        held = held_at(run, place)
        own = (held.active.index == index).nonzero()[:, 0]
        activation = held.active.activation[own]
        weight = torch.ones_like(activation) if weighting == "active" else activation.abs()
        size += len(run.tokens) if weighting == "active" else float(weight.sum())
        reads = held.reads_of(held.active.pos[own], held.active.index[own])
        for other in places.every:
            writer = held_at(run, other)
            nodes = torch.arange(len(writer.active))
            stages = dict(writing(run.sublayers, place.reads_at)).get(writer, [])
            got = torch.zeros(len(own), len(nodes), dtype=torch.float64)
            if stages:
                got += reads.products(writer.written(nodes, stages), writer.active.pos)["residual"]
            for way in ways_of(places, place):
                if way.head is not None:
                    got += through(run, reads, writer, way.head)
            for number, amount in zip(writer.active.index.tolist(), weight @ got, strict=True):
                key = (other.layer, other.name, number)
                expected[key] = expected.get(key, 0.0) + float(amount)
    for key, amount in expected.items():
        assert total.get(key, 0.0) == pytest.approx(amount / size, rel=1e-8, abs=1e-12), key
    assert len(total) and set(total.index) <= set(expected)


def test_outward_expected_weights_are_the_inward_ones() -> None:
    for case in (MIXED, LORSA, HEADS, BEHIND):
        model = model_of(case)
        runs = [model.run(ids) for ids in ([1, 2, 3], [4, 5, 6, 1])]
        places = Places(model.weights)
        first = places.every[0]
        index = int(held_at(runs[0], first).active.index[0])
        table = connections(model, (first.layer, first.name, index), k=6, runs=runs)
        out = table[table["direction"].eq("out")]
        assert len(out)
        for row in out.itertuples():
            back = connections(model, (row.layer, row.sublayer, row.index), k=10**4, runs=runs)
            same = back[
                back["direction"].eq("in")
                & back["via"].eq(row.via)
                & back["layer"].eq(first.layer)
                & back["sublayer"].eq(first.name)
                & back["index"].eq(index)
            ]
            np.testing.assert_allclose(same["expected"], [row.expected], rtol=1e-9)
            np.testing.assert_allclose(same["weight"], [row.weight], rtol=1e-9)


@pytest.mark.parametrize("name", ["GPT-2", "Gemma, grouped keys", "Gemma-3", "OPT"])
def test_tokens_of_a_feature(name: str) -> None:
    """Promoted: the feature's write vector added to the stream moves centred logits so. Excited:
    one token's embedding moves the pre-activation so. Both in a run, denominators held."""
    model = ReplacementModel(tiny(name))
    run = model.run(IDS)
    held = run.sublayer(0, "mlp")
    node = int(held.active.activation.abs().argmax())
    at, index = int(held.active.pos[node]), int(held.active.index[node])
    table = feature_tokens(model, (0, index), k=13)
    written = held.written(torch.tensor([node]), (2,))[0]
    scale = held.joints[0].scale[at] if held.joints[0].norm is not None else 1.0
    norm = model.weights.final_norm
    logits = model.weights.unembedding @ norm.unscaled(written / held.active.activation[node])
    promoted = table[table["relation"].eq("promoted")].set_index("token_id")["weight"]
    expected = (logits - logits.mean()) * scale
    np.testing.assert_allclose(promoted.sort_index(), expected, **CLOSE)
    suppressed = table[table["relation"].eq("suppressed")].set_index("token_id")["weight"]
    np.testing.assert_allclose(suppressed.sort_index(), expected, **CLOSE)
    assert promoted.is_monotonic_decreasing and suppressed.is_monotonic_increasing
    reads = held.reads_of(torch.tensor([at]), torch.tensor([index]))
    excited = table[table["relation"].eq("excited")].set_index("token_id")["weight"]
    for pos in range(3):
        amount = float(reads.vector[0, 0] @ run.token_writes[pos])
        assert excited[IDS[pos]] == pytest.approx(amount, rel=1e-9)


def test_gemma_embeddings_are_scaled() -> None:
    """Control: without the factor that the model puts on its embedding the test above fails."""
    hf_model = tiny("Gemma, grouped keys")
    written = token_writes(ReplacementModel(hf_model))
    ratio = written / hf_model.get_input_embeddings().weight.detach()
    assert float(ratio.min()) == pytest.approx(8**0.5) == float(ratio.max())


def test_attention_saes_and_replaced_streams_have_no_exciting_tokens() -> None:
    sae = model_of(Case("deep", "batchtopk", attention="sae topk", seed=6))
    assert set(feature_tokens(sae, (1, "attn", 2))["relation"]) == {"promoted", "suppressed"}
    stream = model_of(Case("two layers", "neurons", streams=((2, "relu"),), seed=13))
    assert set(feature_tokens(stream, (1, 2))["relation"]) == {"promoted", "suppressed"}
    assert "excited" in set(feature_tokens(stream, (0, 2))["relation"])
    assert "excited" in set(feature_tokens(stream, (1, "resid", 2))["relation"])
    behind = feature_tokens(stream, (0, 2))
    assert (behind.loc[behind["relation"].eq("promoted"), "weight"] == 0).all()


def test_a_changed_norm_changes_the_weights() -> None:
    """Control: the post-norm's gain is part of a weight."""
    model = ReplacementModel(tiny("Gemma-2, grouped keys"))
    before = virtual_weights(model, (1, "mlp"), (0, "mlp"))
    layer = model.weights.layers[0]
    assert layer.mlp_post_norm is not None and layer.mlp_post_norm.gain is not None
    other = dataclasses.replace(layer.mlp_post_norm, gain=layer.mlp_post_norm.gain * 2)
    weights = dataclasses.replace(
        model.weights,
        layers=[dataclasses.replace(layer, mlp_post_norm=other), *model.weights.layers[1:]],
    )
    model.weights = weights
    torch.testing.assert_close(virtual_weights(model, (1, "mlp"), (0, "mlp")), 2 * before, **CLOSE)
