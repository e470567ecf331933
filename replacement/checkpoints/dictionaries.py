"""What the readers of other projects share: from checked tensors to a layer in the model's units.

A dictionary's own arithmetic is brought to that of our layers, which read `y`, the normed input
with gain and bias, and write what the sublayer adds. Every step keeps the function exactly, up to
bfloat16's rounding of what was folded where matrices are kept in it.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.checkpoints.places import Place, place, sublayer_of
from replacement.layers import (
    Activation,
    AttentionSAE,
    BatchTopK,
    CrossLayerTranscoder,
    JumpReLU,
    ReLU,
    ResidualSAE,
    TopK,
    Transcoder,
)
from replacement.norms import Norm
from replacement.precision import kept_in, matrices_kept_in

Dictionary = Transcoder | CrossLayerTranscoder | AttentionSAE | ResidualSAE


@dataclass(frozen=True)
class Wanted:
    """How layers are to be read: what their files may leave open."""

    norms: Sequence[Norm] | None = None
    """The norm before each sublayer that the dictionaries stand in for, first layer first."""
    threshold: int | float | None = None
    """BatchTopK only, where the file has none."""
    hooks: tuple[str, str] | None = None
    """What is read and reproduced, in TransformerLens' names after `blocks.L.`."""
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32


def placed(
    where: object,
    names: tuple[str, str],
    hooks: tuple[object, object],
    wanted: Wanted,
) -> tuple[Place, Place]:
    """Return where a dictionary reads and writes, from the hooks that its files give.

    `names`: what the files call the two. Raises ValueError where they are not what was asked for.
    """
    found = (place(where, names[0], hooks[0]), place(where, names[1], hooks[1]))
    if wanted.hooks is not None:
        asked = asked_places(where, wanted.hooks, found[0].layer)
        if [spot.point for spot in asked] != [spot.point for spot in found]:
            raise ValueError(
                f"{where}: {names[0]} is {found[0].hook} and {names[1]} {found[1].hook}, but "
                f"hooks={wanted.hooks} was asked for. Leave hooks= out: these files say it."
            )
    return found


def asked_places(where: object, hooks: tuple[str, str], layer: int) -> tuple[Place, Place]:
    """Return the two places of a layer that `hooks=` names."""
    reads, writes = (place(where, "hooks=", f"blocks.{layer}.{hook}") for hook in hooks)
    return reads, writes


def converted(
    tensors: Mapping[str, Tensor], dtype: torch.dtype, *, transposed: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return tensors in `dtype`, those named in `transposed` with their two axes exchanged."""
    return {
        name: kept_in(tensor.T.contiguous() if name in transposed else tensor, dtype)
        for name, tensor in tensors.items()
    }


def activation_of(
    where: object,
    name: object,
    wanted: Wanted,
    *,
    k: object = None,
    thresholds: Float[Tensor, " feature"] | None = None,
) -> Activation:
    """Return the activation of a name: relu, topk, jumprelu or batchtopk, with what it needs."""
    if wanted.threshold is not None and name != "batchtopk":
        raise ValueError(
            f"{where}: threshold= is for batchtopk; the activation is {name!r}. Leave it out."
        )
    if thresholds is not None and name != "jumprelu":
        raise ValueError(
            f"{where}: there is a threshold a feature, but the activation is {name!r}. Only "
            "jumprelu has one; correct the settings."
        )
    if name == "relu":
        return ReLU()
    if name == "topk" and isinstance(k, int) and not isinstance(k, bool) and k > 0:
        return TopK(k)
    if name == "topk":
        raise ValueError(f"{where}: topk with k {k!r}; it is a whole number above 0. Correct it.")
    if name == "jumprelu" and thresholds is not None:
        return JumpReLU(thresholds)
    if name == "batchtopk" and wanted.threshold is not None:
        return BatchTopK(float(wanted.threshold))
    if name == "batchtopk":
        raise ValueError(
            f"{where}: batchtopk without inference threshold, and pooling over a prompt would let "
            "later tokens change earlier gates. Pass threshold=, the running mean of the smallest "
            "value kept in training, to replacement.checkpoints.read_layers, and give load the "
            "layers it returns."
        )
    raise ValueError(
        f"{where}: the activation is {name!r}; known: relu, topk, batchtopk, and jumprelu with a "
        "threshold a feature. Correct it if it is misspelt."
    )


def dictionary(
    where: object,
    places: tuple[Place, Place],
    parts: Mapping[str, Any],
) -> Dictionary:
    """Return a layer of the class that fits its two places, its fields as given.

    Raises ValueError for places that no class fits.
    """
    sublayer = sublayer_of(where, *places)
    after = places[1].point.endswith("added")
    if sublayer == "mlp":
        stream = places[0].point == "mlp stream"
        return Transcoder(**parts, after_post_norm=after, reads_stream=stream)
    if parts.get("skip") is not None:
        raise ValueError(
            f"{where}: an SAE of {places[0].hook} with a skip connection, which would copy what it "
            "is to explain. Give a folder without one."
        )
    kept = {name: part for name, part in parts.items() if name != "skip"}
    if sublayer == "stream":
        return ResidualSAE(**kept)
    return AttentionSAE(**kept, after_post_norm=after)


def cross_layer(
    where: object, places: tuple[Place, Place], parts: Mapping[str, Any]
) -> CrossLayerTranscoder:
    """Return one layer of a cross-layer transcoder; raises ValueError unless it is of an MLP."""
    if sublayer_of(where, *places) != "mlp":
        raise ValueError(
            f"{where}: a cross-layer transcoder that reads {places[0].hook}; MLPs alone have them. "
            "Correct the hooks."
        )
    return CrossLayerTranscoder(
        **parts,
        after_post_norm=places[1].point.endswith("added"),
        reads_stream=places[0].point == "mlp stream",
    )


def subtracting(layer: Dictionary, shift: Float[Tensor, " d_model"]) -> Dictionary:
    """Return a layer whose features do with `y` what those of `layer` do with `y - shift`.

    The skip still reads `y`.
    """
    return dataclasses.replace(layer, read_bias=layer.read_bias - layer.read @ shift)


def in_model_units(
    where: object, layer: Dictionary, reads: Place, wanted: Wanted, *, folded: bool = False
) -> Dictionary:
    """Return a layer that reads `y` from one that reads what the hook of `reads` holds.

    The last step: its matrices are in the type wanted, whatever was folded into them.
    `folded`: the gain and bias of the norm were folded into the weights where the dictionary was
    trained, so that LayerNorm's hook lacks them, as RMS norm's always does.
    """
    if reads.point not in ("mlp norm", "attention norm"):
        return matrices_kept_in(layer, wanted.dtype)
    if wanted.norms is None:
        raise ValueError(
            f"{where}: reads {reads.hook}, which an RMS norm takes before its gain and a LayerNorm "
            "after gain and bias; the files do not say which the model has. Pass norms=, the "
            "model's own: [layer.mlp_norm for layer in model.weights.layers]."
        )
    norm = norm_of(where, reads.layer, wanted.norms)
    if folded or not norm.centred:
        layer = before_gain(where, layer, norm)
    return matrices_kept_in(layer, wanted.dtype)


def norm_of(where: object, layer: int, norms: Sequence[Norm]) -> Norm:
    """Return the norm of a layer; raises ValueError for a layer that the model does not have."""
    if layer >= len(norms):
        raise ValueError(
            f"{where}: a dictionary of layer {layer}, for a model of {len(norms)} layers. Give "
            "the dictionaries of this model."
        )
    return norms[layer]


def before_gain(where: object, layer: Dictionary, norm: Norm) -> Dictionary:
    """Return a layer that does with `gain · u + bias` what `layer` does with `u`."""
    read, write_bias, skip = layer.read, layer.write_bias, layer.skip
    read_bias = layer.read_bias
    if norm.gain is not None:
        factor = (1 / sound_gain(where, norm.gain, layer.read.shape[1])).to(read)
        read = read * factor
        skip = None if skip is None else skip * factor
    if norm.bias is not None:
        shift = norm.bias.to(read)
        read_bias = read_bias - read @ shift
        write_bias = write_bias if skip is None else write_bias - skip @ shift
    changes: dict[str, Any] = {"read": read, "read_bias": read_bias, "write_bias": write_bias}
    if skip is not None:
        changes["skip"] = skip
    return dataclasses.replace(layer, **changes)


def sound_gain(
    where: object, gain: Float[Tensor, " d_norm"], width: int
) -> Float[Tensor, " d_norm"]:
    """Return a norm's gain; raises ValueError unless it fits the layer and can be divided by."""
    if len(gain) != width:
        raise ValueError(
            f"{where}: reads vectors of {width}, the model's norm has {len(gain)} factors. Give "
            "the dictionaries of this model."
        )
    if not torch.isfinite(gain).all() or (gain == 0).any():
        raise ValueError(
            f"{where}: the model's norm has a gain of 0 (or NaN), which hides a coordinate that "
            "the dictionary was trained on, so it cannot be undone. Give the model that it was "
            "trained on."
        )
    return gain


def mean_scale(where: object, name: str, mean: object, d_model: int) -> float:
    """Return what training multiplied vectors of a mean norm with, so that it was √d_model."""
    if not isinstance(mean, int | float) or isinstance(mean, bool) or not 0 < mean < math.inf:
        raise ValueError(
            f"{where}: {name} is {mean!r}. The mean norms of what is read and of what is "
            "reproduced are needed to bring the layer to the model's units: numbers above 0."
        )
    return math.sqrt(d_model) / mean
