"""From one recorded forward pass to a Run: features encoded, scales held, errors left over."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.held import NAMES
from replacement.layer_run import AttentionRun, LayerRun, MLPRun, StreamRun
from replacement.layers import Active, AttentionSAE, FeatureLayer, Lorsa, ResidualSAE
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
    arriving = [torch.zeros_like(entering) for _ in weights.layers]
    streams: dict[int, StreamRun] = {}

    def behind(stage: int, stream: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """The stream of a stage, replaced there or not."""
        if stage in weights.streams:
            streams[stage] = _stream_run(stream, weights.streams[stage], errors=errors)
            return stream if errors else streams[stage].output
        return stream

    for number, (arrived, block) in enumerate(zip(record.layers, weights.layers, strict=True)):
        layer = dataclasses.replace(arrived, residual=behind(2 * number, arrived.residual))
        between = behind(2 * number + 1, layer.residual + layer.attention)
        residuals += [layer.residual, between]
        layers.append(
            LayerRun(
                _attention_run(layer, block, errors=errors),
                _mlp_run(
                    layer,
                    block,
                    layer.residual if block.parallel else between,
                    arriving[number:],
                    errors=errors,
                ),
            )
        )
    final = behind(2 * weights.n_layers, record.residual)
    return Run(
        model=model,
        weights=weights,
        prompt=prompt,
        token_ids=token_ids,
        tokens=tokens,
        errors=errors,
        unembedded=record.unembedded,
        next_logits=record.next_logits,
        token_writes=entering - position_writes,
        position_writes=position_writes,
        layers=layers,
        residuals=[*residuals, final],
        final_scale=weights.final_norm.scale(final),
        streams=streams,
    )


def _stream_run(
    stream: Float[Tensor, "pos d_model"], sae: ResidualSAE, *, errors: bool
) -> StreamRun:
    active = sae.encode(stream)
    output = sae.decode(active, stream)
    return StreamRun(stream, active, output, _left(stream, output, errors=errors))


def _attention_run(layer: LayerRecord, block: LayerWeights, *, errors: bool) -> AttentionRun:
    norm, reading = block.attention_norm, block.attention
    scale = norm.scale(layer.residual)
    if isinstance(reading, Lorsa):
        y = norm.apply(layer.residual, scale)
        pattern = reading.query_key.pattern(y)
        active, mixed = reading.encode(y, pattern), None
        raw = reading.decode(active, y)
    else:
        pattern, active = layer.pattern, None
        mixed = layer.mixed.unflatten(-1, (block.heads.n_heads, -1))
        raw = layer.attention_raw
        if reading is not None:
            written = block.heads.write(mixed)
            active = reading.encode(written)
            raw = reading.decode(active, written)
    post, post_scale, entered = block.attention_writes_through, None, None
    if post is not None:
        entered = layer.attention_raw if errors else raw
        post_scale = post.scale(entered)
    # Heads and neurons are the sublayer itself: what it wrote needs no rebuilding, and a wrong
    # weight shows as broken closure instead of hiding in an error.
    output = layer.attention if reading is None else _joining(raw, post, post_scale)
    error = _left(layer.attention, output, errors=errors)
    return AttentionRun(
        pattern,
        scale,
        mixed,
        active,
        output,
        error,
        post_scale,
        raw=entered,
        raw_output=None if entered is None else raw,
    )


def _mlp_run(
    layer: LayerRecord,
    block: LayerWeights,
    stream: Float[Tensor, "pos d_model"],
    arriving: Sequence[Float[Tensor, "pos d_model"]],
    *,
    errors: bool,
) -> MLPRun:
    """`arriving`: what features write to this MLP's output and to those after it, added to."""
    scale = block.mlp_reads_through.scale(stream)
    y = block.mlp_reads_through.apply(stream, scale)
    active = block.mlp.encode(y)
    if block.mlp.exact:
        raw = layer.mlp_raw
    else:
        _spread(block.mlp, active, arriving)
        raw = arriving[0] + block.mlp.around(y)
    post, post_scale, entered = block.mlp_writes_through, None, None
    if post is not None:
        entered = layer.mlp_raw if errors else raw
        post_scale = post.scale(entered)
    output = layer.mlp if block.mlp.exact else _joining(raw, post, post_scale)
    return MLPRun(
        scale=scale,
        active=active,
        skip_output=None if block.mlp.skip is None else y @ block.mlp.skip.T,
        output=output,
        error=_left(layer.mlp, output, errors=errors),
        post_scale=post_scale,
        raw=entered,
        raw_output=None if entered is None else raw,
    )


def _spread(
    layer: FeatureLayer, active: Active, arriving: Sequence[Float[Tensor, "pos d_model"]]
) -> None:
    """Add what features write to each output that they write to."""
    for output, written in zip(arriving, layer.spread(active), strict=False):
        output += written


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
    """Return what stands in for every sublayer that is read through a replacement layer.

    For one forward pass: cross-layer features leave there what they write to later layers.
    """
    found: dict[Sublayer, Substitute] = {}
    arriving: dict[int, Tensor] = {}
    for stage, sae in weights.streams.items():
        found[stage // 2, NAMES[stage % 2]] = partial(_of_output, sae, None)
    for number, block in enumerate(weights.layers):
        post = block.attention_writes_through
        if isinstance(block.attention, AttentionSAE):
            found[number, "attn"] = partial(_of_output, block.attention, post)
        elif block.attention is not None:
            found[number, "attn"] = partial(_of_stream, block.attention, block.attention_norm, post)
        if not block.mlp.exact:
            found[number, "mlp"] = partial(_of_mlp, number, block, arriving)
    return found


def _of_stream(layer: Lorsa, norm: Norm, post: Norm | None, stream: Tensor, _raw: Tensor) -> Tensor:
    y = norm.apply(stream, norm.scale(stream))
    # the gates recorded afterwards are those of explicit patterns
    return _fresh(post, layer.forward(y, fused=False))


def _of_mlp(
    number: int, block: LayerWeights, arriving: dict[int, Tensor], stream: Tensor, _raw: Tensor
) -> Tensor:
    y = block.mlp_reads_through.apply(stream, block.mlp_reads_through.scale(stream)).flatten(0, -2)
    spread = block.mlp.spread(block.mlp.encode(y))
    for target, written in enumerate(spread, start=number):
        arriving[target] = arriving[target] + written if target in arriving else written
    made = arriving.pop(number) + block.mlp.around(y)
    return _fresh(block.mlp_writes_through, made.view_as(stream))


def _of_output(layer: FeatureLayer, post: Norm | None, _stream: Tensor, raw: Tensor) -> Tensor:
    return _fresh(post, layer.forward(raw))


def _fresh(post: Norm | None, raw: Tensor) -> Tensor:
    """What a reconstruction adds to the stream, a norm after it computing its own scale."""
    return raw if post is None else post.apply(raw, post.scale(raw))
