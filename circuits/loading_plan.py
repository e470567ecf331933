"""What loading a model and its layers takes, known before a weight is read or fetched."""

from dataclasses import dataclass
from typing import Any

import torch

from attribution.plan import free_bytes, size_text
from circuits.arguments import Opened, opened
from circuits.reading import ATTENTION, MLP, RESIDUAL, located
from replacement.checkpoints.hub import Source, check_disk, listing
from replacement.checkpoints.sizes import Size, size_of
from replacement.notebook import lines_as_html
from replacement.precision import kept_type

MODEL_FILES = ("model*.safetensors", "pytorch_model*.bin", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, repr=False)
class LoadingPlan:
    """What it takes to load one model with its layers."""

    model: str
    model_download: int | None
    """Bytes; 0 for what is on this machine, None where the hub is out of reach."""
    layer_download: int
    model_bytes: int
    """Of memory; 0 for a model in memory that is used as it is."""
    layer_bytes: int
    free_bytes: int
    dtype: str
    device: str

    @property
    def bytes(self) -> int:
        """Of memory, for the model and its layers."""
        return self.model_bytes + self.layer_bytes

    def __repr__(self) -> str:
        model, layers = size_text(self.model_bytes), size_text(self.layer_bytes)
        if self.model_download is None:
            download = f"unknown (hub out of reach), layers {size_text(self.layer_download)}"
        else:
            download = size_text(self.model_download + self.layer_download)
            if self.model_download + self.layer_download:
                download += f": model {size_text(self.model_download)}"
                download += f", layers {size_text(self.layer_download)}"
        return (
            f"download {download}\n"
            f"weights  model {model}, layers {layers} in {self.dtype}; "
            f"{size_text(self.free_bytes)} free on {self.device}"
        )

    def _repr_html_(self) -> str:
        return lines_as_html(repr(self))

    def refuse_what_does_not_fit(self) -> None:
        """Raise MemoryError or OSError if memory, or the disk of the cache, is too small."""
        if self.bytes > self.free_bytes:
            raise MemoryError(
                f"load({self.model!r}): takes about {size_text(self.bytes)} in {self.dtype} on "
                f"{self.device} (model {size_text(self.model_bytes)}, layers "
                f"{size_text(self.layer_bytes)}), {size_text(self.free_bytes)} are free. Fits: "
                f"{self._fits()}."
            )
        check_disk(f"load({self.model!r})", (self.model_download or 0) + self.layer_download)

    def _fits(self) -> str:
        width, fits = getattr(torch, self.dtype).itemsize, []
        # a model used as it is would have to be copied into another type
        narrower = {"float32": 4, "bfloat16": 2} if self.model_bytes else {}
        for dtype, itemsize in narrower.items():
            if itemsize < width and self.bytes * itemsize // width <= self.free_bytes:
                fits.append(f'dtype="{dtype}"')
        if self.model_bytes <= self.free_bytes:
            fits.append(
                'mlp="neurons", attention="heads", residual="stream" (layers for none of them, or '
                "for some only, in a list)"
            )
        return "; or ".join(fits) or "a smaller model, or a device with more memory"


def loading_plan(
    model: Any,
    *,
    mlp: Any = None,
    attention: Any = None,
    residual: Any = None,
    device: str | None = None,
    dtype: str | None = None,
) -> LoadingPlan:
    """Return what `load` with these arguments takes; no weight is read or fetched.

    Bytes of memory are those of the parameters in `dtype`: the model's from its config, the layers'
    from the headers of their files. For hub names config files and headers are fetched. Raises what
    `load` raises for a model or set that does not fit.

    >>> plan = loading_plan("four-tasks")
    >>> plan.model_download + plan.layer_download
    0
    """
    return plan_of(opened(model, device, dtype), mlp, attention, residual)


def plan_of(found: Opened, mlp: Any, attention: Any, residual: Any) -> LoadingPlan:
    """Return what loading an opened model and these layers takes."""
    itemsize = found.dtype.itemsize
    sets = [
        one
        for part, asked in ((MLP, mlp), (ATTENTION, attention), (RESIDUAL, residual))
        for one in located(part, asked, found.facts).values()
        if one is not None
    ]
    layers = sum((size_of(one.place) for one in sets), Size(0, 0))
    parameters = list(found.module.parameters())
    there = (kept_type(parameters[0]), parameters[0].device) == (found.dtype, found.device)
    numbers = 0 if there else sum(parameter.numel() for parameter in parameters)
    on_hub = found.source is not None and found.facts.folder is None
    return LoadingPlan(
        model=found.name,
        model_download=_download_of_model(found.name) if on_hub else 0,
        layer_download=layers.to_download,
        model_bytes=numbers * itemsize,
        layer_bytes=layers.numbers * itemsize,
        free_bytes=free_bytes(found.device),
        dtype=str(found.dtype).removeprefix("torch."),
        device=str(found.device),
    )


def _download_of_model(name: str) -> int | None:
    there = listing(Source(name, files=MODEL_FILES))
    if there is None:
        return None
    missing = [file for file in there.missing if "/" not in file]
    if any(file.endswith(".safetensors") for file in there.sizes if "/" not in file):
        missing = [file for file in missing if not file.endswith(".bin")]
    return sum(there.sizes[file] for file in missing)
