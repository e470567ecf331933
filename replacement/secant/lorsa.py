"""Lorsa heads between two runs: their values, and where their query-key heads look, both move."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held import FeatureNodes, Gradients, Joint
from replacement.layers import Lorsa
from replacement.secant.looking import secant_look
from replacement.secant.mlp import Change, change_of
from replacement.secant.norms import SecantNorm
from replacement.secant.rule import SecantRule, mixed

Pair = tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]]


class SecantLorsa(FeatureNodes):
    """An attention layer between two runs as Lorsa heads active in either."""

    name, local = "attn", False
    constants_are = "switch"
    looks = True

    def __init__(
        self,
        layer: int,
        lorsa: Lorsa,
        entrance: SecantNorm,
        normed: Pair,
        joint: Joint,
        written: tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]],
        rule: SecantRule,
    ) -> None:
        """`normed`: inputs of both runs; `written`: Δoutput and Δerror."""
        self.look = secant_look(lorsa.query_key, *normed, rule)
        pre = [lorsa.mixed(y, one) for y, one in zip(normed, self.look.pattern, strict=True)]
        self.change: Change = change_of(lorsa, (pre[0], pre[1]))
        super().__init__(layer, self.change.active, lorsa, [joint], *written)
        self.reads_at, self.write_stages = 2 * layer, (2 * layer + 1,)
        self.lorsa, self.entrance = lorsa, entrance
        self.pattern = mixed(*self.look.pattern, rule.pattern_value)
        values = [y @ lorsa.read.T for y in normed]
        self.value = mixed(values[0], values[1], 1 - rule.pattern_value)  # key feature

    def _carry_kept(
        self, downstream: Float[Tensor, " active"]
    ) -> tuple[Float[Tensor, "pos d_model"], Float[Tensor, " pos"]]:
        active = self.active
        at_query = downstream.new_zeros(self.n_pos, self.lorsa.n_features)
        at_query[active.pos, active.index] = downstream * active.gate
        return self._back(at_query), active.sum_by_pos(downstream * self.change.switched)

    def _back(self, at_query: Float[Tensor, "query feature"]) -> Float[Tensor, "pos d_model"]:
        """The derivative at the stream from that at pre-activations."""
        lorsa = self.lorsa
        by_head = at_query.view(self.n_pos, -1, lorsa.group).movedim(1, 0)  # head query group
        values = self.value.view(self.n_pos, -1, lorsa.group).permute(1, 2, 0)  # head group key
        at_key = (self.pattern.transpose(1, 2) @ by_head).movedim(0, 1).flatten(1)
        at_input = at_key @ lorsa.read
        at_input = at_input + self.look.back(self.look.at_scores(by_head @ values))
        return self.entrance.back(at_input)

    def pre_activation(self, pos: int, index: int) -> Float[Tensor, "pos d_model"]:
        """Return how the difference of a head's pre-activation reads that of the stream."""
        at_query = self.error.new_zeros(self.n_pos, self.lorsa.n_features)
        at_query[pos, index] = 1
        return self._back(at_query)

    def reads(self, gradients: Gradients, nodes: Int[Tensor, " chosen"]) -> "LorsaReader":
        index, pos = self.active.index[nodes], self.active.pos[nodes]
        passed = (self.features.write[index] * self._at_outputs(gradients)[pos]).sum(-1)
        switched = passed * self.change.switched[nodes]
        return LorsaReader(self, pos, index, passed * self.active.gate[nodes], switched)


@dataclass(frozen=True, eq=False)
class LorsaReader:
    """How Lorsa heads at queries read, by way of v, q and k."""

    lorsa: SecantLorsa
    query: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    coefficient: Float[Tensor, " node"]
    constant: Float[Tensor, " node"]

    def products(
        self, vectors: Float[Tensor, "writer d_model"], pos: Int[Tensor, " writer"]
    ) -> dict[str, Float[Tensor, "node writer"]]:
        """Return what heads get of each difference written at its position, by its way."""
        look, lorsa = self.lorsa.look, self.lorsa.lorsa
        normed = self.lorsa.entrance.forward(vectors, pos)
        head = lorsa.pattern_of(self.index)
        by_value = (self.coefficient[:, None] * lorsa.read[self.index]) @ normed.T
        at_pattern = self.coefficient[:, None] * self.lorsa.value[:, self.index].T
        at_scores = look.at_scores_of(head, self.query, at_pattern)
        asked, offered = look.query.forward(normed, pos), look.key.forward(normed, pos)
        found = {
            "v": by_value * self.lorsa.pattern[head, self.query][:, pos],
            "q": torch.zeros_like(by_value),
            "k": torch.zeros_like(by_value),
        }
        here = self.query[:, None] == pos
        for number in head.unique().tolist():
            of_head, key_head = head == number, number // look.group
            query = self.query[of_head]
            at_query = at_scores[of_head] @ look.key.mean[key_head]
            found["q"][of_head] = (at_query @ asked[number].T) * here[of_head]
            by_key = look.query.mean[number, query] @ offered[key_head].T
            found["k"][of_head] = by_key * at_scores[of_head][:, pos]
        return found
