"""Our own folders of layers: `config.json` and one `layer_{i}.safetensors` per layer.

config.json names the kind ("format": "linear-circuits transcoders"; others in `LAYOUTS`), the
version, `n_layers` and `d_model`, and lists the activation of every layer (for Lorsa also
"query_key": scale, window, q/k norm, rotary), null where a layer is absent: a set may cover some
layers only. A layer holds, in any float type (axes: `layouts.py` and `query_keys.py` here): `read`,
`write`, `read_bias`, `write_bias`, optionally `threshold` (JumpReLU) and `gate_scale`; transcoders
optionally `skip` (of a cross-layer one `write` holds what goes to this MLP and to those after it
side by side); Lorsa also `query` and `key`, optionally their biases, gains of q/k norm, and
rotary's `inverse_frequency`. Transcoders and Lorsa read the sublayer's normed input (gain and bias
included), SAEs what attention wrote; all reproduce what the sublayer adds to the residual stream.
Residual SAEs read and reproduce the stream itself; they are numbered by stage, two a layer and one
for the final norm, and `n_layers` counts stages. Version 1 is the same without absent layers and
`gate_scale`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from replacement.checkpoints.folders import load_folder, save_folder
from replacement.checkpoints.layouts import (
    ATTENTION_SAES,
    CROSS_LAYER_TRANSCODERS,
    LORSA,
    RESIDUAL_SAES,
    TRANSCODERS,
)
from replacement.layers import (
    AttentionSAE,
    CrossLayerTranscoder,
    Lorsa,
    ResidualSAE,
    Transcoder,
)


def save_transcoders(
    layers: Sequence[Transcoder | None], folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write one transcoder per layer to `folder`, None where a layer has none: all or nothing.

    Raises ValueError for no layers, and for values that `dtype` cannot hold.
    """
    save_folder(TRANSCODERS, layers, Path(folder), dtype)


def save_cross_layer_transcoders(
    layers: Sequence[CrossLayerTranscoder | None],
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a cross-layer transcoder, one part per layer, to `folder`: all or nothing.

    Raises ValueError for no layers, and for values that `dtype` cannot hold.
    """
    save_folder(CROSS_LAYER_TRANSCODERS, layers, Path(folder), dtype)


def save_lorsa(
    layers: Sequence[Lorsa | None], folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write one Lorsa per attention layer to `folder`, None where a layer has none: all or nothing.

    Raises ValueError for no layers, and for values that `dtype` cannot hold.
    """
    save_folder(LORSA, layers, Path(folder), dtype)


def save_attention_saes(
    layers: Sequence[AttentionSAE | None],
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write one SAE per attention output to `folder`, None where a layer has none: all or nothing.

    Raises ValueError for no layers, and for values that `dtype` cannot hold.
    """
    save_folder(ATTENTION_SAES, layers, Path(folder), dtype)


def save_residual_saes(
    layers: Sequence[ResidualSAE | None],
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write one SAE per stage of the residual stream to `folder`, None where there is none.

    Two stages a layer, entering it and entering its MLP, and the last one entering the final norm.
    Raises ValueError for no layers, and for values that `dtype` cannot hold.
    """
    save_folder(RESIDUAL_SAES, layers, Path(folder), dtype)


def load_transcoders(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Transcoder | None]:
    """Return the transcoders of `folder`, one per layer (None: absent), in `dtype` on `device`.

    Raises FileNotFoundError for a missing folder or file, ValueError for anything in them that
    does not fit: both say what was found and what was looked for.
    """
    return load_folder(TRANSCODERS, Path(folder), device, dtype)


def load_cross_layer_transcoders(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[CrossLayerTranscoder | None]:
    """Return the cross-layer transcoder of `folder`, one part per layer (None: absent).

    Raises what `load_transcoders` does.
    """
    return load_folder(CROSS_LAYER_TRANSCODERS, Path(folder), device, dtype)


def load_lorsa(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Lorsa | None]:
    """Return the Lorsa of `folder`, one per layer (None: absent), in `dtype` on `device`.

    Raises what `load_transcoders` does.
    """
    return load_folder(LORSA, Path(folder), device, dtype)


def load_attention_saes(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[AttentionSAE | None]:
    """Return the SAEs of `folder`, one per layer (None: absent), in `dtype` on `device`.

    Raises what `load_transcoders` does.
    """
    return load_folder(ATTENTION_SAES, Path(folder), device, dtype)


def load_residual_saes(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[ResidualSAE | None]:
    """Return the SAEs of `folder`, one per stage of the residual stream (None: absent).

    Raises what `load_transcoders` does.
    """
    return load_folder(RESIDUAL_SAES, Path(folder), device, dtype)
