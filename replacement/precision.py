"""Keep a float64 model in float64 where Hugging Face's own code would fall back to float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


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
