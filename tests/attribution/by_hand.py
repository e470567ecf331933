"""Gates, rotary embeddings, q/k norm and Lorsa once more, slowly, from docs/design.md alone.

Loops over positions, heads and pairs of coordinates; nothing here calls the library's arithmetic.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from replacement.layers import (
    BatchTopK,
    FeatureLayer,
    HeadNorm,
    JumpReLU,
    Lorsa,
    QueryKey,
    ReLU,
    Rotary,
    TopK,
)


def gate_by_hand(layer: FeatureLayer, pre: Tensor) -> Tensor:
    """Return the gates of a layer's features; in plain Python where features compete."""
    seen = pre if layer.gate_scale is None else pre * layer.gate_scale
    match layer.activation:
        case ReLU():
            kept = seen > 0
        case JumpReLU(threshold=threshold):
            kept = torch.stack([row > threshold for row in seen])
        case BatchTopK(threshold=threshold):
            kept = seen > threshold
        case TopK(k=k):
            kept = torch.zeros_like(seen, dtype=torch.bool)
            for pos, row in enumerate(seen.tolist()):
                best = sorted(range(len(row)), key=lambda index, row=row: -row[index])[:k]
                for index in best:
                    kept[pos, index] = row[index] > 0
    return kept.to(pre.dtype)


@dataclass
class Sides:
    """Queries and keys of one layer, one row a head and position; of grouped keys, copies."""

    query: Tensor
    key: Tensor
    query_scale: Tensor
    """Denominators of the query norm, 1 where there is none: what is held."""
    key_scale: Tensor


def sides_by_hand(
    heads: QueryKey, y: Tensor, share: float = 1.0, held: Sides | None = None
) -> Sides:
    """Return the queries and keys of Lorsa's query-key heads from its normed input.

    With `held` the denominators of q/k norms are those; `share` is that of the biases.
    """
    n_heads, shared = heads.query.shape[0], heads.query.shape[0] // heads.key.shape[0]
    rows: dict[str, list[Tensor]] = {name: [] for name in ("q", "k", "q_scale", "k_scale")}
    for head in range(n_heads):
        group = head // shared
        q = y @ heads.query[head]
        k = y @ heads.key[group]
        if heads.query_bias is not None and heads.key_bias is not None:
            q, k = q + share * heads.query_bias[head], k + share * heads.key_bias[group]
        q_scale = _denominator(q, heads.query_norm) if held is None else held.query_scale[head]
        k_scale = _denominator(k, heads.key_norm) if held is None else held.key_scale[head]
        if heads.query_norm is not None:
            q = heads.query_norm.gain[head] * q / q_scale[:, None]
        if heads.key_norm is not None:
            k = heads.key_norm.gain[group] * k / k_scale[:, None]
        rows["q"].append(turned_by_hand(q, heads.rotary))
        rows["k"].append(turned_by_hand(k, heads.rotary))
        rows["q_scale"].append(q_scale)
        rows["k_scale"].append(k_scale)
    return Sides(*(torch.stack(rows[name]) for name in ("q", "k", "q_scale", "k_scale")))


def _denominator(x: Tensor, norm: HeadNorm | None) -> Tensor:
    """One number a position."""
    if norm is None:
        return torch.ones_like(x[:, 0])
    return torch.stack([(row @ row / len(row) + norm.eps).sqrt() for row in x])


def turned_by_hand(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Return the rows of `x`, one a position, turned pair by pair as complex numbers."""
    if rotary is None:
        return x
    n_pairs, turned = len(rotary.inverse_frequency), x.clone()
    for pos in range(len(x)):
        for pair, frequency in enumerate(rotary.inverse_frequency.tolist()):
            one, two = (2 * pair, 2 * pair + 1) if rotary.adjacent else (pair, pair + n_pairs)
            cos, sin = math.cos(pos * frequency), math.sin(pos * frequency)
            turned[pos, one] = rotary.amplitude * (x[pos, one] * cos - x[pos, two] * sin)
            turned[pos, two] = rotary.amplitude * (x[pos, two] * cos + x[pos, one] * sin)
    return turned


def pattern_by_hand(sides: Sides, scale: float, window: int | None) -> Tensor:
    """Return the softmax of the scores over the keys each query sees, row by row."""
    n_heads, n_pos, _ = sides.query.shape
    pattern = []
    for head in range(n_heads):
        for query in range(n_pos):
            first = 0 if window is None else max(0, query - window + 1)
            scores = [
                scale * (sides.query[head, query] @ sides.key[head, key])
                for key in range(first, query + 1)
            ]
            powers = torch.stack(scores).exp()
            row = powers / powers.sum()
            pattern.append(torch.nn.functional.pad(row, (first, n_pos - 1 - query)))
    return torch.stack(pattern).view(n_heads, n_pos, n_pos)


def lorsa_by_hand(lorsa: Lorsa, y: Tensor, pattern: Tensor, share: float = 1.0) -> Tensor:
    """Return what every value-output head reads at every query, before its gate."""
    n_heads = lorsa.query_key.query.shape[0]
    size = len(lorsa.read) // n_heads
    columns = [
        pattern[number // size] @ (y @ lorsa.read[number]) + share * lorsa.read_bias[number]
        for number in range(len(lorsa.read))
    ]
    return torch.stack(columns, dim=1)
