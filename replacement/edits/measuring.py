"""What a target is in an edited run of the real model."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from replacement.layers import Lorsa
from replacement.run import Run
from replacement.scores import score_values
from replacement.target import Target, Term

Streams = Mapping[int | tuple[int, str], Float[Tensor, "batch pos d_model"]]


def stages_of(target: Target) -> set[int | tuple[int, str]]:
    """Return the stages whose residual stream a target is measured on."""
    return {_stage(target.run, term) for term in target.terms}


def measured(
    target: Target, streams: Streams, patterns_of: Run | None = None
) -> Float[Tensor, " batch"]:
    """Return what a target is in every row of a batch, from the streams of the edited runs.

    `patterns_of`: the run at whose patterns attention was held.
    """
    total = 0.0
    for term in target.terms:
        stream = streams[_stage(target.run, term)]
        total = total + term.weight * _measured(target.run, term, stream, patterns_of)
    assert isinstance(total, Tensor), "a target has a term"
    return total


def _stage(run: Run, term: Term) -> int | tuple[int, str]:
    """The stage whose residual stream a term is measured on, with the real norm on top."""
    if term.kind != "feature":
        return 2 * term.layer
    held = run.sublayer(term.layer, term.sublayer)
    return (held.layer, held.name) if held.replaces else held.reads_at


def _measured(
    run: Run,
    term: Term,
    stream: Float[Tensor, "batch pos d_model"],
    patterns_of: Run | None,
) -> Float[Tensor, " batch"]:
    weights, here = run.weights, stream[:, term.pos]
    if term.vector is not None:
        return here @ term.vector
    if term.kind == "attention_score":
        return _measured_score(run, term, stream)
    if term.kind == "feature":
        held = run.sublayer(term.layer, term.sublayer)
        if held.replaces:
            return weights.streams[held.reads_at].pre_activation(here, term.index)
        return _measured_feature(run, term, stream, patterns_of)
    y = weights.final_norm.apply(here, weights.final_norm.scale(here))
    row, bias = weights.unembedding[term.index], weights.unembedding_bias
    constant = 0.0 if bias is None else bias[term.index]
    if term.kind == "centered_logit":
        row = row - weights.mean_unembedding
        constant = constant - (0.0 if bias is None else bias.mean())
    return y @ row + constant


def _measured_feature(
    run: Run,
    term: Term,
    stream: Float[Tensor, "batch pos d_model"],
    patterns_of: Run | None,
) -> Float[Tensor, " batch"]:
    block = run.weights.layers[term.layer]
    if term.sublayer == "mlp":
        here = stream[:, term.pos]
        y = block.mlp_reads_through.apply(here, block.mlp_reads_through.scale(here))
        return block.mlp.pre_activation(y, term.index)
    pattern = None if patterns_of is None else patterns_of.layers[term.layer].attention.pattern
    y = block.attention_norm.apply(stream, block.attention_norm.scale(stream))
    if isinstance(block.attention, Lorsa):
        return block.attention.mixed(y, pattern)[:, term.pos, term.index]
    assert block.attention is not None
    heads = block.heads
    mixed = heads.mix(heads.query_key.pattern(y) if pattern is None else pattern, y)
    return block.attention.pre_activation(heads.write(mixed)[:, term.pos], term.index)


def _measured_score(
    run: Run, term: Term, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, " batch"]:
    """The score of the changed run; from one side, with the other as it was recorded."""
    recorded = run.residuals[2 * term.layer]
    sides = {
        "query": stream[:, term.pos],
        "key": stream[:, term.key],
    }
    for name, pos in (("query", term.pos), ("key", term.key)):
        if term.side not in (name, "both"):
            sides[name] = recorded[pos].expand_as(sides[name])
    return score_values(
        run, term.layer, term.index, sides["query"], sides["key"], (term.pos, term.key)
    )
