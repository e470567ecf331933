"""From one recorded forward pass to a Run: features encoded, scales held, errors left over."""

from typing import Any

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .run import LayerRun, Run
from .tracing import LayerRecord, Record
from .weights import LayerWeights, ModelWeights


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
    attention_output = (
        einops.rearrange(mixed, "pos head d_head -> pos (head d_head)") @ heads.output
    )
    if heads.output_bias is not None:
        attention_output = attention_output + heads.output_bias

    mlp_scale = block.mlp_norm.scale(between)
    y = block.mlp_norm.apply(between, mlp_scale)
    active = block.mlp.encode(y)
    mlp_output = block.mlp.decode(active, y)
    return LayerRun(
        pattern=layer.pattern,
        attention_scale=attention_scale,
        mixed=mixed,
        attention_output=attention_output,
        attention_error=layer.attention - attention_output,
        mlp_scale=mlp_scale,
        active=active,
        skip_output=None if block.mlp.skip is None else y @ block.mlp.skip.T,
        mlp_output=mlp_output,
        mlp_error=layer.mlp - mlp_output,
    )
