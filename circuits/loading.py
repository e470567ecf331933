"""From a name, a folder or a module in memory to a model ready to be run and traced."""

import contextlib
import copy
import difflib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from circuits.reading import ATTENTION, MLP, RESIDUAL, chosen_layers
from replacement.checking import check_rebuilt
from replacement.families import family_of
from replacement.model import ReplacementModel
from replacement.weights import norms_of

BUNDLED = ("four-tasks",)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def load(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    mlp: Any = None,
    attention: Any = None,
    residual: Any = None,
    split: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> ReplacementModel:
    """Return a model whose runs can be recorded and traced.

    Parameters
    ----------
    model
        The bundled `"four-tasks"`, a folder, a Hugging Face hub name, or a transformers model in
        memory (left as it is: it is neither moved, nor converted, nor switched).
    tokenizer
        For a model in memory; without one, token ids work everywhere. A folder or hub name brings
        its own.
    mlp
        What MLPs are read as: "neurons" (any model, no error), "transcoders" (those bundled with
        the model), a folder of transcoders (ours or in a published format, see
        `replacement.checkpoints.read_layers`), or a list with one of these words, a layer or None
        (neurons) per MLP. Default: bundled transcoders where there are some, else neurons.
    attention
        What attention is read as: "heads" (the model's own, patterns held, no error), "lorsa" or
        "attention-saes" (those bundled with the model), a folder of either, or a list with one of
        these words, a layer or None (heads) per attention layer. Default: bundled Lorsa where there
        is some, else heads.
    residual
        What the residual stream is read as: "stream" (not at all, the default), a folder of SAEs,
        or a list with one SAE or None per stage: `2 · layer` enters a layer, `2 · layer + 1` its
        MLP, `2 · n_layers` the final norm. Where it is read, the features take its place.
    split
        "half": neurons of gated MLPs read half of their product through each branch; by default
        all of it through the branch that is not gated.
    device, dtype
        Default: those of a model in memory; else cuda where there is one, and float32. Attribution
        needs float32 or float64.

    Raises
    ------
    ValueError, FileNotFoundError
        For a name, folder, architecture, layers, device or dtype that does not fit; says why.

    Examples
    --------
    >>> load("four-tasks").run("When Mary and John went to the store").tokens[-1]
    ' store'
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
        hf_model, name, folder = _converted(model, kind, where), type(model).__name__, None
        name = f"{getattr(model.config, 'name_or_path', '') or name}"
    else:
        folder = _folder(model)
        hf_model, own = _from_pretrained(str(model), folder, kind, where)
        tokenizer, name = tokenizer or own, str(model)
    norms = norms_of(hf_model)
    mlps, mlp_name = chosen_layers(MLP, mlp, folder, kind, where, norms.mlp)
    attentions, attention_name = chosen_layers(
        ATTENTION, attention, folder, kind, where, norms.attention
    )
    read_as = {"mlp": mlp_name, "attention": attention_name}
    residuals, residual_name = chosen_layers(
        RESIDUAL, residual, folder, kind, where, norms.attention
    )
    if residual_name != RESIDUAL.own:
        read_as["residual"] = residual_name
    if split is not None:
        read_as["split"] = split
    made = ReplacementModel(
        hf_model, tokenizer, mlps, attentions, residuals, split=split, name=name, read_as=read_as
    )
    check_rebuilt(made)
    return made


def _dtype(dtype: str | None, model: Any) -> torch.dtype:
    if dtype is None:
        own = next(iter(model.parameters())).dtype if isinstance(model, nn.Module) else None
        return torch.float64 if own == torch.float64 else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(
            f"load(dtype={dtype!r}): attribution runs in {' or '.join(DTYPES)}; weights stored "
            "in a half type are converted as they are loaded."
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


def _converted(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model itself where it fits as it is, otherwise a copy that does."""
    first = next(iter(model.parameters()))
    if first.dtype == dtype and first.device == device:
        return model
    return copy.deepcopy(model).to(dtype=dtype, device=device)


def _folder(model: str | Path) -> Path | None:
    """Where the model's files are; None for a hub name."""
    if str(model) in BUNDLED:
        return Path(str(resources.files("replacement") / "bundled" / str(model)))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            held = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
            raise ValueError(
                f"load({str(model)!r}): no config.json in this folder (found: {held}). Give a "
                "folder that model.save_pretrained(...) wrote."
            )
        return folder
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


def _from_pretrained(
    name: str, folder: Path | None, dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, Any]:
    source = name if folder is None else str(folder)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise ValueError(
            f"load({name!r}): cannot be opened as a Hugging Face model ({reason}). Known here: a "
            f"folder, a hub name such as openai-community/gpt2, or {_bundled_names()}."
        ) from None
    _check_architecture(name, config)
    try:
        with _quiet(bars=folder is None):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                config=config,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with names
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise ValueError(
            f"load({name!r}): its weights cannot be read ({reason}). Copy or download them again."
        ) from None
    model, report = loaded
    # transformers would fill what is missing with random numbers and only warn
    wrong = sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])])
    if wrong:
        raise ValueError(
            f"load({name!r}): the checkpoint lacks {len(wrong)} weights of this architecture, or "
            f"holds them in another shape: {', '.join(wrong[:4])}. Copy or download it again."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        tokenizer = None  # token ids work everywhere; text then says that there is no tokenizer
    return _converted(model.eval(), dtype, device), tokenizer


@contextlib.contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Without transformers' warnings, which this module turns into errors; bars for downloads."""
    verbosity, had_bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    if not bars:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _check_architecture(name: str, config: Any) -> None:
    """Refuse an architecture that does not fit before a single weight is read or fetched."""
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
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
    family_of(empty)
