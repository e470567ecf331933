"""From what is asked about a run to a target: what it reads of the residual stream, and where."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.held import HeldFeatures, HeldStream, Reads
from replacement.layers import Lorsa
from replacement.scores import HeldScore, StreamSide
from replacement.target import Seed, Target, Term


def logit_target(run: Any, kind: str, number: int, pos: int, label: str) -> Target:
    """Return a raw ("logit") or centred ("centered_logit") logit of a `Run`."""
    weights = run.weights
    row, bias = weights.unembedding[number], weights.unembedding_bias
    logits = weights.raw_logits(run.logits_at(pos), run.residuals[-1][pos], run.final_scale[pos])
    value = logits[number]
    constant = 0.0 if bias is None else float(bias[number])
    if kind == "centered_logit":
        row, value = row - weights.mean_unembedding, value - logits.mean()
        constant -= 0.0 if bias is None else float(bias.mean())
    norm = weights.final_norm
    return Target(
        run=run,
        label=label,
        value=float(value),
        bias=constant + float(norm.constant(row)),
        pos=pos,
        seeds=(Seed(2 * weights.n_layers, pos, norm.pull(row) / run.final_scale[pos]),),
        terms=(Term(kind, 1.0, weights.n_layers, pos, number),),
    )


def feature_target(run: Any, held: HeldFeatures, pos: int, number: int) -> Target:
    """Return the pre-activation of one feature of a sublayer."""
    where, which = torch.tensor([[pos], [number]], device=held.error.device)
    reads = held.reads_of(where, which)
    kind = held.node_kind
    feature = "f" if held.name == "mlp" else f"{held.name}.f"
    name = {"lorsa": "lorsa ", "neuron": "n"}.get(kind, feature)
    return Target(
        run=run,
        label=f"L{held.layer}.{name}{number}@{pos}",
        value=_pre_activation(run, held, pos, number),
        bias=float(reads.constant),
        pos=pos,
        seeds=_seeds(held, reads),
        terms=(Term("feature", 1.0, held.layer, pos, number, sublayer=held.name),),
    )


def _pre_activation(run: Any, held: HeldFeatures, pos: int, number: int) -> float:
    """What the layer computed, by the layer's own arithmetic."""
    if isinstance(held, HeldStream):
        return float(held.features.pre_activation(run.streams[held.reads_at].entering[pos], number))
    block, stream = run.weights.layers[held.layer], run.residuals[held.reads_at]
    if held.name == "mlp":
        y = block.mlp_reads_through.apply(
            stream[pos, None], run.layers[held.layer].mlp.scale[pos, None]
        )
        return float(block.mlp.pre_activation(y, number))
    attention = run.layers[held.layer].attention
    if isinstance(block.attention, Lorsa):
        y = block.attention_norm.apply(stream, attention.scale)
        return float(block.attention.mixed(y, attention.pattern)[pos, number])
    written = block.heads.write(attention.mixed[pos, None])
    return float(block.attention.pre_activation(written, number))


def _seeds(held: HeldFeatures, reads: Reads) -> tuple[Seed, ...]:
    """One seed a position that a single node reads."""
    vectors = reads.factor[0].T @ reads.vector[0]
    places = reads.factor[0].any(0).nonzero().flatten().tolist()
    return tuple(Seed(held.reads_at, pos, vectors[pos], held.replaces) for pos in places)


def score_target(run: Any, score: HeldScore, side: str) -> Target:
    """Return an attention score, explained from the query's side, the key's, or half of each."""
    stage, query, key = 2 * score.layer, score.query, score.key
    sides = {"query": [(query, key)], "key": [(key, query)]}
    chosen = sides[side] if side != "both" else [*sides["query"], *sides["key"]]
    weight = score.scale / len(chosen)
    name = "" if side == "both" else f", {side} side"
    return Target(
        run=run,
        label=f"score(L{score.layer}.h{score.head} {query.pos}→{key.pos}{name})",
        value=score.value,
        bias=sum(weight * float(one.constant @ other.vector) for one, other in chosen),
        pos=query.pos,
        seeds=tuple(_score_seed(stage, weight, one, other) for one, other in chosen),
        terms=(
            Term(
                "attention_score",
                1.0,
                score.layer,
                query.pos,
                score.head,
                key=key.pos,
                side=side,
                sublayer="attn",
            ),
        ),
    )


def _score_seed(stage: int, weight: float, one: StreamSide, other: StreamSide) -> Seed:
    return Seed(stage, one.pos, weight * (other.vector @ one.read))


def direction_target(run: Any, vector: Float[Tensor, " d_model"], layer: int, pos: int) -> Target:
    """Return `vector` · the residual stream entering a layer."""
    return Target(
        run=run,
        label=f"direction@L{layer}",
        value=float(vector @ run.residuals[2 * layer][pos]),
        bias=0.0,
        pos=pos,
        seeds=(Seed(2 * layer, pos, vector),),
        terms=(Term("direction", 1.0, layer, pos, -1, vector),),
    )
