"""The secant of a whole GPT-2 between two runs once more, slowly and forwards.

Written from the rules alone. One node's difference is followed through every later sublayer by
difference quotients of recorded values: no closed form, no transposed map, nothing of
`replacement.secant` but the rule's weights.
Logarithmic means are integrals here, changes of inverse deviations quotients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replacement.layers import FeatureLayer, HeadNorm, Lorsa, ReLU
from replacement.run import Run
from replacement.secant import SecantRule
from tests.attribution.by_hand import gate_by_hand, lorsa_by_hand, sides_by_hand, turned_by_hand
from tests.hooked import Place

WAYS = ("v", "q", "k")
_POINTS, _WEIGHTS = (torch.tensor(part) for part in np.polynomial.legendre.leggauss(60))


def product(
    one: tuple[Tensor, Tensor],
    change_one: Any,
    two: tuple[Tensor, Tensor],
    change_two: Any,
    w: float,
) -> tuple[Tensor, Tensor]:
    """Return both parts of Δ(a·b), elementwise: (w·a + (1-w)·a′)·Δb and ((1-w)·b + w·b′)·Δa."""
    a, a_other = one
    b, b_other = two
    return (w * a + (1 - w) * a_other) * change_two, ((1 - w) * b + w * b_other) * change_one


def quotient(values: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Return (f - f′) / (z - z′), 0 where nothing changed."""
    way = inputs[0] - inputs[1]
    return torch.where(way == 0, 0.0, (values[0] - values[1]) / torch.where(way == 0, 1.0, way))


def norm_change(
    inputs: tuple[Tensor, Tensor], change: Tensor, eps: float, centred: bool, w: float
) -> Tensor:
    """Return what a summand of an input's difference makes of x / √(mean x² + eps), row by row."""
    c = [x - x.mean(-1, keepdim=True) if centred else x for x in (*inputs, change)]
    squares = [x.square().mean(-1, keepdim=True) + eps for x in c[:2]]
    inverse = [square.rsqrt() for square in squares]
    change_of_square = ((c[0] + c[1]) * c[2]).mean(-1, keepdim=True)
    rate = quotient((inverse[0], inverse[1]), (squares[0], squares[1]))
    parts = product((inverse[0], inverse[1]), rate * change_of_square, (c[0], c[1]), c[2], w)
    return parts[0] + parts[1]


def softmax_change(patterns: tuple[Tensor, Tensor], change: Tensor) -> Tensor:
    """Return what differences of scores make of a pattern; L = ∫ p^t · p′^(1-t) dt."""
    shares = (_POINTS + 1) / 2
    seen = patterns[1] > 0
    logs = [torch.where(seen, p.clamp_min(1e-300).log(), 0.0) for p in patterns]
    between = torch.stack([(t * logs[0] + (1 - t) * logs[1]).exp() for t in shares])
    mean = (between * (_WEIGHTS / 2)[:, None, None]).sum(0) * seen
    return mean * (change - (mean * change).sum(-1, keepdim=True) / mean.sum(-1, keepdim=True))


@dataclass
class SlowSecant:
    """A Hugging Face GPT-2 of one case between two runs."""

    model: Any
    runs: tuple[Run, Run]
    layers: dict[Place, FeatureLayer]
    """What sublayers are read through; the model's own heads and neurons elsewhere."""
    rule: SecantRule

    def __post_init__(self) -> None:
        self.blocks = list(self.model.transformer.h)
        self.n_heads = self.model.config.n_head
        self.places = [(n, name) for n in range(len(self.blocks)) for name in ("attn", "mlp")]

    # ------------------------------------------------------------ one sublayer

    def normed(self, stage: int) -> tuple[Tensor, Tensor]:
        """Return what is read at a stage in both runs."""
        norm = self._norm(stage)
        return norm(self.runs[0].residuals[stage]), norm(self.runs[1].residuals[stage])

    def _norm(self, stage: int) -> Any:
        if stage == 2 * len(self.blocks):
            return self.model.transformer.ln_f
        block = self.blocks[stage // 2]
        return block.ln_2 if stage % 2 else block.ln_1

    def at_norm(self, stage: int, change: Tensor) -> Tensor:
        norm = self._norm(stage)
        streams = self.runs[0].residuals[stage], self.runs[1].residuals[stage]
        return norm.weight * norm_change(streams, change, norm.eps, True, self.rule.norm)

    def nodes(self, stage: int, change: Tensor, ways: Sequence[str] = WAYS) -> Tensor:
        """Return by how much the nodes of the sublayer reading `stage` change, [pos, node, …]."""
        number, name = place = self.places[stage]
        y, dy = self.normed(stage), self.at_norm(stage, change)
        if name == "mlp":
            return self._features(place, y, dy)
        layer = self.layers.get(place)
        if isinstance(layer, Lorsa):
            return self._lorsa(layer, y, dy, ways)
        return self._heads(number, y, dy, ways)

    def written(self, stage: int, nodes: Tensor, around: Tensor) -> Tensor:
        """Return what changed nodes write; `around`: what a skip gets past them."""
        number, name = place = self.places[stage]
        layer = self.layers.get(place)
        if layer is not None:
            written = nodes @ layer.write
            return written if layer.skip is None else written + around @ layer.skip.T
        if name == "mlp":
            return nodes @ self.blocks[number].mlp.c_proj.weight
        return nodes.flatten(1) @ self.blocks[number].attn.c_proj.weight

    def _features(self, place: Place, y: tuple[Tensor, Tensor], dy: Tensor) -> Tensor:
        layer = self.layers.get(place)
        if layer is None:
            mlp = self.blocks[place[0]].mlp
            pre = tuple(one @ mlp.c_fc.weight + mlp.c_fc.bias for one in y)
            slope = quotient((mlp.act(pre[0]), mlp.act(pre[1])), (pre[0], pre[1]))
            return slope * (dy @ mlp.c_fc.weight)
        pre = [one @ layer.read.T + layer.read_bias for one in y]
        return self._rate(layer, pre) * (dy @ layer.read.T)

    @staticmethod
    def _rate(layer: FeatureLayer, pre: Sequence[Tensor]) -> Tensor:
        """The rate of features: of ones that switch, what switching itself makes is a leaf."""
        if isinstance(layer.activation, ReLU):
            return quotient((pre[0].relu(), pre[1].relu()), (pre[0], pre[1]))
        return (gate_by_hand(layer, pre[0]) + gate_by_hand(layer, pre[1])) / 2

    def switched(self, stage: int) -> Tensor:
        """Return what switching made of the features of a sublayer, [pos, feature]."""
        layer, y = self.layers[self.places[stage]], self.normed(stage)
        if isinstance(layer, Lorsa):
            pre = [lorsa_by_hand(layer, one, self._lorsa_pattern(layer, one)) for one in y]
        else:
            pre = [one @ layer.read.T + layer.read_bias for one in y]
        gates = [gate_by_hand(layer, one) for one in pre]
        if isinstance(layer.activation, ReLU):
            return torch.zeros_like(pre[0])
        return (pre[0] + pre[1]) / 2 * (gates[0] - gates[1])

    def _lorsa_pattern(self, layer: Lorsa, y: Tensor) -> Tensor:
        heads, sides = layer.query_key, sides_by_hand(layer.query_key, y)
        scores = heads.scale * sides.query @ sides.key.transpose(1, 2)
        return scores.masked_fill(~heads.visible(len(y)), -torch.inf).softmax(-1)

    def _lorsa(
        self, layer: Lorsa, y: tuple[Tensor, Tensor], dy: Tensor, ways: Sequence[str]
    ) -> Tensor:
        heads = layer.query_key
        sides = [sides_by_hand(heads, one) for one in y]
        patterns = [self._lorsa_pattern(layer, one) for one in y]
        pre = [lorsa_by_hand(layer, one, p) for one, p in zip(y, patterns, strict=True)]
        size, shared = len(layer.read) // heads.n_heads, heads.n_heads // len(heads.key)
        columns = []
        for number in range(len(layer.read)):
            head = number // size
            group = head // shared
            asked = self._side(y, dy, head, heads.query[head], heads.query_bias, heads.query_norm)
            offered = self._side(y, dy, group, heads.key[group], heads.key_bias, heads.key_norm)
            turned = [turned_by_hand(one, heads.rotary) for one in (asked, offered)]
            values = tuple((one @ layer.read[number])[:, None] for one in y)
            both = [tuple(getattr(s, side)[head] for s in sides) for side in ("query", "key")]
            columns.append(
                self._mix(
                    (patterns[0][head], patterns[1][head]),
                    (values[0], values[1]),
                    (dy @ layer.read[number])[:, None],
                    both,
                    turned,
                    heads.scale,
                    ways,
                )
            )
        return torch.cat(columns, dim=1) * self._rate(layer, pre)

    def _side(
        self,
        y: tuple[Tensor, Tensor],
        dy: Tensor,
        head: int,
        weight: Tensor,
        bias: Tensor | None,
        norm: HeadNorm | None,
    ) -> Tensor:
        if norm is None:
            return dy @ weight
        constant = 0 if bias is None else bias[head]
        raw = y[0] @ weight + constant, y[1] @ weight + constant
        return norm.gain[head] * norm_change(raw, dy @ weight, norm.eps, False, self.rule.norm)

    def _heads(
        self, number: int, y: tuple[Tensor, Tensor], dy: Tensor, ways: Sequence[str]
    ) -> Tensor:
        attention = self.blocks[number].attn
        packed, change = [attention.c_attn(one) for one in y], dy @ attention.c_attn.weight
        width = packed[0].shape[1] // (3 * self.n_heads)
        found = []
        for head in range(self.n_heads):
            starts = [(part * self.n_heads + head) * width for part in range(3)]
            columns = [slice(start, start + width) for start in starts]
            q, k, v = ((packed[0][:, c], packed[1][:, c]) for c in columns)
            dq, dk, dv = (change[:, c] for c in columns)
            hidden = torch.ones(len(dy), len(dy), dtype=torch.bool).triu(1)
            scores = [one @ two.T * width**-0.5 for one, two in zip(q, k, strict=True)]
            patterns = [s.masked_fill(hidden, -torch.inf).softmax(-1) for s in scores]
            found.append(
                self._mix((patterns[0], patterns[1]), v, dv, [q, k], [dq, dk], width**-0.5, ways)
            )
        return torch.stack(found, dim=1)

    def _mix(
        self,
        patterns: tuple[Tensor, Tensor],
        values: tuple[Tensor, Tensor],
        value_change: Tensor,
        sides: Sequence[Any],
        side_changes: Sequence[Tensor],
        scale: float,
        ways: Sequence[str],
    ) -> Tensor:
        """Return what changes of values, queries and keys make of one head's mixture."""
        (q, q_other), (k, k_other) = sides
        asked, offered = side_changes
        w, total = self.rule.query_key, torch.zeros_like(values[0])
        score_change = torch.zeros_like(patterns[0])
        for query in range(len(q)):
            for key in range(query + 1):
                by_key, by_query = product(
                    (q[query], q_other[query]),
                    asked[query],
                    (k[key], k_other[key]),
                    offered[key],
                    w,
                )
                score_change[query, key] = scale * (
                    ("k" in ways) * by_key.sum() + ("q" in ways) * by_query.sum()
                )
        pattern_change = softmax_change(patterns, score_change)
        for key in range(len(q)):
            by_value, by_pattern = product(
                (patterns[0][:, [key]], patterns[1][:, [key]]),
                pattern_change[:, [key]],
                (values[0][[key]], values[1][[key]]),
                value_change[[key]] * ("v" in ways),
                self.rule.pattern_value,
            )
            total = total + by_value + by_pattern
        return total

    # ------------------------------------------------------------ all of them

    def follow(self, stage: int, change: Tensor) -> Tensor:
        """Return what a difference of the stream at a stage makes of the last position's logits."""
        for here in range(stage, len(self.places)):
            around = self.at_norm(here, change)
            change = change + self.written(here, self.nodes(here, change), around)
        return self.at_norm(len(self.places), change)[-1] @ self.model.lm_head.weight.T

    def differences(self, stage: int) -> Tensor:
        """Return Δ of every node of the sublayer reading `stage`, from values of both runs."""
        layer, y = self.layers.get(self.places[stage]), self.normed(stage)
        found = []
        for run, one in zip(self.runs, y, strict=True):
            recorded = run.layers[stage // 2]
            if stage % 2 == 0 and layer is None:
                assert recorded.attention.mixed is not None
                found.append(recorded.attention.mixed)
            elif layer is None:
                mlp = self.blocks[stage // 2].mlp
                found.append(mlp.act(one @ mlp.c_fc.weight + mlp.c_fc.bias))
            else:
                if isinstance(layer, Lorsa):
                    pre = lorsa_by_hand(layer, one, self._lorsa_pattern(layer, one))
                else:
                    pre = one @ layer.read.T + layer.read_bias
                found.append(gate_by_hand(layer, pre) * pre)
        return found[0] - found[1]
