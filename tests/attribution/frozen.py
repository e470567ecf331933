"""GPT-2 once more, in plain PyTorch from the Hugging Face weights: the oracle for the held map.

Nothing here uses the library's own arithmetic. `freeze` runs the original model and notes what is
held; `forward` runs again with those patterns, norm denominators, gates and errors as constants,
and keeps every node's output as a tensor, so that autograd gives d target / d node. Each thing can
be left live, which is how the tests show that holding it matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from replacement.layers import BatchTopK, FeatureLayer, JumpReLU, ReLU, TopK
from replacement.target import Target


@dataclass
class Node:
    """One sublayer's outputs, node by node, as autograd sees them."""

    parts: Tensor
    """[pos, head, d_head] of heads, [pos, feature] of features (inactive ones included)."""
    error: Tensor
    skip: Tensor | None = None


@dataclass
class Pass:
    """One forward pass of the frozen model."""

    token: Tensor
    position: Tensor
    sublayers: list[Node] = field(default_factory=list)
    stages: list[Tensor] = field(default_factory=list)
    """Residual stream of every stage."""
    normed: list[Tensor] = field(default_factory=list)
    """Normed input of every sublayer, the final norm last."""
    pre: list[Tensor] = field(default_factory=list)
    """Pre-activations of every layer's features."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Held:
    """What one run fixed, sublayer by sublayer."""

    token: Tensor
    position: Tensor
    pattern: list[Tensor] = field(default_factory=list)
    scale: list[Tensor] = field(default_factory=list)
    gate: list[Tensor] = field(default_factory=list)
    error: list[Tensor] = field(default_factory=list)


class FrozenGPT2:
    """A GPT-2 whose patterns, scales, gates and errors can be held or left live, one by one."""

    def __init__(
        self,
        model: nn.Module,
        mlps: Sequence[FeatureLayer] | None,
        *,
        hold_scales: bool = True,
        hold_patterns: bool = True,
        hold_gates: bool = True,
        add_errors: bool = True,
    ) -> None:
        self.model, self.mlps = model, mlps
        self.hold_scales, self.hold_patterns = hold_scales, hold_patterns
        self.hold_gates, self.add_errors = hold_gates, add_errors

    def freeze(self, ids: Sequence[int]) -> Held:
        """Run the original model and note what it fixes."""
        base = self.model.transformer
        tokens = torch.tensor(ids)
        held = Held(base.wte.weight[tokens].detach(), base.wpe.weight[: len(ids)].detach())
        x = held.token + held.position
        with torch.no_grad():
            for number, block in enumerate(base.h):
                y = self._normed(block.ln_1, x, held.scale)
                held.pattern.append(self._pattern(block, y))
                x = x + self._mix(block, self._heads(block, y, held.pattern[-1]))
                held.error.append(torch.zeros_like(x))
                y = self._normed(block.ln_2, x, held.scale)
                exact = block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(y)))
                pre, gate = self._gated(number, y)
                held.gate.append(gate)
                held.error.append(exact - self._write(number, gate * pre, y))
                x = x + exact
            self._normed(base.ln_f, x, held.scale)
        return held

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
        made = Pass(token, position)
        x = token + position if entering is None else entering
        for number, block in enumerate(base.h):
            made.stages.append(x)
            y = self._norm(block.ln_1, x, held.scale[2 * number], share)
            made.normed.append(y)
            pattern = held.pattern[number] if self.hold_patterns else self._pattern(block, y)
            parts = self._heads(block, y, pattern, share)
            parts = _stop(parts, keep, 2 * number)
            error = self._error(held, 2 * number, share)
            made.sublayers.append(Node(parts, error))
            x = x + self._mix(block, parts, share) + error

            made.stages.append(x)
            y = self._norm(block.ln_2, x, held.scale[2 * number + 1], share)
            made.normed.append(y)
            pre, live = self._gated(number, y, share)
            made.pre.append(pre)
            gate = held.gate[number] if self.hold_gates else live
            parts = _stop(gate * pre, keep, 2 * number + 1)
            error = self._error(held, 2 * number + 1, share)
            skip = self._skip(number, y)
            made.sublayers.append(Node(parts, error, skip))
            x = x + self._write(number, parts, y, share, skip) + error
        made.stages.append(x)
        y = self._norm(base.ln_f, x, held.scale[-1], share)
        made.normed.append(y)
        made.logits = y @ self.model.lm_head.weight.T
        if self.model.lm_head.bias is not None:
            made.logits = made.logits + share * self.model.lm_head.bias
        return made

    def _normed(self, norm: nn.LayerNorm, x: Tensor, scales: list[Tensor]) -> Tensor:
        scales.append((x.var(-1, unbiased=False) + norm.eps).sqrt())
        return nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)

    def _norm(self, norm: nn.LayerNorm, x: Tensor, scale: Tensor, share: float) -> Tensor:
        if not self.hold_scales:
            scale = (x.var(-1, unbiased=False) + norm.eps).sqrt()
        centred = x - x.mean(-1, keepdim=True)
        return norm.weight * centred / scale[:, None] + share * norm.bias

    def _pattern(self, block: nn.Module, y: Tensor) -> Tensor:
        n_pos, d_model = y.shape
        heads = block.attn.num_heads
        query, key, _ = block.attn.c_attn(y).view(n_pos, 3, heads, -1).unbind(1)
        scores = torch.einsum("qhd,khd->hqk", query, key) / (d_model // heads) ** 0.5
        later = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, float("-inf")).softmax(-1)

    def _heads(self, block: nn.Module, y: Tensor, pattern: Tensor, share: float = 1.0) -> Tensor:
        n_pos, d_model = y.shape
        packed, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        values = y @ packed[:, 2 * d_model :] + share * bias[2 * d_model :]
        values = values.view(n_pos, block.attn.num_heads, -1)
        return torch.einsum("hqk,khd->qhd", pattern, values)

    def _mix(self, block: nn.Module, parts: Tensor, share: float = 1.0) -> Tensor:
        merged = parts.reshape(len(parts), -1)
        return merged @ block.attn.c_proj.weight + share * block.attn.c_proj.bias

    def _gated(self, number: int, y: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Pre-activations of every feature and their gates, from scratch."""
        if self.mlps is None:
            mlp = self.model.transformer.h[number].mlp
            pre = y @ mlp.c_fc.weight + share * mlp.c_fc.bias
            return pre, torch.where(pre == 0, torch.zeros_like(pre), mlp.act(pre) / pre)
        layer = self.mlps[number]
        pre = y @ layer.read.T + share * layer.read_bias
        return pre, gate_by_hand(layer, pre)

    def _skip(self, number: int, y: Tensor) -> Tensor | None:
        skip = None if self.mlps is None else self.mlps[number].skip
        return None if skip is None else y @ skip.T

    def _write(
        self,
        number: int,
        parts: Tensor,
        y: Tensor,
        share: float = 1.0,
        skip: Tensor | None = None,
    ) -> Tensor:
        if self.mlps is None:
            projection = self.model.transformer.h[number].mlp.c_proj
            return parts @ projection.weight + share * projection.bias
        layer = self.mlps[number]
        around = self._skip(number, y) if skip is None else skip
        written = parts @ layer.write + share * layer.write_bias
        return written if around is None else written + around

    def _error(self, held: Held, sublayer: int, share: float) -> Tensor:
        error = held.error[sublayer] * share if self.add_errors else held.error[sublayer] * 0
        return error.clone().requires_grad_()


def gate_by_hand(layer: FeatureLayer, pre: Tensor) -> Tensor:
    """Return the gates of a transcoder; in plain Python where features compete."""
    match layer.activation:
        case ReLU():
            kept = pre > 0
        case JumpReLU(threshold=threshold):
            kept = torch.stack([row > threshold for row in pre])
        case BatchTopK(threshold=threshold):
            kept = pre > threshold
        case TopK(k=k):
            kept = torch.zeros_like(pre, dtype=torch.bool)
            for pos, row in enumerate(pre.tolist()):
                best = sorted(range(len(row)), key=lambda index, row=row: -row[index])[:k]
                for index in best:
                    kept[pos, index] = row[index] > 0
    return kept.to(pre.dtype)


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
            case "feature":
                value = made.pre[term.layer][term.pos, term.index]
            case "direction":
                value = made.stages[2 * term.layer][term.pos] @ term.vector
        total = total + term.weight * value
    return total


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
    errors = [node.error for node in made.sublayers]
    skips = [node.skip for node in made.sublayers if node.skip is not None]
    parts = [node.parts for node in made.sublayers]
    tensors = [made.token, made.position, *parts, *errors, *skips]
    gradients = torch.autograd.grad(measure(target, made), tensors, allow_unused=True)
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
        skips=[
            node.skip if node.skip is None else next(around).sum(-1).detach()
            for node in made.sublayers
        ],
        errors=[part.sum(-1).detach() for part in products[2 + count : 2 + 2 * count]],
    )
