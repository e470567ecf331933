"""What each class of layers looks like in a folder of ours: names, axes, settings.

One `Layout` a class says which tensors a layer's file holds; the functions below take a layer apart
into them and put it together again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor

from replacement.checkpoints.query_keys import (
    QUERY_KEY_OPTIONAL,
    QUERY_KEY_REQUIRED,
    query_key_from,
    query_key_settings,
    query_key_tensors,
)
from replacement.layers import (
    AttentionSAE,
    CrossLayerTranscoder,
    FeatureLayer,
    JumpReLU,
    Lorsa,
    ResidualSAE,
    Transcoder,
    activation_from_settings,
)

Kind = Literal["transcoders", "cross-layer-transcoders", "lorsa", "attention-saes", "residual-saes"]
Layer = TypeVar("Layer", bound=FeatureLayer)
SHARED = {
    "read_bias": "feature",
    "write_bias": "d_model",
    "read": "feature d_model",
    "write": "feature d_model",
}
STREAM = "residual stream before the MLP's norm"
ADDED = " after the norm that follows it"
OPTIONAL = {"threshold": "feature", "gate_scale": "feature"}


@dataclass(frozen=True)
class Layout(Generic[Layer]):
    """The files of one class of layers."""

    kind: Kind
    layer: type[Layer]
    argument: str
    """Which argument of `load` such layers are for."""
    instead: str
    """Its value for a model without such layers."""
    hooks: dict[str, str]
    """What the layers read and reproduce, for people who open config.json."""
    required: dict[str, str]
    """Axes of the tensors that every layer has."""
    optional: dict[str, str]
    settings: tuple[str, ...] = ("activation",)
    """Which lists config.json holds, one entry a layer, null where a layer is absent."""

    def described(self, layers: Sequence[Layer]) -> dict[str, str]:
        """Return `hooks` as the flags of the layers change them; both texts where layers differ."""
        inputs = [STREAM if layer.reads_stream else self.hooks["input"] for layer in layers]
        added = [layer.after_post_norm for layer in layers]
        outputs = [self.hooks["output"] + (ADDED if one else "") for one in added]
        if isinstance(layers[0], AttentionSAE):  # which reads what it reproduces
            inputs = outputs
        named = (("input", inputs), ("output", outputs))
        return {name: " or ".join(dict.fromkeys(texts)) for name, texts in named}

    def function(self, verb: str) -> str:
        """Return the name of the function that saves or loads such a folder."""
        return f"{verb}_{self.kind.replace('-', '_')}"


TRANSCODERS = Layout(
    kind="transcoders",
    layer=Transcoder,
    argument="mlp",
    instead="neurons",
    hooks={"input": "normed MLP input, gain and bias included", "output": "MLP output"},
    required=SHARED,
    optional={**OPTIONAL, "skip": "d_model d_model"},
)
CROSS_LAYER_TRANSCODERS = Layout(
    kind="cross-layer-transcoders",
    layer=CrossLayerTranscoder,
    argument="mlp",
    instead="neurons",
    hooks={
        "input": "normed MLP input, gain and bias included",
        "output": "outputs of this MLP and of those after it, side by side",
    },
    required={**SHARED, "write": "feature target_times_d_model"},
    optional={**OPTIONAL, "skip": "d_model d_model"},
)
ATTENTION_SAES = Layout(
    kind="attention-saes",
    layer=AttentionSAE,
    argument="attention",
    instead="heads",
    hooks={"input": "attention output", "output": "attention output"},
    required=SHARED,
    optional=OPTIONAL,
)
RESIDUAL_SAES = Layout(
    kind="residual-saes",
    layer=ResidualSAE,
    argument="residual",
    instead="stream",
    hooks={
        "input": "residual stream; number 2 L enters layer L, 2 L + 1 its MLP, the last one the "
        "final norm",
        "output": "the same",
    },
    required=SHARED,
    optional=OPTIONAL,
)
LORSA = Layout(
    kind="lorsa",
    layer=Lorsa,
    argument="attention",
    instead="heads",
    hooks={"input": "normed attention input, gain and bias included", "output": "attention output"},
    required={**SHARED, **QUERY_KEY_REQUIRED},
    optional={**OPTIONAL, **QUERY_KEY_OPTIONAL},
    settings=("activation", "query_key"),
)
LAYOUTS: dict[Kind, Layout] = {
    layout.kind: layout
    for layout in (TRANSCODERS, CROSS_LAYER_TRANSCODERS, ATTENTION_SAES, RESIDUAL_SAES, LORSA)
}


def tensors_of(layer: FeatureLayer) -> dict[str, Tensor]:
    """Return every tensor of a layer by its name in a file."""
    found = {name: getattr(layer, name) for name in (*SHARED, "gate_scale", "skip")}
    if isinstance(layer.activation, JumpReLU):
        found["threshold"] = layer.activation.threshold
    if isinstance(layer, Lorsa):
        found |= query_key_tensors(layer.query_key)
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def settings_of(layer: FeatureLayer) -> dict[str, Any]:
    """Return what config.json says of a layer: one entry a list."""
    settings: dict[str, Any] = {"activation": layer.activation.settings()}
    if isinstance(layer, Lorsa):
        settings["query_key"] = query_key_settings(layer.query_key)
    return settings


def layer_from(
    layout: Layout[Layer], tensors: dict[str, Tensor], settings: dict[str, Any]
) -> Layer:
    """Return the layer that `tensors_of` and `settings_of` took apart.

    Raises ValueError for settings that are unknown or do not fit the tensors.
    """
    for name, entry in settings.items():
        if not isinstance(entry, dict):
            raise ValueError(
                f'"{name}" is {entry!r:.80} for a layer that is there; it holds settings by name, '
                f"or null with all of {', '.join(layout.settings)} where the layer is absent."
            )
    activation = activation_from_settings(settings["activation"], tensors.get("threshold"))
    if "threshold" in tensors and not isinstance(activation, JumpReLU):
        raise ValueError(
            f"there is a threshold a feature, but the settings say {settings['activation']}. Only "
            "jumprelu has one; correct the settings."
        )
    names = [name for name in (*SHARED, "gate_scale", "skip") if name in tensors]
    parts: dict[str, Any] = {"activation": activation, **{name: tensors[name] for name in names}}
    if "query_key" in layout.settings:
        parts["query_key"] = query_key_from(settings["query_key"], tensors)
    return layout.layer(**parts)
