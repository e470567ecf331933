"""The weights the held map reads: views of the Hugging Face model's own, sublayer by sublayer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement.families import Family, HeadWeights
from replacement.layers import AttentionSAE, FeatureLayer, Lorsa, QueryKey
from replacement.norms import Norm


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block: attention read as heads or through a layer, MLP as features."""

    attention_norm: Norm
    heads: HeadWeights
    attention: Lorsa | AttentionSAE | None
    """What attention is read through; None for the model's own heads."""
    mlp_norm: Norm
    mlp: FeatureLayer


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
        return self.unembedding.mean(0)


def read_weights(
    model: nn.Module,
    family: Family,
    mlps: Sequence[FeatureLayer | None],
    attentions: Sequence[Lorsa | AttentionSAE | None],
) -> ModelWeights:
    """Return the weights of a Hugging Face model; its own parts where a layer is None."""
    blocks: Any = model.get_submodule(family.layers)
    layers = []
    for block, mlp, attention in zip(blocks, mlps, attentions, strict=True):
        layers.append(
            LayerWeights(
                attention_norm=_norm(block.get_submodule(family.attention_norm), family),
                heads=family.head_weights(block.get_submodule(family.attention)),
                attention=attention,
                mlp_norm=_norm(block.get_submodule(family.mlp_norm), family),
                mlp=_neurons(model, block, family) if mlp is None else mlp,
            )
        )
    unembedding: Any = model.get_submodule(family.unembedding)
    positions = None
    if family.position_embedding is not None:
        embedding: Any = model.get_submodule(family.position_embedding)
        positions = embedding.weight.detach()
    return ModelWeights(
        position_embedding=positions,
        layers=layers,
        final_norm=_norm(model.get_submodule(family.final_norm), family),
        unembedding=unembedding.weight.detach(),
        unembedding_bias=None if unembedding.bias is None else unembedding.bias.detach(),
    )


def _neurons(model: nn.Module, block: nn.Module, family: Family) -> FeatureLayer:
    activation = getattr(model.config, family.activation_function)
    return family.neurons(block.get_submodule(family.mlp), activation)


def _norm(module: nn.Module, family: Family) -> Norm:
    bias = getattr(module, "bias", None)
    return Norm(
        gain=torch.as_tensor(module.weight).detach(),
        bias=None if bias is None else torch.as_tensor(bias).detach(),
        eps=float(getattr(module, family.norm_eps)),
        centred=family.norm_centred,
    )
