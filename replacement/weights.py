"""The weights the held map reads: views of the Hugging Face model's own, sublayer by sublayer."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement.families import Family, HeadWeights, family_of
from replacement.layers import (
    AttentionSAE,
    FeatureLayer,
    GatedNeurons,
    HalvedNeurons,
    Lorsa,
    QueryKey,
    ResidualSAE,
)
from replacement.norms import NO_NORM, Norm


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block: attention read as heads or through a layer, MLP as features."""

    attention_norm: Norm
    heads: HeadWeights
    attention: Lorsa | AttentionSAE | None
    """What attention is read through; None for the model's own heads."""
    mlp_norm: Norm
    mlp: FeatureLayer
    attention_post_norm: Norm | None = None
    """Between attention and the residual stream (Gemma-2, Gemma-3)."""
    mlp_post_norm: Norm | None = None
    parallel: bool = False
    """True if the MLP reads the stream that attention reads."""

    @property
    def attention_writes_through(self) -> Norm | None:
        """The norm after attention, unless the layer was trained on what comes out of it."""
        after = self.attention is not None and self.attention.after_post_norm
        return None if after else self.attention_post_norm

    @property
    def mlp_reads_through(self) -> Norm:
        """The norm before the MLP, unless the layer was trained on what enters it."""
        return NO_NORM if self.mlp.reads_stream else self.mlp_norm

    @property
    def mlp_writes_through(self) -> Norm | None:
        """The norm after the MLP, unless the layer was trained on what comes out of it."""
        return None if self.mlp.after_post_norm else self.mlp_post_norm


@dataclass(frozen=True)
class ModelWeights:
    """A whole model.

    Stage `2·layer` enters attention, `2·layer + 1` the MLP, `2·n_layers` the final norm.
    """

    position_embedding: Float[Tensor, "n_context d_model"] | None
    layers: list[LayerWeights]
    final_norm: Norm
    unembedding: Float[Tensor, "d_vocab d_model"]
    unembedding_bias: Float[Tensor, " d_vocab"] | None
    logit_soft_cap: float | None = None
    """The model's logits are `cap · tanh(logit / cap)` (Gemma-2); None where they are raw."""
    streams: Mapping[int, ResidualSAE] = field(default_factory=dict)
    """Stages at which the residual stream is read as features, in order."""

    def raw_logits(
        self,
        logits: Float[Tensor, " d_vocab"],
        residual: Float[Tensor, " d_model"],
        scale: Float[Tensor, ""],
    ) -> Float[Tensor, " d_vocab"]:
        """Return the logits of one position before any soft-cap: the model's own where it has none.

        A soft-cap cannot be undone where it saturates, so behind one they are computed anew.
        """
        if self.logit_soft_cap is None:
            return logits
        raw = self.unembedding @ self.final_norm.apply(residual[None], scale[None])[0]
        return raw if self.unembedding_bias is None else raw + self.unembedding_bias

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def d_vocab(self) -> int:
        return self.unembedding.shape[0]

    @property
    def d_model(self) -> int:
        return self.unembedding.shape[1]

    def query_key(self, layer: int) -> QueryKey:
        """Return where the heads of a layer look: Lorsa's query-key heads, or the model's own."""
        block = self.layers[layer]
        lorsa = block.attention
        return lorsa.query_key if isinstance(lorsa, Lorsa) else block.heads.query_key

    @cached_property
    def mean_unembedding(self) -> Float[Tensor, " d_model"]:
        """The mean row of the unembedding, which a centred logit leaves out."""
        return torch.cat([part.mean(0) for part in self.unembedding.split(256, dim=1)])


def read_weights(
    model: nn.Module,
    family: Family,
    mlps: Sequence[FeatureLayer | None],
    attentions: Sequence[Lorsa | AttentionSAE | None],
    streams: Mapping[int, ResidualSAE],
    *,
    halved: bool,
) -> ModelWeights:
    """Return the weights of a Hugging Face model; its own parts where a layer is None.

    `halved`: gated neurons read through both branches.
    """
    blocks: Any = model.get_submodule(family.layers)
    layers = []
    for block, mlp, attention in zip(blocks, mlps, attentions, strict=True):
        layers.append(
            LayerWeights(
                attention_norm=_norm(block.get_submodule(family.attention_norm), family),
                heads=family.heads(block, model),
                attention=attention,
                mlp_norm=_norm(block.get_submodule(family.mlp_norm), family),
                mlp=_neurons(model, block, family, halved=halved) if mlp is None else mlp,
                attention_post_norm=_post_norm(block, family.attention_post_norm, family),
                mlp_post_norm=_post_norm(block, family.mlp_post_norm, family),
                parallel=family.parallel(model.config),
            )
        )
    unembedding: Any = model.get_submodule(family.unembedding)
    positions = None
    if family.position_embedding is not None:
        embedding: Any = model.get_submodule(family.position_embedding)
        positions = embedding.weight.detach()[family.position_offset :]
    return ModelWeights(
        position_embedding=positions,
        layers=layers,
        final_norm=_norm(model.get_submodule(family.final_norm), family),
        unembedding=unembedding.weight.detach(),
        unembedding_bias=None if unembedding.bias is None else unembedding.bias.detach(),
        logit_soft_cap=getattr(model.config, "final_logit_softcapping", None),
        streams=streams,
    )


class Norms(NamedTuple):
    """The norms that sublayers read through, first layer first."""

    attention: list[Norm]
    mlp: list[Norm]


def norms_of(model: nn.Module) -> Norms:
    """Return the norms of a Hugging Face model before each attention layer and each MLP."""
    family = family_of(model)
    blocks = list(model.get_submodule(family.layers).children())
    return Norms(
        [_norm(block.get_submodule(family.attention_norm), family) for block in blocks],
        [_norm(block.get_submodule(family.mlp_norm), family) for block in blocks],
    )


def _neurons(model: nn.Module, block: nn.Module, family: Family, *, halved: bool) -> FeatureLayer:
    activation = getattr(model.config, family.activation_function)
    neurons = family.neurons(block, activation)
    if halved and isinstance(neurons, GatedNeurons):
        return HalvedNeurons(
            **{field.name: getattr(neurons, field.name) for field in dataclasses.fields(neurons)}
        )
    return neurons


def _post_norm(block: nn.Module, path: str | None, family: Family) -> Norm | None:
    return None if path is None else _norm(block.get_submodule(path), family)


def _norm(module: nn.Module, family: Family) -> Norm:
    bias = getattr(module, "bias", None)
    gain = None
    if module.weight is not None:
        gain = torch.as_tensor(module.weight).detach()
        gain = gain + family.gain_offset if family.gain_offset else gain
    return Norm(
        gain=gain,
        bias=None if bias is None else torch.as_tensor(bias).detach(),
        eps=float(getattr(module, family.norm_eps)),
        centred=family.norm_centred,
    )
