"""What is timed: GPT-2 small's exact shape (or Gemma-2-2B's) with random weights, read in ways."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from attribution.flow import flow_edges
from attribution.score_pairs import score_pairs
from attribution.sweep import cutoff_of, strongest, sweep
from benchmarks.speed.clock import Part
from circuits import Circuit, trace
from replacement.layers import Lorsa, QueryKey, TopK, Transcoder
from replacement.model import ReplacementModel
from replacement.target import Target

THRESHOLD = 0.005


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, its transcoders and the prompt; by default GPT-2 small's."""

    tokens: int = 64
    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    positions: int = 1024
    features: int = 6144
    active: int = 50
    value_heads: int | None = None
    """Given for Gemma 2, whose heads share values; None for GPT-2."""
    head_width: int = 64
    mlp_width: int = 3072


GPT2_SMALL = Shape(features=2048, active=20)
GEMMA_2_2B = Shape(
    layers=26,
    width=2304,
    heads=8,
    vocabulary=256000,
    positions=8192,
    features=16384,
    active=50,
    value_heads=4,
    head_width=256,
    mlp_width=9216,
)


@dataclass(frozen=True)
class Case:
    """One way of reading the model, how many nodes are kept, and what is allowed to cost what."""

    name: str
    transcoders: bool
    lorsa: bool
    max_nodes: int
    bars: dict[str, float]
    """Highest allowed cost of parts, in forward passes."""
    memory_bar_mb: float | None


CASES = (
    Case(
        "transcoders",
        transcoders=True,
        lorsa=False,
        max_nodes=500,
        bars={"sweep": 1.0, "gated sweep": 1.0, "run": 2.5, "run and trace": 5.0},
        memory_bar_mb=500.0,
    ),
    Case(
        "transcoders and Lorsa",
        transcoders=True,
        lorsa=True,
        max_nodes=2000,
        bars={"trace": 10.0, "run and trace": 10.0, "score pairs": 1.0},
        memory_bar_mb=None,
    ),
    Case("neurons", transcoders=False, lorsa=False, max_nodes=500, bars={}, memory_bar_mb=None),
)


def random_model(shape: Shape) -> Any:
    """Return a model of random weights as a user would load it."""
    torch.manual_seed(0)
    if shape.value_heads is not None:
        return Gemma2ForCausalLM(_gemma_config(shape, shape.value_heads)).eval()
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def _gemma_config(shape: Shape, value_heads: int) -> Gemma2Config:
    return Gemma2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=value_heads,
        head_dim=shape.head_width,
        query_pre_attn_scalar=shape.head_width,
        max_position_embeddings=shape.positions,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def random_transcoders(shape: Shape) -> list[Transcoder]:
    """Return transcoders of random rows whose outputs are about as long as the MLPs'."""
    generator = torch.Generator().manual_seed(1)

    def rows(length: float) -> Tensor:
        drawn = torch.randn(shape.features, shape.width, generator=generator)
        return drawn.mul_(length * shape.width**-0.5)

    read_bias, write_bias = torch.zeros(shape.features), torch.zeros(shape.width)
    return [
        Transcoder(rows(1.0), rows(0.1), read_bias, write_bias, TopK(shape.active))
        for _ in range(shape.layers)
    ]


def random_ids(shape: Shape) -> Tensor:
    """Return one prompt of random tokens."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(shape.vocabulary, (shape.tokens,), generator=generator)


def random_lorsa(shape: Shape) -> list[Lorsa]:
    """Return Lorsa layers of random rows; as many value heads share a pattern as a head is wide."""
    generator = torch.Generator().manual_seed(3)
    d_head = shape.width // shape.heads
    n_heads = max(1, shape.features // d_head)

    def drawn(*sizes: int, length: float = 1.0) -> Tensor:
        return torch.randn(sizes, generator=generator).mul_(length * shape.width**-0.5)

    return [
        Lorsa(
            QueryKey(
                drawn(n_heads, shape.width, d_head),
                drawn(n_heads, shape.width, d_head),
                None,
                None,
                d_head**-0.5,
            ),
            drawn(shape.features, shape.width),
            drawn(shape.features, shape.width, length=0.1),
            torch.zeros(shape.features),
            torch.zeros(shape.width),
            TopK(shape.active),
        )
        for _ in range(shape.layers)
    ]


def read_as(hf_model: GPT2LMHeadModel, shape: Shape, case: Case) -> ReplacementModel:
    """Return the model as a case reads it."""
    mlps = random_transcoders(shape) if case.transcoders else None
    return ReplacementModel(hf_model, None, mlps, random_lorsa(shape) if case.lorsa else None)


def explained(model: ReplacementModel, ids: Tensor) -> Target:
    """Return the likeliest next token's centered logit, in a run of its own."""
    run = model.run(ids)
    return run.logit(int(run.next_logits.argmax())).centered()


def traced(target: Target, max_nodes: int) -> Circuit:
    """Return the circuit of exactly the strongest nodes: a threshold of 0 lets none stop early."""
    return trace(target, threshold=0, max_nodes=max_nodes, progress=False)


def run_and_trace(model: ReplacementModel, ids: Tensor, max_nodes: int) -> Circuit:
    """Return the circuit of a prompt not yet run."""
    return traced(explained(model, ids), max_nodes)


def parts_and_sizes(
    model: ReplacementModel, ids: Tensor, max_nodes: int
) -> tuple[dict[str, Part], dict[str, Any]]:
    """Return what is timed, by name, every input made beforehand, and how large the case is."""
    target = explained(model, ids)
    sublayers = target.run.sublayers
    ungated = sweep(target, sublayers)
    cutoff = cutoff_of(target, ungated, THRESHOLD)
    chosen = strongest(ungated, sublayers, max_nodes)
    kept = sweep(target, sublayers, only=chosen)
    parts: dict[str, Part] = {
        "run": lambda: model.run(ids),
        "sweep": lambda: sweep(target, sublayers),
        "gated sweep": lambda: sweep(target, sublayers, cutoff),
        "sweep through chosen": lambda: sweep(target, sublayers, only=chosen),
        "choosing": lambda: strongest(ungated, sublayers, max_nodes),
        "flow": lambda: flow_edges(target, sublayers, kept),
        "trace": lambda: traced(target, max_nodes),
        "score pairs": partial(_pairs, target),
        "run and trace": partial(run_and_trace, model, ids, max_nodes),
    }
    sizes = {
        "nodes": sum(len(attribution) for attribution in ungated.attribution),
        f"nodes above {THRESHOLD}": sweep(target, sublayers, cutoff).n_kept(sublayers),
        "edges traced": len(traced(target, max_nodes).edges),
    }
    return parts, sizes


def _pairs(target: Target) -> object:
    """The pair table of one score in the last layer: as many writers below it as there can be."""
    last = len(target.run.tokens) - 1
    return score_pairs(target.run, target.run.weights.n_layers - 1, 0, last, last // 2)
