"""Dunefsky's GPT-2 transcoders: one `.pt` a layer, {"cfg": settings, "state_dict": weights}.

    a = relu((x - b_dec) @ W_enc + b_enc)       output = a @ W_dec + b_dec_out

x is `ln2.hook_normalized` of TransformerLens' default loading, which folds the norm's gain and bias
into the weights and centres what is written: a transcoder leaves the mean of an MLP's output, which
no norm lets through, to the error. The file is a pickle with one class in it, their settings: it is
read with PyTorch's weights_only and a stand-in for that class, and anything else is refused.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replacement.checkpoints.dictionaries import (
    Dictionary,
    Wanted,
    activation_of,
    converted,
    dictionary,
    in_model_units,
    placed,
    subtracting,
)
from replacement.checkpoints.files import check_tensors, unreadable

SETTINGS_CLASS = "sae_training.config.LanguageModelSAERunnerConfig"
HOOKS = ("hook_point", "out_hook_point")
REQUIRED = {
    "W_enc": "d_model feature",
    "W_dec": "feature d_model",
    "b_enc": "feature",
    "b_dec": "d_model",
    "b_dec_out": "d_model",
}


class Settings:
    """Stands in for the class of settings in their files: keeps what was set, does nothing."""

    def __setstate__(self, state: object) -> None:
        self.held = dict(state) if isinstance(state, dict) else {}


def read_dunefsky(path: Path, wanted: Wanted) -> tuple[int, Dictionary]:
    """Return which layer's MLP a file is for, and the transcoder in it."""
    config, tensors = _contents(path, wanted.device)
    if config.get("is_transcoder") is not True:
        raise ValueError(
            f"{path}: is_transcoder is {config.get('is_transcoder')!r}. Only transcoders of MLPs "
            "are read from this format."
        )
    reads, writes = (config.get(name) for name in HOOKS)
    places = placed(path, HOOKS, (reads, writes), wanted)
    if places[0].point != "mlp norm":
        raise ValueError(
            f"{path}: hook_point is {reads}; in models as these were trained on the stream is "
            "centred, which the model's own is not, so only ln2.hook_normalized can be read."
        )
    for name in ("hook_point_layer", "out_hook_point_layer"):
        if config.get(name, places[0].layer) != places[0].layer:
            raise ValueError(
                f"{path}: {name} is {config[name]!r}, but hook_point {reads}. Correct the one that "
                "is wrong."
            )
    check_tensors(path, tensors, REQUIRED, {}, _sizes(config))
    held = converted(tensors, wanted.dtype, transposed=("W_enc",))
    parts = {
        "read": held["W_enc"],
        "write": held["W_dec"],
        "read_bias": held["b_enc"],
        "write_bias": held["b_dec_out"],
        "activation": activation_of(path, "relu", wanted),
    }
    layer = subtracting(dictionary(path, places, parts), held["b_dec"])
    return places[0].layer, in_model_units(path, layer, places[0], wanted, folded=True)


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    named = {"d_in": "d_model", "d_sae": "feature"}
    return {axis: config[name] for name, axis in named.items() if isinstance(config.get(name), int)}


def _contents(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of a file; no code in it is run."""
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([(Settings, SETTINGS_CLASS)]),
        ):
            # what is no file of torch.save is refused, with our words only
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            held = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as problem:
        asked = re.search(r"GLOBAL (\S+)", str(problem))
        if asked is None:
            raise unreadable(path, "not a file of torch.save") from None
        raise ValueError(
            f"{path}: refused, for it holds more than weights and settings: it asks for {asked[1]}."
            " Nothing in it was run. Get the file from its authors again."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise unreadable(path, reason) from None
    config = held.get("cfg") if isinstance(held, dict) else None
    tensors = held.get("state_dict") if isinstance(held, dict) else None
    if isinstance(config, Settings):
        config = getattr(config, "held", {})
    if (
        not isinstance(config, dict)
        or not isinstance(tensors, dict)
        or not all(isinstance(tensor, Tensor) for tensor in tensors.values())
    ):
        raise ValueError(
            f'{path}: not {{"cfg": …, "state_dict": …}} as Dunefsky\'s transcoders are kept. Give '
            "the files final_sparse_autoencoder_gpt2-small_blocks.L.ln2.hook_normalized_….pt."
        )
    return config, tensors
