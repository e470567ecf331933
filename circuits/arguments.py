"""What `load` was asked for: which model, where, in which type; its config, not its weights."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from circuits.catalogue import BUNDLED, bundled_folder
from circuits.reading import ModelFacts
from replacement.families import family_of
from replacement.precision import Narrow, kept_type

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16")}


@dataclass(frozen=True)
class Opened:
    """A model of a known family, before its weights are read."""

    name: str
    source: str | None
    """The folder or hub name to load from; None for a model in memory."""
    facts: ModelFacts
    config: Any
    module: nn.Module
    """The model in memory, or one of its shape without weights (on the meta device)."""
    dtype: torch.dtype
    device: torch.device


def opened(model: Any, device: str | None, dtype: str | None) -> Opened:
    """Return what is known of a model before its weights are read.

    Raises TypeError, FileNotFoundError or ValueError for a model, device or dtype that does not
    fit. Of a hub name config.json is fetched, if it is not there.
    """
    if isinstance(model, nn.Module):
        family_of(model)
    elif not isinstance(model, str | Path):
        raise TypeError(
            f"load takes a name, a folder or a transformers model in memory; got "
            f"{type(model).__name__}: {model!r:.60}. For instance load({BUNDLED[0]!r}), or a hub "
            "name such as openai-community/gpt2."
        )
    kind = _dtype(dtype, model)
    where = _device(device, model)
    if isinstance(model, nn.Module):
        config: Any = model.config
        name = f"{getattr(config, 'name_or_path', '') or type(model).__name__}"
        return Opened(name, None, ModelFacts.of(config, name, None), config, model, kind, where)
    name, folder = str(model), _folder(model)
    source = name if folder is None else str(folder)
    config = _config(name, source)
    empty = _empty(name, config)
    family_of(empty)
    return Opened(name, source, ModelFacts.of(config, name, folder), config, empty, kind, where)


def _dtype(dtype: str | None, model: Any) -> torch.dtype:
    if dtype is None:
        first = next(iter(model.parameters())) if isinstance(model, nn.Module) else None
        if isinstance(first, Narrow):
            return kept_type(first)
        own = None if first is None else first.dtype
        return torch.float64 if own == torch.float64 else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(
            f"load(dtype={dtype!r}): attribution runs in float32 or float64, and weights can be "
            "kept in bfloat16; stored in another type they are converted as they are loaded."
        )
    return DTYPES[name]


def _device(device: str | None, model: Any) -> torch.device:
    if device is None:
        if isinstance(model, nn.Module):
            return next(iter(model.parameters())).device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).split(",")[0].splitlines()[0]
        raise ValueError(
            f'load(device={device!r}): {reason}. "cpu" always works, "cuda" where there is one.'
        ) from None
    return chosen


def _folder(model: str | Path) -> Path | None:
    """Where the model's files are; None for a hub name."""
    if str(model) in BUNDLED:
        return bundled_folder(str(model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"load({str(model)!r}): an adapter (adapter_config.json), which holds only what it "
                "changes of a model. Merge it first: model.merge_and_unload().save_pretrained(...)."
            )
        if not (folder / "config.json").is_file():
            held = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
            raise ValueError(
                f"load({str(model)!r}): no config.json in this folder (found: {held}). Give a "
                "folder that model.save_pretrained(...) wrote."
            )
        return folder
    if folder.is_file():
        raise ValueError(
            f"load({str(model)!r}): is a file; give the folder it is in, {str(folder.parent)!r}."
        )
    looks_local = isinstance(model, Path) or str(model).startswith((".", "/", "~"))
    if looks_local or str(model).count("/") > 1:
        raise FileNotFoundError(
            f"load({str(model)!r}): no such folder. Give a folder that model.save_pretrained(...) "
            f"wrote, a hub name such as openai-community/gpt2, or {_bundled_names()}."
        )
    near = difflib.get_close_matches(str(model), BUNDLED, n=1)
    if near and "/" not in str(model):
        raise ValueError(f"load({str(model)!r}): no model of that name. Did you mean {near[0]!r}?")
    return None


def _bundled_names() -> str:
    return "the bundled " + ", ".join(map(repr, BUNDLED))


def _config(name: str, source: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        reason = str(problem).strip().splitlines()[0]
        if "custom code" in str(problem):
            reason = "it needs custom code of its own, which is never run"
        raise ValueError(
            f"load({name!r}): cannot be opened as a Hugging Face model ({reason}). Known here: a "
            f"folder, a hub name such as openai-community/gpt2, or {_bundled_names()}."
        ) from None
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = dict(quantised).get("quant_method", "unknown method")
        raise ValueError(
            f"load({name!r}): a quantised checkpoint ({method}); attribution multiplies weights "
            "themselves. Load the model that it was made from."
        )
    return config


def _empty(name: str, config: Any) -> nn.Module:
    """A model of this shape without weights; refuses what is no language model."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError:
        raise ValueError(
            f"load({name!r}): {type(config).__name__} is no causal language model, so there is no "
            "next token to explain."
        ) from None
    except KeyError as problem:
        raise ValueError(
            f"load({name!r}): its config names {problem}, which transformers does not know "
            "(an activation function, most likely). Correct config.json."
        ) from None
