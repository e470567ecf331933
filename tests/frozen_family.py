"""Any Hugging Face model with its norms, patterns and gates frozen: attributions by autograd.

Independent of the held map: the model's own forward runs, and torch functions are intercepted.
Softmaxes (patterns) and inverse square roots (RMS norms) are detached, LayerNorm is computed with
its denominator detached, and the activation of the MLP passes gradients as a held gate does.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from replacement.precision import KeepDouble

DOWN = ("c_proj", "dense_4h_to_h", "fc_out", "fc2", "down_proj")
ACTIVATIONS = ("act", "act_fn", "activation_fn")


class Frozen(TorchFunctionMode):
    """Detaches what is held."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.layer_norm:
            return _frozen_layer_norm(*args, **kwargs)
        result = func(*args, **kwargs)
        held = func in (torch.nn.functional.softmax, torch.rsqrt, torch.Tensor.rsqrt)
        return result.detach() if held else result


def _frozen_layer_norm(
    x: Tensor, _shape: Any, weight: Any = None, bias: Any = None, eps: float = 0.0
) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


class HeldGate(nn.Module):
    """An activation as a held gate: act(x)/x, or, in a gated MLP, act(x) itself.

    `half`: in a gated MLP half of the gradient goes through `x` as it would in one without.
    """

    def __init__(
        self, activation: Callable[[Tensor], Tensor], *, gated: bool, half: bool = False
    ) -> None:
        super().__init__()
        self.activation, self.gated, self.half = activation, gated, half

    def forward(self, x: Tensor) -> Tensor:
        value = self.activation(x).detach()
        through = x * (value / x.detach())
        if self.half:
            return _half(through)
        return value if self.gated else through


def _half(x: Tensor) -> Tensor:
    """The same numbers, half of the gradient."""
    return (x + x.detach()) / 2


@dataclass
class Attributions:
    """Value times gradient."""

    value: float
    embedding: Tensor
    """[pos]"""
    heads: list[Tensor]
    """[pos, head], per layer"""
    neurons: list[Tensor]
    """[pos, neuron], per layer"""


def attributions(
    model: nn.Module,
    paths: Any,
    ids: list[int],
    target: Callable[[Tensor], Tensor],
    n_heads: int,
    *,
    half: bool = False,
) -> Attributions:
    """Return the attributions of a number read off the logits of the last position.

    `paths`: the family (where blocks, attention and MLP are); only names are taken from it.
    `half`: half of the gradient of gated MLPs goes through each branch.
    """
    inputs: dict[str, list[Tensor]] = {"head": [], "neuron": [], "entering": []}
    blocks = list(model.get_submodule(paths.layers).children())

    def keep(kind: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> Any:
            taken = given[0].detach().requires_grad_() if kind == "entering" else given[0]
            if kind != "entering":
                taken.retain_grad()
            inputs[kind].append(taken)
            return (taken, *given[1:])

        return hook

    with ExitStack() as stack:
        stack.enter_context(KeepDouble())
        stack.enter_context(Frozen())

        def hooked(module: nn.Module, kind: str) -> None:
            handle = module.register_forward_pre_hook(keep(kind))
            stack.callback(handle.remove)

        hooked(blocks[0], "entering")
        for block in blocks:
            attention = block.get_submodule(paths.attention)
            attention = getattr(attention, "attention", attention)
            names = ("c_proj", "out_proj", "o_proj", "dense")
            out = next(module for name, module in attention.named_children() if name in names)
            hooked(out, "head")
            mlp = getattr(block, "mlp", block)
            hooked(next(m for name, m in mlp.named_children() if name in DOWN), "neuron")
            holder, name = next(
                (part, one) for part in (mlp, block) for one in ACTIVATIONS if hasattr(part, one)
            )
            before = getattr(holder, name)
            setattr(holder, name, HeldGate(before, gated=hasattr(mlp, "gate_proj"), half=half))
            stack.callback(setattr, holder, name, before)
            if half:
                handle = mlp.up_proj.register_forward_hook(lambda _, __, out: _half(out))
                stack.callback(handle.remove)
        logits = model(torch.tensor([ids])).logits[0, -1]
        value = target(logits)
        value.backward()

    def products(tensors: list[Tensor]) -> list[Tensor]:
        made = [(one * one.grad).detach() for one in tensors if one.grad is not None]
        assert len(made) == len(tensors), "every part has a gradient"
        return [one.reshape(len(ids), -1) for one in made]

    return Attributions(
        float(value.detach()),
        products(inputs["entering"])[0].sum(-1),
        [part.unflatten(-1, (n_heads, -1)).sum(-1) for part in products(inputs["head"])],
        products(inputs["neuron"]),
    )
