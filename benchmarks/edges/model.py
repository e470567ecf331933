"""A model as components that read and write the residual stream, for batches of prompts.

A plain, differentiable forward pass: what each group of readers gets is decided by a callback, so
that it can be the stream, the stream with some edges patched, or the stream plus a probe whose
gradient is wanted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.edges.graph import EdgeGraph
from replacement.layers import GatedNeurons, HeadNorm, Neurons
from replacement.layers.rotary import Rotary
from replacement.model import ReplacementModel
from replacement.norms import Norm

Parts = Sequence[Float[Tensor, "batch _ pos d_model"]]
"""What was written so far: by the input, then by every sublayer, one tensor each."""
Reads = Callable[[int, Parts], Float[Tensor, "batch reader pos d_model"]]
"""From a group and what was written before it to what its readers get (one row: all the same)."""


@dataclass(frozen=True)
class Rules:
    """Which factors pass no gradient: the propagation rules of LRP (Ali et al. 2022; RelP)."""

    norms: bool = False
    """LN-rule: the denominators of norms."""
    gates: bool = False
    """Identity rule: act(x) = (act(x)/x)·x, the ratio held; of a gated MLP also the half rule."""
    patterns: bool = False
    """AH-rule: attention patterns."""


@dataclass(frozen=True, eq=False)
class Passed:
    """One forward pass."""

    parts: list[Float[Tensor, "batch _ pos d_model"]]
    final: Float[Tensor, "batch pos d_model"]
    """What the output read."""

    @cached_property
    def written(self) -> Float[Tensor, "batch writer pos d_model"]:
        """What every node wrote, in the order of `EdgeGraph.writers`."""
        return torch.cat(list(self.parts), 1)


class EdgeModel:
    """The original model behind a `ReplacementModel`, as components."""

    def __init__(self, model: ReplacementModel) -> None:
        """Raise ValueError for what is not a sum of components.

        Supported: heads (also with grouped keys and values, which are then read head by head, as
        EAP-IG does), neurons (gated ones too), rotary or learned positions, windows, soft-capped
        scores, parallel blocks. Not supported: replacement layers, norms after sublayers and a
        soft-cap on logits (Gemma-2, Gemma-3).
        """
        weights = model.weights
        for number, block in enumerate(weights.layers):
            if block.attention is not None or not block.mlp.exact or weights.streams:
                raise ValueError(
                    f"EdgeModel: layer {number} is read through {model.read_as}; edges are between "
                    "the model's own parts. Load it with mlp='neurons', attention='heads'."
                )
            if block.attention_post_norm is not None or block.mlp_post_norm is not None:
                raise ValueError(
                    f"EdgeModel: {model.name} has norms after its sublayers, so that what heads "
                    "write does not add up. Models without them are covered."
                )
        self.source, self.weights = model, weights
        heads = {block.heads.n_heads for block in weights.layers}
        self.graph = EdgeGraph(weights.n_layers, max(heads), weights.layers[0].parallel)
        nothing = weights.unembedding.new_zeros(weights.d_model)
        self._constants = [nothing]
        """Output biases of the attention layers in front of each group: in no node's name."""
        for block in weights.layers:
            bias = block.heads.output_bias
            behind = self._constants[-1] if bias is None else self._constants[-1] + bias
            self._constants += [self._constants[-1] if block.parallel else behind, behind]

    def constant(self, group: int) -> Float[Tensor, " d_model"]:
        """Return what every reader of a group gets beside what nodes write."""
        return self._constants[group]

    @torch.no_grad()
    def entering(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Return the residual stream that enters layer 0: token and position embeddings."""
        found: list[Tensor] = []

        def keep(_module: Any, arguments: tuple, named: dict) -> None:
            found.append(arguments[0] if arguments else named["hidden_states"])
            raise _Seen

        hf_model: Any = self.source.hf_model
        block: Any = hf_model.get_submodule(self.source.family.layers)[0]
        handle = block.register_forward_pre_hook(keep, with_kwargs=True)
        training = [module for module in hf_model.modules() if module.training]
        try:
            hf_model.eval()  # no dropout
            hf_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        except _Seen:
            return found[0].to(self.source.dtype)
        finally:
            handle.remove()
            for module in training:
                module.training = True
        raise RuntimeError(f"EdgeModel: {self.source.name} never ran its first layer.")

    def stream(self, group: int, parts: Parts) -> Float[Tensor, "batch 1 pos d_model"]:
        """Return the residual stream that a group reads: the plain `Reads`."""
        total = self.constant(group)
        for part in parts[: self.graph.n_parts(group)]:
            total = total + (part if part.shape[1] == 1 else part.sum(1, keepdim=True))
        return total

    def run(
        self,
        entering: Float[Tensor, "batch pos d_model"],
        reads: Reads | None = None,
        *,
        rules: Rules | None = None,
        after: Parts | None = None,
    ) -> Passed:
        """Return a forward pass; `after`: what earlier groups wrote, not to be computed again.

        The final part of the pass is not normed: `logits` reads it.
        """
        reads = reads or self.stream
        parts = [entering[:, None]] if after is None else list(after)
        for group in range(len(parts) - 1, 2 * self.graph.n_layers):
            parts.append(self.written(group, reads(group, parts), rules or Rules()))
        return Passed(parts, reads(2 * self.graph.n_layers, parts)[:, 0])

    def written(
        self, group: int, inputs: Float[Tensor, "batch reader pos d_model"], rules: Rules
    ) -> Float[Tensor, "batch writer pos d_model"]:
        """Return what the heads of a layer, or its MLP, write from what their readers get."""
        make = self._mlp if group % 2 else self._heads
        return make(group // 2, inputs, rules)

    def logits(
        self,
        final: Float[Tensor, "batch pos d_model"],
        end: Int[Tensor, " batch"],
        rules: Rules | None = None,
    ) -> Float[Tensor, "batch d_vocab"]:
        """Return the logits at one position of each prompt."""
        last = final[torch.arange(len(end)), end]
        normed = _normed(self.weights.final_norm, last, held=rules is not None and rules.norms)
        bias = self.weights.unembedding_bias
        logits = normed @ self.weights.unembedding.T
        return logits if bias is None else logits + bias

    def _heads(self, layer: int, inputs: Tensor, rules: Rules) -> Tensor:
        block = self.weights.layers[layer]
        heads, look = block.heads, block.heads.query_key
        y = _normed(block.attention_norm, inputs, held=rules.norms)
        asked, offered, moved = y.chunk(3, 1) if y.shape[1] > 1 else (y, y, y)
        group = heads.n_heads // look.key.shape[0]
        queries = _side(asked, look.query, look.query_bias, look.query_norm, look.rotary, 1)
        keys = _side(offered, look.key, look.key_bias, look.key_norm, look.rotary, group)
        scores = look.scale * queries @ keys.transpose(-1, -2)
        if look.soft_cap is not None:
            scores = look.soft_cap * torch.tanh(scores / look.soft_cap)
        hidden = ~look.visible(y.shape[-2], y.device)
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        values = _projected(moved, heads.value_of_head.repeat_interleave(heads.group, 0))
        if heads.value_bias is not None:
            bias = heads.value_bias.unflatten(0, (heads.n_value_heads, 1, -1))
            values = values + bias.repeat_interleave(heads.group, 0)
        pattern = pattern.detach() if rules.patterns else pattern
        return _projected(pattern @ values, heads.output_of_head)

    def _mlp(self, layer: int, inputs: Tensor, rules: Rules) -> Tensor:
        block, neurons = self.weights.layers[layer], self.weights.layers[layer].mlp
        y = _normed(block.mlp_norm, inputs, held=rules.norms)
        pre = y @ neurons.read.T + neurons.read_bias
        if isinstance(neurons, GatedNeurons):
            branch = y @ neurons.gate_read.T + neurons.gate_bias
            made = _gated(neurons, branch, held=rules.gates) * pre
            if rules.gates:  # half of the product's gradient through each branch, its value kept
                made = (made + made.detach()) / 2
        else:
            assert isinstance(neurons, Neurons)
            made = _gated(neurons, pre, held=rules.gates)
        return made @ neurons.write + neurons.write_bias


class _Seen(Exception):
    """What enters layer 0 was seen; the rest of the pass is not needed."""


def _gated(neurons: Neurons | GatedNeurons, x: Tensor, *, held: bool) -> Tensor:
    gate = neurons.activation.gate(x.flatten(0, -2)).view_as(x)
    return (gate.detach() if held else gate) * x


def _normed(norm: Norm, x: Tensor, *, held: bool) -> Tensor:
    scale = norm.scale(x)
    return norm.apply(x, scale.detach() if held else scale)


def _projected(inputs: Tensor, weight: Tensor) -> Tensor:
    """One matrix a head, applied to the head's own input or to one input for all."""
    if inputs.shape[1] == 1:
        return torch.einsum("bpd,hde->bhpe", inputs[:, 0], weight)
    return torch.einsum("bhpd,hde->bhpe", inputs, weight)


def _side(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: HeadNorm | None,
    rotary: Rotary | None,
    group: int,
) -> Tensor:
    """Queries or keys of all heads, each from an input of its own; `group` heads share a weight."""
    made = _projected(y, weight.repeat_interleave(group, 0))
    if bias is not None:
        made = made + bias.repeat_interleave(group, 0)[:, None]
    if norm is not None:
        gain = norm.gain.repeat_interleave(group, 0)
        made = HeadNorm(gain, norm.eps).apply(made)
    return made if rotary is None else rotary.turned(made)
