"""From one recorded forward pass to a Run: features encoded, scales held, errors left over."""

from typing import Any

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.run import LayerRun, Run
from replacement.tracing import LayerRecord, Record
from replacement.weights import LayerWeights, ModelWeights


def run_of_record(
    record: Record,
    weights: ModelWeights,
    token_ids: Int[Tensor, " pos"],
    *,
    model: Any,
    prompt: str | None,
    tokens: list[str],
) -> Run:
    """Return the run of a recorded pass over `token_ids`; `model` is kept as its origin."""
    entering = record.layers[0].residual
    positions = weights.position_embedding
    position_writes = (
        torch.zeros_like(entering) if positions is None else positions[: entering.shape[0]]
    )
    residuals, layers = [], []
    for layer, block in zip(record.layers, weights.layers, strict=True):
        between = layer.residual + layer.attention
        residuals += [layer.residual, between]
        layers.append(_layer_run(layer, block, between))
    return Run(
        model=model,
        weights=weights,
        prompt=prompt,
        token_ids=token_ids,
        tokens=tokens,
        logits=record.logits,
        token_writes=entering - position_writes,
        position_writes=position_writes,
        layers=layers,
        residuals=[*residuals, record.residual],
        final_scale=weights.final_norm.scale(record.residual),
    )


def _layer_run(
    layer: LayerRecord, block: LayerWeights, between: Float[Tensor, "pos d_model"]
) -> LayerRun:
    heads = block.heads
    attention_scale = block.attention_norm.scale(layer.residual)
    values = block.attention_norm.apply(layer.residual, attention_scale) @ heads.value
    if heads.value_bias is not None:
        values = values + heads.value_bias
    mixed = einops.einsum(
        layer.pattern,
        einops.rearrange(values, "key (head d_head) -> key head d_head", head=heads.n_heads),
        "head query key, key head d_head -> query head d_head",
    )
    mlp_scale = block.mlp_norm.scale(between)
    y = block.mlp_norm.apply(between, mlp_scale)
    active = block.mlp.encode(y)
    # Heads and neurons are the sublayer itself: what it wrote needs no rebuilding, and a wrong
    # weight shows as broken closure instead of hiding in an error.
    mlp_output = layer.mlp if block.mlp.exact else block.mlp.decode(active, y)
    return LayerRun(
        pattern=layer.pattern,
        attention_scale=attention_scale,
        mixed=mixed,
        attention_output=layer.attention,
        attention_error=torch.zeros_like(layer.attention),
        mlp_scale=mlp_scale,
        active=active,
        skip_output=None if block.mlp.skip is None else y @ block.mlp.skip.T,
        mlp_output=mlp_output,
        mlp_error=layer.mlp - mlp_output,
    )
