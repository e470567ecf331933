"""Weights kept in one type, numbers computed in another (docs/design.md, 2.8).

A float64 model stays in float64 where Hugging Face's own code would fall back to float32; and
weights kept in bfloat16 act as the float32 tensors they round, widened when they are used.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

CHUNK = 2**20
"""How many weights are widened at once in a matrix product."""


class KeepDouble(TorchFunctionMode):
    """Inside the block `.float()`, `.to(float32)` and `softmax(dtype=float32)` leave float64 alone.

    RMS norms, rotary embeddings and eager softmax of transformers compute in float32 whatever the
    model's type, which puts 2e-7 between a float64 run and its held map (docs/design.md, 2.8).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.dtype == torch.float64:
            if func is torch.Tensor.float:
                return first
            if func is torch.Tensor.to:
                args = tuple(torch.float64 if one is torch.float32 else one for one in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


class WithoutWeights(TorchFunctionMode):
    """Inside the block models are made whose weights take no memory, and whose buffers are real.

    Weights are made by `torch.empty`; buffers computed from the config are not.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        made_on = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **made_on})


class Narrow(torch.Tensor):
    """A weight kept in bfloat16 that acts as the float32 tensor of the same values.

    Views of it are narrow too; what is gathered from it, and every number computed with it, is
    plain float32. Matrix products widen a part of it at a time. It cannot be written to.

    >>> weight = kept_in(torch.eye(2), torch.bfloat16)
    >>> (torch.ones(1, 2) @ weight.T).dtype, weight.held.dtype
    (torch.float32, torch.bfloat16)
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Narrow":
        make: Any = torch.Tensor._make_wrapper_subclass  # pyright: ignore[reportAttributeAccessIssue]
        made: Any = make(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=torch.float32,
            device=held.device,
        )
        made.held = held
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made: Tensor = Narrow(self.held.clone())
        memo[id(self)] = nn.Parameter(made, False) if isinstance(self, nn.Parameter) else made
        return memo[id(self)]

    def untyped_storage(self) -> Any:
        raise RuntimeError(
            "weights kept in bfloat16 have no storage of the float32 they act as, and cannot "
            'be saved. Save load(model.hf_model, dtype="float32").hf_model.'
        ) from None

    storage = untyped_storage

    def __repr__(self, **_: Any) -> str:
        return f"Narrow({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = [
            bool(argument.alias_info and argument.alias_info.is_write)
            for argument in func._schema.arguments
        ]
        if func._schema.is_mutable and any(
            writes and isinstance(one, cls) for writes, one in zip(written, args, strict=False)
        ):
            raise RuntimeError(
                "weights kept in bfloat16 cannot be changed in place. Load the model in float32 to "
                "edit its weights."
            )
        if func.is_view:
            out = func(*tree_map_only(cls, _held, args), **kwargs)
            return tree_map_only(Tensor, cls, out)
        if func in _MOVING:
            out = func(*tree_map_only(cls, _held, args), **kwargs)
            return tree_map_only(Tensor, _widened_if_half, out)
        if func in _PRODUCTS:
            return _product(func, args, kwargs)
        return func(*tree_map_only(cls, widened, args), **tree_map_only(cls, widened, kwargs))


_ATEN = torch.ops.aten
_MOVING = {
    _ATEN.index.Tensor,
    _ATEN.index_select.default,
    _ATEN.embedding.default,
    _ATEN.aminmax.default,
}
"""Operations that pick values and compute none: the same before widening as after."""
_PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.mv.default}


def _held(tensor: Narrow) -> Tensor:
    return tensor.held


def _widened_if_half(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def widened(tensor: Tensor) -> Tensor:
    """Return a plain tensor of the same values: a copy of one that is `Narrow`."""
    return tensor.held.float() if isinstance(tensor, Narrow) else tensor


def kept_type(tensor: Tensor) -> torch.dtype:
    """Return the type that a weight is kept in."""
    return tensor.held.dtype if isinstance(tensor, Narrow) else tensor.dtype


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A matrix product whose narrow side is widened by parts: columns of the right, else rows.

    The parts are written where they belong: kept until the end, they would split the heap.
    """
    *added, left, right = args
    added = [widened(one) for one in added]
    if isinstance(right, Narrow) and right.dim() == 2:
        left, total = widened(left), right.shape[1]
        product = left.new_empty(len(left), total)
        added = [one.expand(len(left), total) for one in added]
        for here in _parts(total, right.shape[0]):
            terms = (one[:, here] for one in added)
            product[:, here] = func(*terms, left, right.held[:, here].float(), **kwargs)
        return product
    right = widened(right)
    if added or not isinstance(left, Narrow):
        return func(*added, widened(left), right, **kwargs)
    product = right.new_empty(len(left), *right.shape[1:])
    for here in _parts(len(left), left.shape[1]):
        product[here] = func(left.held[here].float(), right, **kwargs)
    return product


def _parts(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows or columns of `width` numbers, `CHUNK` at once."""
    step = max(1, CHUNK // max(1, width))
    return (slice(start, start + step) for start in range(0, count, step))


def kept_in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in `dtype`, nothing copied where it is; bfloat16 acts as float32.

    Biases, gains and thresholds are small: where matrices are narrow they are float32, not rounded.
    """
    if dtype != torch.bfloat16:
        return widened(tensor).to(dtype)
    if isinstance(tensor, Narrow):
        return tensor
    return tensor.float() if tensor.dim() < 2 else Narrow(tensor.detach().to(dtype))


def with_tensors(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a layer, or a part of one, with `change` done to every tensor in it."""
    if isinstance(part, Tensor):
        return change(part)
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    given = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    made = {name: with_tensors(value, change) for name, value in given.items()}
    return dataclasses.replace(part, **made)


def matrices_kept_in(layer: Any, dtype: torch.dtype) -> Any:
    """Return a layer whose matrices are in `dtype`, as `kept_in` has them."""
    return with_tensors(layer, lambda one: kept_in(one, dtype) if one.dim() > 1 else one)


def converted_model(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a model with the parameters of `model` in `dtype` on `device`.

    With bfloat16 it computes in float32 with matrices kept in bfloat16, and with biases and gains
    rounded to it: what a checkpoint loaded in bfloat16 holds. Buffers are not rounded. A parameter
    that is already there in this type is shared.
    """
    half = dtype == torch.bfloat16

    def there(one: Tensor) -> Tensor:
        moved = kept_in(one.to(device), dtype)
        return moved.to(dtype).float() if half and moved.dim() < 2 else moved

    shared: dict[int, Any] = {
        id(one): nn.Parameter(there(one.detach()), requires_grad=one.requires_grad and not half)
        for one in model.parameters()
    }
    made = copy.deepcopy(model, shared)
    for module in made.modules():
        for name, buffer in module.named_buffers(recurse=False):
            kind = (torch.float32 if half else dtype) if buffer.is_floating_point() else None
            setattr(module, name, buffer.to(device=device, dtype=kind))
    return made
