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
                _mlp_run(
                    layer, block, layer.residual if block.parallel else between, errors=errors
                ),
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
        active, mixed = reading.encode(y, pattern), None
        raw = reading.decode(active, y)
    else:
        pattern, active = layer.pattern, None
        mixed = block.heads.mix(pattern, y)
        raw = layer.attention_raw
        if reading is not None:
            written = block.heads.write(mixed)
            active = reading.encode(written)
            raw = reading.decode(active, written)
    post, post_scale = block.attention_writes_through, None
    if post is not None:
        post_scale = post.scale(layer.attention_raw if errors else raw)
    # Heads and neurons are the sublayer itself: what it wrote needs no rebuilding, and a wrong
    # weight shows as broken closure instead of hiding in an error.
    output = layer.attention if reading is None else _joining(raw, post, post_scale)
    error = _left(layer.attention, output, errors=errors)
    return AttentionRun(pattern, scale, mixed, active, output, error, post_scale)


def _mlp_run(
    layer: LayerRecord, block: LayerWeights, stream: Float[Tensor, "pos d_model"], *, errors: bool
) -> MLPRun:
    scale = block.mlp_norm.scale(stream)
    y = block.mlp_norm.apply(stream, scale)
    active = block.mlp.encode(y)
    raw = layer.mlp_raw if block.mlp.exact else block.mlp.decode(active, y)
    post, post_scale = block.mlp_writes_through, None
    if post is not None:
        post_scale = post.scale(layer.mlp_raw if errors else raw)
    output = layer.mlp if block.mlp.exact else _joining(raw, post, post_scale)
    return MLPRun(
        scale=scale,
        active=active,
        skip_output=None if block.mlp.skip is None else y @ block.mlp.skip.T,
        output=output,
        error=_left(layer.mlp, output, errors=errors),
        post_scale=post_scale,
    )


def _joining(
    raw: Float[Tensor, "pos d_model"],
    post: Norm | None,
    scale: Float[Tensor, " pos"] | None,
) -> Float[Tensor, "pos d_model"]:
    """What a layer's output adds to the residual stream."""
    return raw if post is None or scale is None else post.apply(raw, scale)


def _left(
    written: Float[Tensor, "pos d_model"], output: Float[Tensor, "pos d_model"], *, errors: bool
) -> Float[Tensor, "pos d_model"]:
    """What a layer misses of what was written: nothing where it wrote it itself."""
    return written - output if errors else torch.zeros_like(written)


def substitutes(weights: ModelWeights) -> dict[Sublayer, Substitute]:
    """Return what stands in for every sublayer that is read through a replacement layer."""
    found: dict[Sublayer, Substitute] = {}
    for number, block in enumerate(weights.layers):
        post = block.attention_writes_through
        if isinstance(block.attention, AttentionSAE):
            found[number, "attn"] = partial(_of_output, block.attention, post)
        elif block.attention is not None:
            found[number, "attn"] = partial(_of_stream, block.attention, block.attention_norm, post)
        if not block.mlp.exact:
            found[number, "mlp"] = partial(
                _of_stream, block.mlp, block.mlp_norm, block.mlp_writes_through
            )
    return found


def _of_stream(
    layer: FeatureLayer, norm: Norm, post: Norm | None, stream: Tensor, _raw: Tensor
) -> Tensor:
    y = norm.apply(stream, norm.scale(stream))
    # the gates recorded afterwards are those of explicit patterns
    made = layer.forward(y, fused=False) if isinstance(layer, Lorsa) else layer.forward(y)
    return _fresh(post, made)


def _of_output(layer: FeatureLayer, post: Norm | None, _stream: Tensor, raw: Tensor) -> Tensor:
    return _fresh(post, layer.forward(raw))


def _fresh(post: Norm | None, raw: Tensor) -> Tensor:
    """What a reconstruction adds to the stream, a norm after it computing its own scale."""
    return raw if post is None else post.apply(raw, post.scale(raw))
