"""Two runs of one model as one linear map of their difference: the secant of every operation.

Nothing is held: patterns, norms and gates move with what they read. The sum over token, error and
switch differences is the difference of the target, exactly (docs/design.md, section 6).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held import Joint, Sublayer
from replacement.layers import Active, GatedNeurons, Lorsa
from replacement.norms import Norm
from replacement.run import Run
from replacement.secant.heads import (
    SecantAttentionSAE,
    SecantHeadNodes,
    secant_heads,
)
from replacement.secant.joint import SecantJoint
from replacement.secant.lorsa import SecantLorsa
from replacement.secant.mlp import Change, SecantMLP, change_of, change_of_active, gated_change_of
from replacement.secant.norms import SecantNorm, secant_norm
from replacement.secant.rule import SecantRule
from replacement.target import Seed, Target, Term
from replacement.weights import LayerWeights, ModelWeights

Two = tuple[Float[Tensor, "pos d_model"], Float[Tensor, "pos d_model"]]


@dataclass(frozen=True, eq=False)
class RunPair:
    """A clean run and another of the same model and length, ready to be explained by difference."""

    clean: Run
    other: Run
    rule: SecantRule

    def __post_init__(self) -> None:
        """Raise ValueError unless both runs are of one model, one length and one kind."""
        ours, theirs = len(self.clean.tokens), len(self.other.tokens)
        if self.clean.model is not self.other.model:
            raise ValueError(
                f"against=: a run of {self.other.model!r}, the target's is of "
                f"{self.clean.model!r}. Give a run (or a prompt) of the same model object."
            )
        if ours != theirs:
            raise ValueError(
                f"against=: a run of {theirs} tokens, the target's has {ours}. A contrast compares "
                "position by position: give a counterfactual of the same length."
            )
        if self.clean.weights.streams:
            raise ValueError(
                "against=: the residual stream is read as features (residual=...), which a "
                "contrast does not cover yet. Load the model without residual=."
            )
        if self.clean.errors != self.other.errors:
            raise ValueError(
                "against=: one of the runs is a replacement run and the other is not. Make both "
                "with errors=True, or both with errors=False."
            )

    @property
    def model(self) -> Any:
        return self.clean.model

    @property
    def weights(self) -> ModelWeights:
        return self.clean.weights

    @property
    def prompt(self) -> str | None:
        return self.clean.prompt

    @property
    def token_ids(self) -> Int[Tensor, " pos"]:
        return self.clean.token_ids

    @property
    def tokens(self) -> list[str]:
        return self.clean.tokens

    @property
    def errors(self) -> bool:
        return self.clean.errors

    @property
    def residuals(self) -> list[Float[Tensor, "pos d_model"]]:
        return self.clean.residuals

    @cached_property
    def token_writes(self) -> Float[Tensor, "pos d_model"]:
        return self.clean.token_writes - self.other.token_writes

    @cached_property
    def position_writes(self) -> Float[Tensor, "pos d_model"]:
        return torch.zeros_like(self.token_writes)

    def sublayer(self, layer: int, name: str) -> Sublayer:
        """Return the sublayer of a layer and name."""
        return self.sublayers[2 * layer + (name == "mlp")]

    @property
    def next_logits(self) -> Float[Tensor, " d_vocab"]:
        return self.clean.next_logits

    def target(self, terms: list[dict[str, Any]]) -> Target:
        """Return the difference of the target that `Term.as_data` described."""
        return self.difference(self.clean.target(terms))

    def stream(self, stage: int) -> Two:
        """Return the residual stream of both runs at a stage."""
        return self.clean.residuals[stage], self.other.residuals[stage]

    @cached_property
    @torch.no_grad()
    def sublayers(self) -> list[Sublayer]:
        """The secant map, sublayer by sublayer, in the order they write."""
        joints = [self._mlp_joint(number) for number in range(len(self.weights.layers))]
        found: list[Sublayer] = []
        for number, block in enumerate(self.weights.layers):
            found += [self._attention(number, block), self._mlp(number, block, joints)]
        return found

    def _entrance(self, norm: Norm, stage: int) -> tuple[SecantNorm, Two]:
        """The secant of a norm, and what it returned in both runs."""
        clean, other = self.stream(stage)
        normed = norm.apply(clean, norm.scale(clean)), norm.apply(other, norm.scale(other))
        return secant_norm(norm, clean, other, self.rule.norm), normed

    def _joint(self, norm: Norm | None, parts: Sequence[Any]) -> SecantJoint:
        if norm is None or parts[0].raw is None:
            return SecantJoint(None)
        return SecantJoint(secant_norm(norm, parts[0].raw, parts[1].raw, self.rule.norm))

    def _written(self, joint: SecantJoint, parts: Sequence[Any]) -> Two:
        """Δ of what all nodes write, through the norm after them, and of what they miss."""
        clean, other = parts
        whole = clean.output + clean.error - other.output - other.error
        if not self.errors:
            return whole, torch.zeros_like(whole)
        if joint.secant is None:
            output = clean.output - other.output
        else:
            places = torch.arange(len(whole), device=whole.device)
            output = joint.forward(clean.raw_output - other.raw_output, places)
        return output, whole - output

    def _attention(self, number: int, block: LayerWeights) -> Sublayer:
        parts = [run.layers[number].attention for run in (self.clean, self.other)]
        entrance, normed = self._entrance(block.attention_norm, 2 * number)
        joint = self._joint(block.attention_writes_through, parts)
        written = self._written(joint, parts)
        reading = block.attention
        if isinstance(reading, Lorsa):
            return SecantLorsa(number, reading, entrance, normed, joint, written, self.rule)
        heads = secant_heads(block.heads, entrance, normed, self.rule)
        if reading is None:
            return SecantHeadNodes(number, heads, joint, _without_error(*written))
        made = [block.heads.write(one) for one in heads.made]
        pre = [one @ reading.read.T + reading.read_bias for one in made]
        change = change_of(reading, (pre[0], pre[1]))
        return SecantAttentionSAE(number, reading, change, heads, joint, written)

    def _mlp_joint(self, number: int) -> SecantJoint:
        parts = [run.layers[number].mlp for run in (self.clean, self.other)]
        return self._joint(self.weights.layers[number].mlp_writes_through, parts)

    def _mlp(self, number: int, block: LayerWeights, joints: Sequence[Joint]) -> Sublayer:
        parts = [run.layers[number].mlp for run in (self.clean, self.other)]
        reads_at = 2 * number if block.parallel else 2 * number + 1
        entrance, normed = self._entrance(block.mlp_reads_through, reads_at)
        reached = range(number, number + block.mlp.n_targets)
        mine = joints[number]
        assert isinstance(mine, SecantJoint)
        output, error = self._written(mine, parts)
        if block.mlp.exact:
            output, error = _without_error(output, error)
        skips = [one.skip_output for one in parts]
        return SecantMLP(
            number,
            block.mlp,
            self._change(block, normed, (parts[0].active, parts[1].active)),
            entrance,
            [joints[other] for other in reached],
            (reads_at, tuple(2 * other + 2 for other in reached)),
            (output, error),
            None if skips[0] is None or skips[1] is None else skips[0] - skips[1],
        )

    def _change(self, block: LayerWeights, normed: Two, active: tuple[Active, Active]) -> Change:
        layer = block.mlp
        if not layer.activation.dense:
            return change_of_active(layer, normed, active)
        pre = [y @ layer.read.T + layer.read_bias for y in normed]
        if not isinstance(layer, GatedNeurons):
            return change_of(layer, (pre[0], pre[1]))
        branch = [y @ layer.gate_read.T + layer.gate_bias for y in normed]
        return gated_change_of(layer, (pre[0], pre[1]), (branch[0], branch[1]), self.rule)

    @torch.no_grad()
    def difference(self, target: Target) -> Target:
        """Return by how much a target of the clean run exceeds the same of the other run."""
        there = self.other.target([term.as_data() for term in target.terms])
        seeds = [seed for term in target.terms for seed in self._seeds(term)]
        return Target(
            run=self,
            label=f"Δ({target.label})" if len(target.terms) > 1 else f"Δ {target.label}",
            value=target.value - there.value,
            bias=0.0,
            pos=target.pos,
            seeds=tuple(seeds),
            terms=target.terms,
        )

    def _seeds(self, term: Term) -> list[Seed]:
        """Where the difference of a term reads the difference of the stream."""
        stage, gradient = self._gradient(term)
        places = gradient.any(-1).nonzero().flatten().tolist()
        return [Seed(stage, pos, term.weight * gradient[pos]) for pos in places]

    def _gradient(self, term: Term) -> tuple[int, Float[Tensor, "pos d_model"]]:
        weights, at_output = self.weights, torch.zeros_like(self.token_writes)
        if term.kind == "direction":
            assert term.vector is not None
            at_output[term.pos] = term.vector
            return 2 * term.layer, at_output
        if term.kind in ("logit", "centered_logit"):
            row = weights.unembedding[term.index]
            centred = row - weights.mean_unembedding if term.kind == "centered_logit" else row
            at_output[term.pos] = centred
            last = 2 * weights.n_layers
            return last, secant_norm(weights.final_norm, *self.stream(last), self.rule.norm).back(
                at_output
            )
        attention, mlp = self.sublayers[2 * term.layer : 2 * term.layer + 2]
        if term.kind == "feature" and term.sublayer != "attn":
            assert isinstance(mlp, SecantMLP)
            at_output[term.pos] = mlp.features.read[term.index]
            return mlp.reads_at, mlp.entrance.back(at_output)
        if term.kind == "feature":
            assert isinstance(attention, SecantLorsa | SecantAttentionSAE)
            return attention.reads_at, attention.pre_activation(term.pos, term.index)
        assert isinstance(attention, SecantLorsa | SecantAttentionSAE | SecantHeadNodes)
        look = attention.look
        at_scores = torch.zeros_like(look.softmax.weight)
        at_scores[term.index, term.pos, term.key] = weights.query_key(term.layer).scale
        return attention.reads_at, attention.entrance.back(look.back(at_scores))


def _without_error(
    output: Float[Tensor, "pos d_model"], error: Float[Tensor, "pos d_model"]
) -> Two:
    """Heads and neurons are the sublayer itself: all of its difference is theirs."""
    return output + error, torch.zeros_like(error)
