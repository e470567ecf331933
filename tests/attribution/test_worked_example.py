"""The worked example of hierarchical attribution (docs/design.md, 3.1), by hand and by `sweep`.

x = 1; m1 = x·[1, 2]; x1 = x + m1·[1, 1] = 4; m2 = x1·[1, 1] = [4, 4]; y = x1 + m2·[2, 1] = 16.
"""

from dataclasses import dataclass
from typing import final

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.flow import flow_edges
from attribution.sweep import Sweep, sweep
from replacement.edits import Node, held_knock_outs
from replacement.families import HeadWeights
from replacement.held import Gate, Gradients, NodeRows, Reads, Step, Sublayer
from replacement.layers import JumpReLU, QueryKey, Transcoder
from replacement.norms import Norm
from replacement.recording import run_of_record
from replacement.run import Run
from replacement.target import Seed, Target
from replacement.tracing import LayerRecord, Record
from replacement.weights import LayerWeights, ModelWeights

PLAIN = [([1.0, 2.0], [1.0, 1.0]), ([1.0, 1.0], [2.0, 1.0])]
NEGATIVE = [([1.0, 2.0], [1.0, 1.0]), ([1.0, 1.0], [2.0, -1.0])]
"""Read and write weights of the two layers; in the second one m2[1] works against y."""


@final
class Linear(Sublayer):
    """Nodes that read one number and write a multiple of it: the plainest sublayer."""

    name, node_kind, local, dense = "mlp", "neuron", True, False
    always = write_bias = None

    def __init__(self, layer: int, read: list[float], write: list[float], x: float) -> None:
        self.layer, self.reads_at, self.write_stages = layer, layer, (layer + 1,)
        self.read, self.write = torch.tensor(read)[:, None], torch.tensor(write)[:, None]
        self.value = x * self.read[:, 0]
        self.n_nodes = len(read)
        self.output = (self.value @ self.write)[None]
        self.error = torch.zeros(1, 1)

    def step(self, gradients: Gradients, gate: Gate) -> Step:
        downstream = self.write @ gradients[0][0]
        keep = gate(self.value * downstream)
        back = (downstream * keep) @ self.read
        return Step(self.value * downstream, keep, back[None], torch.zeros(1))

    def reads(self, gradients: Gradients, nodes: Int[Tensor, " chosen"]) -> Reads:
        downstream = self.write[nodes] @ gradients[0][0]
        count = len(nodes)
        return Reads(
            (downstream[:, None] * self.read[nodes])[:, None],
            torch.ones(count, 1, 1),
            torch.zeros(count),
        )

    def writes(self, nodes: Int[Tensor, " chosen"], stage: int) -> Float[Tensor, "chosen d_model"]:
        assert stage == self.writes_at
        return self.value[nodes, None] * self.write[nodes]

    def positions(self) -> Int[Tensor, " node"]:
        return torch.zeros(self.n_nodes, dtype=torch.long)

    def rows(self, nodes: Int[Tensor, " chosen"]) -> NodeRows:
        kinds = ["neuron"] * len(nodes)
        return NodeRows(kinds, torch.zeros_like(nodes), nodes, self.value[nodes])

    def find(self, kind: str, pos: int, index: int) -> int:
        return index if (kind, pos) == ("neuron", 0) and index < self.n_nodes else -1


IDENTITY = Norm(gain=None, bias=None, eps=1.0, centred=True)
"""Of a stream of width 1: centring leaves 0, and sqrt(0 + eps) = 1 is the scale."""


@dataclass(frozen=True)
class Toy:
    """The example at x = 1 as sublayers and as a target that reads y."""

    sublayers: list[Sublayer]
    target: Target


def toy(weights: list[tuple[list[float], list[float]]]) -> Toy:
    """Return the example made of `Linear` sublayers."""
    x, sublayers = 1.0, []
    for number, (read, write) in enumerate(weights):
        sublayers.append(Linear(number, read, write, x))
        x += float(sublayers[-1].output)
    return Toy(sublayers, y_target(bare_run(), stage=len(weights), value=x))


def bare_run() -> Run:
    """Return a run of one token that writes 1 and a position that writes nothing."""
    one, nothing = torch.ones(1, 1), torch.zeros(1, 1)
    return Run(
        model=None,
        weights=ModelWeights(None, [], IDENTITY, unembedding=one, unembedding_bias=None),
        prompt=None,
        token_ids=torch.zeros(1, dtype=torch.long),
        tokens=["x"],
        errors=True,
        unembedded=one,
        next_logits=one[0],
        token_writes=one,
        position_writes=nothing,
        layers=[],
        residuals=[one],
        final_scale=torch.ones(1),
    )


def y_target(run: Run, stage: int, value: float) -> Target:
    """Return y: the residual stream after both layers."""
    return Target(run, "y", value, 0.0, 0, (Seed(stage, 0, torch.ones(1)),), ())


def numbers(swept: Sweep, sublayer: int) -> list[float]:
    return swept.attribution[sublayer].tolist()


def booked(swept: Sweep) -> tuple[float, float]:
    """Return what reaches the token, and what was pruned on the way."""
    return float(swept.leaves.token.sum()), float(swept.leaves.pruned.sum())


def test_direct_effects() -> None:
    """Kept on their own, m1 gives what it writes straight to y, and so does m2."""
    example = toy(PLAIN)
    none = [torch.zeros(2, dtype=torch.bool)] * 2
    swept = sweep(example.target, example.sublayers, only=none)
    assert numbers(swept, 0) == [1, 2]
    assert numbers(swept, 1) == [8, 4]


def test_ungated_sweep() -> None:
    """u1 = 1 + 2 + 1 = 4: m1 = [1, 2]·4, and the token is worth all of y."""
    example = toy(PLAIN)
    swept = sweep(example.target, example.sublayers)
    assert numbers(swept, 1) == [8, 4]
    assert numbers(swept, 0) == [4, 8]
    assert booked(swept) == (16, 0)


def test_gate_at_five() -> None:
    """m2 keeps its 8, so u1 = 1 + 2 = 3; m1 = [3, 6] keeps the 6; token 9 + pruned 4 + 3 = 16."""
    example = toy(PLAIN)
    swept = sweep(example.target, example.sublayers, 5.0)
    assert numbers(swept, 1) == [8, 4]
    assert numbers(swept, 0) == [3, 6]
    assert [keep.tolist() for keep in swept.keep] == [[False, True], [True, False]]
    assert booked(swept) == (9, 7)
    assert swept.leaves.total() == example.target.value == 16


def test_flow_behind_the_gate() -> None:
    """m1[1] gets its 6 from the token, m2[0] its 8 from token, m1[1] and the pruned m1[0]."""
    example = toy(PLAIN)
    swept = sweep(example.target, example.sublayers, 5.0)
    flow = flow_edges(example.target, example.sublayers, swept)
    token, m1, m2, y = 0, 2, 3, 4
    edges = {
        (int(source), int(reader)): float(amount)
        for source, reader, amount in zip(flow.source, flow.target, flow.amount, strict=True)
    }
    assert edges == {
        (token, m1): 6,
        (token, m2): 2,
        (m1, m2): 4,
        (token, y): 1,
        (m1, y): 2,
        (m2, y): 8,
    }
    assert flow.in_pruned.tolist() == [0, 0, 0, 2, 5]


@pytest.mark.parametrize(
    ("rule", "cutoff", "kept", "first_layer", "token", "pruned"),
    [
        ("absolute", 0.0, [[True, True], [True, True]], [2, 4], 8, 0),
        ("absolute", 3.0, [[False, True], [True, True]], [2, 4], 6, 2),
        ("signed", 0.0, [[True, True], [True, False]], [3, 6], 12, -4),
        ("signed", 3.0, [[True, True], [True, False]], [3, 6], 12, -4),
    ],
)
def test_negative_weight_tells_signed_from_absolute(
    rule: str,
    cutoff: float,
    kept: list[list[bool]],
    first_layer: list[float],
    token: float,
    pruned: float,
) -> None:
    """y = 4 + 8 - 4 = 8. The signed rule drops the -4, so what it recovers, 12, exceeds y."""
    example = toy(NEGATIVE)
    assert example.target.value == 8
    swept = sweep(example.target, example.sublayers, cutoff, rule=rule)
    assert [keep.tolist() for keep in swept.keep] == kept
    assert numbers(swept, 0) == first_layer
    assert booked(swept) == (token, pruned)
    assert swept.leaves.total() == 8


def real_run(weights: list[tuple[list[float], list[float]]]) -> Run:
    """Return the example as a real run: transcoders that are always active, heads that write 0."""
    nothing, one = torch.zeros(1, 1), torch.ones(1, 1)
    looks = QueryKey(nothing[None], nothing[None], None, None, scale=1.0)
    heads = HeadWeights(looks, nothing, None, nothing, None, n_heads=1, n_value_heads=1)
    blocks, layers, x = [], [], one
    for read, write in weights:
        mlp = Transcoder(
            read=torch.tensor(read)[:, None],
            write=torch.tensor(write)[:, None],
            read_bias=torch.zeros(2),
            write_bias=torch.zeros(1),
            activation=JumpReLU(torch.full((2,), -100.0)),
        )
        # a norm without centring gives x / |x|: a gain of |x| undoes it, so the layer reads x
        norm = Norm(gain=x[0].abs(), bias=None, eps=0.0, centred=False)
        blocks.append(LayerWeights(norm, heads, None, norm, mlp))
        written = x @ mlp.read.T @ mlp.write
        pattern = torch.ones(1, 1, 1)
        layers.append(LayerRecord(x, nothing, nothing, written, written, nothing, pattern))
        x = x + written
    model = ModelWeights(None, blocks, IDENTITY, unembedding=one, unembedding_bias=None)
    ids = torch.zeros(1, dtype=torch.long)
    record = Record(layers, residual=x, unembedded=x, next_logits=x[0])
    return run_of_record(record, model, ids, model=None, prompt=None, tokens=["x"], errors=True)


def test_held_knock_out_needs_clamped_pruned_nodes() -> None:
    """Without m1[1] y is 8; with the pruned m2[1] clamped it falls by the attribution 6, to 10.

    By hand: x1 = 2, so m2 = [2, 2] and y = 2 + 4 + 2 = 8; clamped, m2[1] stays 4 and y = 10.
    """
    run = real_run(PLAIN)
    target = y_target(run, stage=4, value=16.0)
    swept = sweep(target, run.sublayers, 5.0)
    assert [part.tolist() for part in swept.attribution[1::2]] == [[3, 6], [8, 4]]
    knocked = [Node("feature", 0, "mlp", 0, 1)]
    everything = [torch.ones_like(keep) for keep in swept.keep]
    assert held_knock_outs(target, everything, knocked).tolist() == [8]
    assert held_knock_outs(target, swept.keep, knocked).tolist() == [16 - 6]
