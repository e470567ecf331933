"""GPT-2 once more, in plain PyTorch from the Hugging Face weights: the oracle for the held map.

Nothing here uses the library's own arithmetic. `freeze` runs the model and notes what is held;
`forward` runs again with those patterns, norm denominators, gates and errors as constants, and
keeps every node's output as a tensor, so that autograd gives d target / d node. Each thing can be
left live, which is how the tests show that holding it matters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from replacement.layers import AttentionSAE, FeatureLayer, Lorsa, ResidualSAE
from replacement.target import Target, Term
from tests.attribution.by_hand import (
    Sides,
    gate_by_hand,
    lorsa_by_hand,
    pattern_by_hand,
    sides_by_hand,
)


@dataclass
class Node:
    """One sublayer's outputs, node by node, as autograd sees them."""

    parts: Tensor
    """[pos, head, d_head] of heads, [pos, feature] of features (inactive ones included)."""
    error: Tensor
    skip: Tensor | None = None


@dataclass
class Held:
    """What one run fixed, sublayer by sublayer; patterns and sides layer by layer."""

    token: Tensor
    position: Tensor
    pattern: list[Tensor] = field(default_factory=list)
    sides: list[Sides] = field(default_factory=list)
    scale: list[Tensor] = field(default_factory=list)
    gate: list[Tensor] = field(default_factory=list)
    """1 everywhere for heads."""
    error: list[Tensor] = field(default_factory=list)
    streams: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Gates and errors of residual SAEs, by stage."""


@dataclass
class Pass:
    """One forward pass of the frozen model."""

    held: Held
    token: Tensor
    position: Tensor
    sublayers: list[Node] = field(default_factory=list)
    stages: list[Tensor] = field(default_factory=list)
    """Residual stream of every stage, behind a residual SAE where there is one."""
    streams: dict[int, Node] = field(default_factory=dict)
    """Residual SAEs by stage, and their pre-activations."""
    stream_pre: dict[int, Tensor] = field(default_factory=dict)
    pre: list[Tensor] = field(default_factory=list)
    """Pre-activations of every sublayer's features; of heads what they write."""
    sides: list[Callable[[], Sides]] = field(default_factory=list)
    """Queries and keys of every attention layer, q/k norms held, made when asked for."""
    score_scale: list[float] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def in_order(self) -> list[Node]:
        """Return every sublayer and residual SAE in the order they write."""
        found: list[Node] = []
        for stage in range(len(self.stages)):
            found += [self.streams[stage]] if stage in self.streams else []
            found += self.sublayers[stage : stage + 1]
        return found


class FrozenGPT2:
    """A GPT-2 whose patterns, scales, gates and errors can be held or left live, one by one."""

    def __init__(
        self,
        model: Any,
        mlps: Sequence[FeatureLayer | None] | None,
        attentions: Sequence[Lorsa | AttentionSAE | None] | None = None,
        residuals: Sequence[ResidualSAE | None] | None = None,
        *,
        errors: bool = True,
        hold_scales: bool = True,
        hold_query_key_norms: bool = True,
        hold_patterns: bool = True,
        hold_gates: bool = True,
        add_errors: bool = True,
    ) -> None:
        self.model = model
        none = [None] * len(model.transformer.h)
        self.mlps, self.attentions = mlps or none, attentions or none
        self.residuals = {stage: sae for stage, sae in enumerate(residuals or []) if sae}
        self.errors = errors
        self.hold_scales, self.hold_patterns = hold_scales, hold_patterns
        self.hold_query_key_norms = hold_query_key_norms
        self.hold_gates, self.add_errors = hold_gates, add_errors

    def freeze(self, ids: Sequence[int]) -> Held:
        """Run the model and note what it fixes; without `errors`, with the layers in place."""
        base = self.model.transformer
        tokens = torch.tensor(ids)
        held = Held(base.wte.weight[tokens].detach(), base.wpe.weight[: len(ids)].detach())
        x, active = held.token + held.position, []
        with torch.no_grad():
            for number, block in enumerate(base.h):
                x = self._note_stream(held, 2 * number, x)
                y = self._normed(block.ln_1, x, held.scale)
                held.sides.append(self._sides(number, y))
                held.pattern.append(self._pattern(number, held.sides[-1]))
                exact = self._mix(block, self._heads(block, y, self._own_pattern(number, y)))
                x = self._note(held, 2 * number, x, exact, y, active)
                x = self._note_stream(held, 2 * number + 1, x)
                y = self._normed(block.ln_2, x, held.scale)
                exact = block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(y)))
                x = self._note(held, 2 * number + 1, x, exact, y, active)
            x = self._note_stream(held, 2 * len(base.h), x)
            self._normed(base.ln_f, x, held.scale)
        return held

    def _note_stream(self, held: Held, stage: int, x: Tensor) -> Tensor:
        """Gates and errors of a residual SAE that reads `x`; returns the stream behind it."""
        if stage not in self.residuals:
            return x
        sae = self.residuals[stage]
        pre = x @ sae.read.T + sae.read_bias
        gate = gate_by_hand(sae, pre)
        rebuilt = (gate * pre) @ sae.write + sae.write_bias
        held.streams[stage] = (gate, x - rebuilt if self.errors else torch.zeros_like(x))
        return x if self.errors else rebuilt

    def _replaced(
        self, made: Pass, stage: int, x: Tensor, share: float, keep: Sequence[Tensor] | None
    ) -> Tensor:
        """The stream behind the residual SAE of a stage, if it has one."""
        if stage in self.residuals:
            sae, (gate, error) = self.residuals[stage], made.held.streams[stage]
            pre = made.stream_pre[stage] = x @ sae.read.T + share * sae.read_bias
            parts = (gate if self.hold_gates else gate_by_hand(sae, pre)) * pre
            parts = _stop(parts, keep, stage + sum(other < stage for other in self.residuals))
            error = (error * (share if self.add_errors else 0)).clone().requires_grad_()
            made.streams[stage] = Node(parts, error)
            x = parts @ sae.write + share * sae.write_bias + error
        made.stages.append(x)
        return x

    def _note(
        self,
        held: Held,
        sublayer: int,
        x: Tensor,
        exact: Tensor,
        y: Tensor,
        active: list[Tensor],
    ) -> Tensor:
        """Gates and errors of one sublayer that read `y`; returns the stream behind it."""
        y = self._seen(sublayer, x, y)
        pre, gate = self._read(sublayer, y, held.pattern[sublayer // 2])
        held.gate.append(gate)
        active.append(gate * pre)
        rebuilt = self._write(sublayer, active, y)
        missed = exact - rebuilt if self._layer(sublayer) is not None else torch.zeros_like(x)
        held.error.append(missed if self.errors else torch.zeros_like(x))
        return x + (exact if self.errors else rebuilt)

    def forward(
        self,
        held: Held,
        *,
        entering: Tensor | None = None,
        constants: bool = True,
        keep: Sequence[Tensor] | None = None,
    ) -> Pass:
        """Run with what is held; `keep` (dense masks) stops gradients at all other nodes.

        `entering` replaces token and position embeddings; without `constants` biases and errors are
        left out, which makes the held model linear.
        """
        base, share = self.model.transformer, 1.0 if constants else 0.0
        token = held.token.clone().requires_grad_()
        position = held.position.clone().requires_grad_()
        made = Pass(held, token, position)
        x = token + position if entering is None else entering
        for sublayer in range(2 * len(base.h)):
            number, is_mlp = divmod(sublayer, 2)
            x = self._replaced(made, sublayer, x, share, keep)
            norm = base.h[number].ln_2 if is_mlp else base.h[number].ln_1
            y = self._norm(norm, x, held.scale[sublayer], share)
            if not is_mlp:
                fixed = held.sides[number] if self.hold_query_key_norms else None
                made.sides.append(partial(self._sides, number, y, share, fixed))
                made.score_scale.append(self._score_scale(number))
            pattern = held.pattern[number]
            if not self.hold_patterns:
                pattern = self._pattern(number, made.sides[number]())
            y = self._seen(sublayer, x, y)
            pre, live = self._read(sublayer, y, pattern, share)
            made.pre.append(pre)
            gate = held.gate[sublayer] if self.hold_gates else live
            place = sublayer + sum(stage <= sublayer for stage in self.residuals)
            parts = _stop(gate * pre, keep, place)
            error = self._error(held, sublayer, share)
            skip = self._skip(sublayer, y)
            made.sublayers.append(Node(parts, error, skip))
            active = [node.parts for node in made.sublayers]
            x = x + self._write(sublayer, active, y, share, skip) + error
        x = self._replaced(made, 2 * len(base.h), x, share, keep)
        y = self._norm(base.ln_f, x, held.scale[-1], share)
        made.logits = y @ self.model.lm_head.weight.T
        if self.model.lm_head.bias is not None:
            made.logits = made.logits + share * self.model.lm_head.bias
        return made

    def _layer(self, sublayer: int) -> FeatureLayer | None:
        """What a sublayer is read through, None for the model's own heads or neurons."""
        return (self.mlps if sublayer % 2 else self.attentions)[sublayer // 2]

    def _seen(self, sublayer: int, x: Tensor, y: Tensor) -> Tensor:
        """What a sublayer's features read: its normed input, or the stream before the norm."""
        layer = self._layer(sublayer)
        return x if layer is not None and layer.reads_stream else y

    def _normed(self, norm: nn.LayerNorm, x: Tensor, scales: list[Tensor]) -> Tensor:
        scales.append((x.var(-1, unbiased=False) + norm.eps).sqrt())
        return nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)

    def _norm(self, norm: nn.LayerNorm, x: Tensor, scale: Tensor, share: float) -> Tensor:
        if not self.hold_scales:
            scale = (x.var(-1, unbiased=False) + norm.eps).sqrt()
        centred = x - x.mean(-1, keepdim=True)
        return norm.weight * centred / scale[:, None] + share * norm.bias

    def _sides(
        self, number: int, y: Tensor, share: float = 1.0, held: Sides | None = None
    ) -> Sides:
        """Queries and keys: Lorsa's where attention is read through Lorsa, else the model's."""
        lorsa = self.attentions[number]
        if isinstance(lorsa, Lorsa):
            return sides_by_hand(lorsa.query_key, y, share, held)
        return self._own_sides(number, y, share)

    def _own_sides(self, number: int, y: Tensor, share: float = 1.0) -> Sides:
        attention = self.model.transformer.h[number].attn
        packed = y @ attention.c_attn.weight + share * attention.c_attn.bias
        n_pos, n_heads = len(y), attention.num_heads
        query, key, _ = packed.view(n_pos, 3, n_heads, -1).permute(1, 2, 0, 3)
        one = torch.ones(n_heads, n_pos, dtype=y.dtype)
        return Sides(query, key, one, one)

    def _score_scale(self, number: int) -> float:
        lorsa = self.attentions[number]
        if isinstance(lorsa, Lorsa):
            return lorsa.query_key.scale
        config = self.model.config
        return (config.n_embd // config.n_head) ** -0.5

    def _pattern(self, number: int, sides: Sides) -> Tensor:
        lorsa = self.attentions[number]
        window = lorsa.query_key.window if isinstance(lorsa, Lorsa) else None
        return pattern_by_hand(sides, self._score_scale(number), window)

    def _own_pattern(self, number: int, y: Tensor) -> Tensor:
        """The pattern of the model's own heads, whatever the layer is read through."""
        config = self.model.config
        scale = (config.n_embd // config.n_head) ** -0.5
        return pattern_by_hand(self._own_sides(number, y), scale, None)

    def _heads(self, block: Any, y: Tensor, pattern: Tensor, share: float = 1.0) -> Tensor:
        n_pos, d_model = y.shape
        packed, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        values = y @ packed[:, 2 * d_model :] + share * bias[2 * d_model :]
        values = values.view(n_pos, block.attn.num_heads, -1)
        return torch.einsum("hqk,khd->qhd", pattern, values)

    def _mix(self, block: Any, parts: Tensor, share: float = 1.0) -> Tensor:
        merged = parts.reshape(len(parts), -1)
        return merged @ block.attn.c_proj.weight + share * block.attn.c_proj.bias

    def _read(
        self, sublayer: int, y: Tensor, pattern: Tensor, share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Pre-activations of every feature and their gates, from scratch; heads have gates of 1."""
        number, is_mlp = divmod(sublayer, 2)
        block, layer = self.model.transformer.h[number], self._layer(sublayer)
        if layer is None and is_mlp:
            pre = y @ block.mlp.c_fc.weight + share * block.mlp.c_fc.bias
            return pre, torch.where(pre == 0, torch.zeros_like(pre), block.mlp.act(pre) / pre)
        if isinstance(layer, Lorsa):
            pre = lorsa_by_hand(layer, y, pattern, share)
            return pre, gate_by_hand(layer, pre)
        if not is_mlp:
            parts = self._heads(block, y, pattern, share)
            if layer is None:
                return parts, torch.ones_like(parts)
            y = self._mix(block, parts, share)
        assert layer is not None
        pre = y @ layer.read.T + share * layer.read_bias
        return pre, gate_by_hand(layer, pre)

    def _skip(self, sublayer: int, y: Tensor) -> Tensor | None:
        layer = self._layer(sublayer)
        return None if layer is None or layer.skip is None else y @ layer.skip.T

    def _write(
        self,
        sublayer: int,
        active: Sequence[Tensor],
        y: Tensor,
        share: float = 1.0,
        skip: Tensor | None = None,
    ) -> Tensor:
        """`active`: what the nodes of every sublayer up to this one are worth."""
        number, is_mlp = divmod(sublayer, 2)
        parts = active[sublayer]
        block, layer = self.model.transformer.h[number], self._layer(sublayer)
        if layer is None and not is_mlp:
            return self._mix(block, parts, share)
        if layer is None:
            return parts @ block.mlp.c_proj.weight + share * block.mlp.c_proj.bias
        around = self._skip(sublayer, y) if skip is None else skip
        width = len(layer.write_bias)
        written = parts @ layer.write[:, :width] + share * layer.write_bias
        for below in range(1, sublayer, 2) if is_mlp else ():
            writes = self._layer(below)
            start = (number - below // 2) * width
            if writes is not None and writes.write.shape[1] > start:
                written = written + active[below] @ writes.write[:, start : start + width]
        return written if around is None else written + around

    def _error(self, held: Held, sublayer: int, share: float) -> Tensor:
        error = held.error[sublayer] * share if self.add_errors else held.error[sublayer] * 0
        return error.clone().requires_grad_()


def _stop(parts: Tensor, keep: Sequence[Tensor] | None, sublayer: int) -> Tensor:
    """Let gradients through kept nodes only; values stay what they are."""
    if keep is None:
        return parts
    mask = keep[sublayer].view(*parts.shape[: keep[sublayer].dim()], *[1] * (parts.dim() - 2))
    return torch.where(mask, parts, parts.detach())


def measure(target: Target, made: Pass) -> Tensor:
    """Return a target's value in one pass, from the description of its terms alone."""
    total = torch.zeros((), dtype=made.logits.dtype)
    for term in target.terms:
        match term.kind:
            case "logit":
                value = made.logits[term.pos, term.index]
            case "centered_logit":
                value = made.logits[term.pos, term.index] - made.logits[term.pos].mean()
            case "feature" if term.sublayer in ("resid", "mid"):
                pre = made.stream_pre[2 * term.layer + (term.sublayer == "mid")]
                value = pre[term.pos, term.index]
            case "feature":
                sublayer = 2 * term.layer + (term.sublayer == "mlp")
                value = made.pre[sublayer][term.pos, term.index]
            case "attention_score":
                value = _score(term, made)
            case "direction":
                assert term.vector is not None
                value = made.stages[2 * term.layer][term.pos] @ term.vector
        total = total + term.weight * value
    return total


def _score(term: Term, made: Pass) -> Tensor:
    """A score as it is explained: linear in one side with the other held, or half of each."""
    live, held = made.sides[term.layer](), made.held.sides[term.layer]
    asked = live.query[term.index, term.pos] @ held.key[term.index, term.key]
    offered = held.query[term.index, term.pos] @ live.key[term.index, term.key]
    value = {"query": asked, "key": offered, "both": (asked + offered) / 2}[term.side]
    return made.score_scale[term.layer] * value


@dataclass
class Attributions:
    """value · d target / d value of every node of one pass."""

    token: Tensor
    position: Tensor
    nodes: list[Tensor]
    """Per sublayer: [pos, head] or [pos, feature]."""
    skips: list[Tensor | None]
    errors: list[Tensor]

    def magnitude(self) -> float:
        """Return Σ|terms| over everything here."""
        parts = [self.token, self.position, *self.nodes, *self.errors]
        parts += [skip for skip in self.skips if skip is not None]
        return float(sum(part.abs().sum() for part in parts))


def attributions(target: Target, made: Pass) -> Attributions:
    """Return value · gradient of every node, by autograd."""
    nodes = made.in_order()
    errors = [node.error for node in nodes]
    skips = [node.skip for node in nodes if node.skip is not None]
    parts = [node.parts for node in nodes]
    tensors = [made.token, made.position, *parts, *errors, *skips]
    gradients = torch.autograd.grad(
        measure(target, made), tensors, allow_unused=True, retain_graph=True
    )
    products = [
        torch.zeros_like(tensor) if gradient is None else tensor * gradient
        for tensor, gradient in zip(tensors, gradients, strict=True)
    ]
    count = len(parts)
    around = iter(products[2 + 2 * count :])
    return Attributions(
        token=products[0].sum(-1).detach(),
        position=products[1].sum(-1).detach(),
        nodes=[
            (part if part.dim() == 2 else part.sum(-1)).detach() for part in products[2 : 2 + count]
        ],
        skips=[node.skip if node.skip is None else next(around).sum(-1).detach() for node in nodes],
        errors=[part.sum(-1).detach() for part in products[2 + count : 2 + 2 * count]],
    )
