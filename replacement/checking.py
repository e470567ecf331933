"""Is the family's row right for this model? One short forward pass, rebuilt part by part."""

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.model import ReplacementModel
from replacement.recording import run_of_record
from replacement.run import Run
from replacement.weights import LayerWeights

TOLERANCE = 1e-3
"""Share of the largest number: wide for float32, far below what a wrong layout gives."""
N_TOKENS = 4


@torch.no_grad()
def check_rebuilt(model: ReplacementModel) -> None:
    """Raise ValueError unless the model's weights, as its family reads them, rebuild one run.

    Checked on a few tokens: every pattern's rows sum to one, the patterns follow from queries and
    keys, heads and neurons give what attention and MLP wrote, these add up to the next residual
    stream, and the logits follow from the last.
    """
    count = min(N_TOKENS, model.n_context or N_TOKENS)
    ids = torch.arange(count) % model.weights.d_vocab
    (record,) = model.tracer.record(ids[None].to(model.device), {})
    run = run_of_record(
        record, model.weights, ids, model=model, prompt=None, tokens=[""] * count, errors=True
    )
    for number, (layer, block) in enumerate(zip(record.layers, model.weights.layers, strict=True)):
        rows = layer.pattern.sum(-1)
        _same(model, f"rows of layer {number}'s attention patterns", rows, torch.ones_like(rows))
        y = block.attention_norm.apply(layer.residual, block.attention_norm.scale(layer.residual))
        pattern = block.heads.query_key.pattern(y)
        _same(model, f"patterns of layer {number}", pattern, layer.pattern)
        mixed = block.heads.mix(layer.pattern, y)
        recorded = layer.mixed.unflatten(-1, (block.heads.n_heads, -1))
        _same(model, f"values of layer {number}", mixed, recorded)
        written = block.heads.write(mixed)
        _same(model, f"heads of layer {number}", written, layer.attention_raw)
        _check_mlp(model, number, block, run)
    after = [*(layer.residual for layer in record.layers[1:]), record.residual]
    for number, (layer, stream) in enumerate(zip(record.layers, after, strict=True)):
        added = layer.residual + layer.attention + layer.mlp
        _same(model, f"residual stream after layer {number}", added, stream)
    final = model.weights.final_norm
    y = final.apply(record.residual, final.scale(record.residual))
    logits = y @ model.weights.unembedding.T
    if model.weights.unembedding_bias is not None:
        logits = logits + model.weights.unembedding_bias
    if model.weights.logit_soft_cap is not None:
        cap = model.weights.logit_soft_cap
        logits = cap * torch.tanh(logits / cap)
    _same(model, "logits", logits, run.logits)


def _check_mlp(model: ReplacementModel, number: int, block: LayerWeights, run: Run) -> None:
    """Neurons rebuild their MLP; layers that were trained are allowed to miss something."""
    if not block.mlp.exact:
        return
    recorded = run.layers[number].mlp
    stream = run.residuals[run.sublayer(number, "mlp").reads_at]
    written = block.mlp.decode(recorded.active, block.mlp_norm.apply(stream, recorded.scale))
    if block.mlp_post_norm is not None and recorded.post_scale is not None:
        written = block.mlp_post_norm.apply(written, recorded.post_scale)
    _same(model, f"neurons of layer {number}", written, recorded.output)


def _same(
    model: ReplacementModel, what: str, found: Float[Tensor, "*axes"], true: Float[Tensor, "*axes"]
) -> None:
    off = float((found - true).abs().max() / true.abs().max().clamp_min(1e-12))
    if not off <= TOLERANCE:
        raise ValueError(
            f"{model.name}: the {what}, rebuilt from the weights, are off by {off:.1%} of the "
            f"largest. The entry for {type(model.hf_model).__name__} does not describe this model "
            "(a switch of its config, or a changed class). docs/architectures.md says how to mend "
            "or add one."
        )
