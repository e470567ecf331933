"""Reading and writing the files of a folder of layers: whole or not at all, checked or refused."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

POINTER = b"version https://git-lfs"


@contextlib.contextmanager
def replaced_whole(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield an empty folder whose files replace those of `folder` at the end, `last` after all.

    Where an error leaves the block, `folder` stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        yield Path(unfinished)
        readable_by = (Path(unfinished) / last).stat().st_mode  # safetensors lets the owner only
        for path in sorted(Path(unfinished).iterdir(), key=lambda path: path.name == last):
            path.chmod(readable_by)
            path.replace(folder / path.name)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises ValueError for anything else."""
    try:
        config = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path}: not valid JSON ({problem}). Copy the folder again.") from None
    if not isinstance(config, dict):
        raise ValueError(
            f"{path}: holds a {type(config).__name__!r}, not the settings of layers by name. "
            "Copy the folder again."
        )
    return config


def read_tensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """Return every tensor of a safetensors file; no code in a file is run."""
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        raise unreadable(path, str(problem)) from None


def is_pointer(path: Path) -> bool:
    """Return whether a file is what git-lfs leaves where it has not fetched the file itself."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def unreadable(path: Path, reason: str) -> ValueError:
    """Return the error for a file that is damaged, or that was never fetched."""
    if is_pointer(path):
        return ValueError(
            f"{path}: cannot be read: it is the pointer that git-lfs leaves in a file's place. "
            "Fetch the file itself: git lfs pull."
        )
    return ValueError(f"{path}: cannot be read ({reason:.160}). Copy the file again.")


def check_tensors(
    where: object,
    tensors: Mapping[str, Tensor],
    required: Mapping[str, str],
    optional: Mapping[str, str],
    sizes: Mapping[str, int],
) -> None:
    """Raise ValueError unless the tensors have the names and axes described, and sound values.

    `required` and `optional` give the axes of each name, such as "feature d_model". `sizes` holds
    the axes known before; the first tensor that has another axis says how long it is.
    """
    missing = [name for name in required if name not in tensors]
    unexpected = [name for name in tensors if name not in required and name not in optional]
    if missing or unexpected:
        raise ValueError(
            f"{where}: missing tensors {sorted(missing)}, unexpected {sorted(unexpected)}. "
            f"A layer holds {', '.join(required)} and optionally {', '.join(optional)}."
        )
    known = dict(sizes)
    for name, text in {**required, **optional}.items():
        if name not in tensors:
            continue
        tensor, axes = tensors[name], text.split()
        shape = tuple(tensor.shape)
        if len(shape) == len(axes):
            known = {**dict(zip(axes, shape, strict=True)), **known}
        expected = tuple(known.get(axis, axis) for axis in axes)
        if shape != expected:
            raise ValueError(
                f"{where}: {name} has shape {shape}; it must be [{', '.join(axes)}] = {expected}, "
                f"given {', '.join(f'{axis} {size}' for axis, size in known.items())} from "
                "config.json and the tensors before. Correct the one that is wrong."
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{where}: {name} is {tensor.dtype}; weights are floating-point.")
        if not all_finite(tensor):
            raise ValueError(f"{where}: {name} holds NaN or infinite values. Copy the file again.")


def all_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite; nothing of the tensor's size is made for it."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def stored(where: object, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in the type of a file (safetensors refuses tensors that share memory).

    Raises ValueError for values that are not finite, or not in `dtype`.
    """
    tensor = tensor.detach()
    converted = tensor.to(dtype, copy=True).contiguous()
    if all_finite(converted):
        return converted
    if not all_finite(tensor):
        raise ValueError(
            f"{where}: {name} holds NaN or infinite values, which no reader takes. Find where "
            "training diverged."
        )
    raise ValueError(
        f"{where}: {name} holds values that are not finite in {dtype}, largest "
        f"{float(tensor.abs().max()):.3g}. Save in a wider type, such as torch.bfloat16."
    )
