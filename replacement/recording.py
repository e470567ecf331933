"""From one recorded forward pass to a Run: features encoded, scales held, errors left over."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.layer_run import AttentionRun, LayerRun, MLPRun
from replacement.layers import AttentionSAE, FeatureLayer, Lorsa
from replacement.norms import Norm
from replacement.run import Run
from replacement.tracing import LayerRecord, Record, Sublayer, Substitute
from replacement.weights import LayerWeights, ModelWeights


def run_of_record(
    record: Record,
    weights: ModelWeights,
    token_ids: Int[Tensor, " pos"],
    *,
    model: Any,
    prompt: str | None,
    tokens: list[str],
    errors: bool,
) -> Run:
    """Return the run of a recorded pass over `token_ids`; `model` is kept as its origin.

    Without `errors` the record is of a model whose sublayers the layers replaced, and nothing is
    left over.
    """
    entering = record.layers[0].residual
    positions = weights.position_embedding
    position_writes = (
        torch.zeros_like(entering) if positions is None else positions[: entering.shape[0]]
    )
    residuals, layers = [], []
    for layer, block in zip(record.layers, weights.layers, strict=True):
        between = layer.residual + layer.attention
        residuals += [layer.residual, between]
        layers.append(
            LayerRun(
                _attention_run(layer, block, errors=errors),
                _mlp_run(layer, block, between, errors=errors),
            )
        )
    return Run(
        model=model,
        weights=weights,
        prompt=prompt,
        token_ids=token_ids,
        tokens=tokens,
        errors=errors,
        logits=record.logits,
        token_writes=entering - position_writes,
        position_writes=position_writes,
        layers=layers,
        residuals=[*residuals, record.residual],
        final_scale=weights.final_norm.scale(record.residual),
    )


def _attention_run(layer: LayerRecord, block: LayerWeights, *, errors: bool) -> AttentionRun:
    norm, reading = block.attention_norm, block.attention
    scale = norm.scale(layer.residual)
    y = norm.apply(layer.residual, scale)
    if isinstance(reading, Lorsa):
        pattern = reading.query_key.pattern(y)
        active = reading.encode(y, pattern)
        output = reading.decode(active, y)
        error = _left(layer.attention, output, errors=errors)
        return AttentionRun(pattern, scale, None, active, output, error)
    heads = block.heads
    mixed = heads.mix(layer.pattern, y)
    if reading is None:
        # Heads and neurons are the sublayer itself: what it wrote needs no rebuilding, and a wrong
        # weight shows as broken closure instead of hiding in an error.
        none = torch.zeros_like(layer.attention)
        return AttentionRun(layer.pattern, scale, mixed, None, layer.attention, none)
    written = heads.write(mixed)
    active = reading.encode(written)
    output = reading.decode(active, written)
    error = _left(layer.attention, output, errors=errors)
    return AttentionRun(layer.pattern, scale, mixed, active, output, error)


def _mlp_run(
    layer: LayerRecord, block: LayerWeights, stream: Float[Tensor, "pos d_model"], *, errors: bool
) -> MLPRun:
    scale = block.mlp_norm.scale(stream)
    y = block.mlp_norm.apply(stream, scale)
    active = block.mlp.encode(y)
    output = layer.mlp if block.mlp.exact else block.mlp.decode(active, y)
    return MLPRun(
        scale=scale,
        active=active,
        skip_output=None if block.mlp.skip is None else y @ block.mlp.skip.T,
        output=output,
        error=_left(layer.mlp, output, errors=errors),
    )


def _left(
    written: Float[Tensor, "pos d_model"], output: Float[Tensor, "pos d_model"], *, errors: bool
) -> Float[Tensor, "pos d_model"]:
    """What a layer misses of what was written: nothing where it wrote it itself."""
    return written - output if errors else torch.zeros_like(written)


def substitutes(weights: ModelWeights) -> dict[Sublayer, Substitute]:
    """Return what stands in for every sublayer that is read through a replacement layer."""
    found: dict[Sublayer, Substitute] = {}
    for number, block in enumerate(weights.layers):
        if isinstance(block.attention, AttentionSAE):
            found[number, "attn"] = partial(_of_output, block.attention)
        elif block.attention is not None:
            found[number, "attn"] = partial(_of_stream, block.attention, block.attention_norm)
        if not block.mlp.exact:
            found[number, "mlp"] = partial(_of_stream, block.mlp, block.mlp_norm)
    return found


def _of_stream(layer: FeatureLayer, norm: Norm, stream: Tensor, _output: Tensor) -> Tensor:
    y = norm.apply(stream, norm.scale(stream))
    # the gates recorded afterwards are those of explicit patterns
    return layer.forward(y, fused=False) if isinstance(layer, Lorsa) else layer.forward(y)


def _of_output(layer: FeatureLayer, _stream: Tensor, output: Tensor) -> Tensor:
    return layer.forward(output)
