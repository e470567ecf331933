"""From a name, a folder or a module in memory to a model ready to be run and traced."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from circuits.arguments import Opened, opened
from circuits.loaded import LoadedModel
from circuits.loading_plan import plan_of
from circuits.reading import ATTENTION, MLP, RESIDUAL, chosen_layers
from replacement.checking import check_rebuilt
from replacement.checkpoints.files import is_pointer, unreadable
from replacement.precision import WithoutWeights, converted_model, kept_type
from replacement.weights import norms_of

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


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
) -> LoadedModel:
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
        `replacement.checkpoints.read_layers`), a published set by its short name
        ("gpt2-transcoders"; `circuits list` shows all) or hub name ("user/repo/sub/folder", either
        with "@revision"), or a list with one of these, a layer or None (neurons) per MLP. Default:
        bundled transcoders where there are some, else neurons.
    attention
        What attention is read as: "heads" (the model's own, patterns held, no error), "lorsa" or
        "attention-saes" (those bundled with the model), a folder, short name or hub name of either,
        or a list with one of these, a layer or None (heads) per attention layer. Default: bundled
        Lorsa where there is some, else heads.
    residual
        What the residual stream is read as: "stream" (not at all, the default), a folder, short
        name or hub name of SAEs,
        or a list with one SAE or None per stage: `2 · layer` enters a layer, `2 · layer + 1` its
        MLP, `2 · n_layers` the final norm. Where it is read, the features take its place.
    split
        "half": neurons of gated MLPs read half of their product through each branch; by default
        all of it through the branch that is not gated.
    device, dtype
        Default: those of a model in memory; else cuda where there is one, and float32. With
        "bfloat16" matrices are kept in that type, half the memory, and all is computed in float32,
        as if the model had been rounded to it and loaded in float32. Of layers only matrices are
        rounded, and once more where a published format's scales or gains are folded into them.

    Raises
    ------
    ValueError, FileNotFoundError
        For a name, folder, architecture, layers, device or dtype that does not fit; says why.
    MemoryError, OSError
        Before a weight is read or fetched, if they do not fit in memory or on the disk.

    Examples
    --------
    >>> load("four-tasks").run("When Mary and John went to the store").tokens[-1]
    ' store'
    """
    found = opened(model, device, dtype)
    plan_of(found, mlp, attention, residual).refuse_what_does_not_fit()
    if found.source is None:
        hf_model: nn.Module = _converted(found.module, found.dtype, found.device)
    else:
        hf_model, own = _from_pretrained(found)
        tokenizer = tokenizer or own
    norms = norms_of(hf_model)
    chosen = (found.facts, found.dtype, found.device)
    mlps, mlp_name = chosen_layers(MLP, mlp, *chosen, norms.mlp)
    attentions, attention_name = chosen_layers(ATTENTION, attention, *chosen, norms.attention)
    read_as = {"mlp": mlp_name, "attention": attention_name}
    residuals, residual_name = chosen_layers(RESIDUAL, residual, *chosen, norms.attention)
    if residual_name != RESIDUAL.own:
        read_as["residual"] = residual_name
    if split is not None:
        read_as["split"] = split
    made = LoadedModel(
        hf_model,
        tokenizer,
        mlps,
        attentions,
        residuals,
        split=split,
        name=found.name,
        read_as=read_as,
    )
    check_rebuilt(made)
    return made


def _converted(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model itself where it fits as it is, otherwise one that does."""
    first = next(iter(model.parameters()))
    plain_half = first.dtype == torch.bfloat16
    if kept_type(first) == dtype and not plain_half and first.device == device:
        return model
    return converted_model(model, dtype, device)


def _from_pretrained(found: Opened) -> tuple[nn.Module, Any]:
    name, source = found.name, str(found.source)
    try:
        with _quiet(bars=found.facts.folder is None):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=found.dtype,
                config=found.config,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with names
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        for file in found.facts.folder.glob("*.safetensors") if found.facts.folder else ():
            if is_pointer(file):
                raise unreadable(file, "") from None
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
    if found.dtype == torch.bfloat16:
        _with_float32_buffers(model, found.config)
    return _converted(model.eval().to(found.device), found.dtype, found.device), _tokenizer(found)


def _tokenizer(found: Opened) -> Any:
    """The model's tokenizer; None where it brings none, and token ids work all the same.

    Raises ValueError for one that is there and cannot be read.
    """
    folder = found.facts.folder
    there = [name for name in TOKENIZER_FILES if folder is None or (folder / name).is_file()]
    if not there:
        return None  # some classes would be invented from defaults
    try:
        return AutoTokenizer.from_pretrained(str(found.source), trust_remote_code=False)
    except Exception as problem:  # the tokenizers library raises bare Exception
        if folder is None and isinstance(problem, OSError):
            return None
        reason = str(problem).strip().splitlines()[0] if str(problem) else type(problem).__name__
        raise ValueError(
            f"load({found.name!r}): its tokenizer ({', '.join(there)}) cannot be read "
            f"({reason:.160}). Copy it again, or give load(..., tokenizer=...)."
        ) from None


def _with_float32_buffers(model: nn.Module, config: Any) -> None:
    """Compute anew what a bfloat16 model rounded: frequencies, factors of embeddings."""
    stored = model.state_dict().keys()
    with WithoutWeights():
        exact = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, buffer in exact.named_buffers():
        if name not in stored and buffer.is_floating_point() and not buffer.is_meta:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, buffer)


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
