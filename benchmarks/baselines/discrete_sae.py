"""Heads by discrete codes (O'Neill & Bui 2024, 2405.12522), as the authors' code does it.

What every head writes, its mean over positions, goes through one small autoencoder for all heads;
a head's code in a prompt is the latent that is largest. A head matters if it takes codes on
positive prompts (here the clean ones) that it never takes on negative ones (the corrupted).

The paper's "edge" figure counts how often a head is among the pairs of codes that occur only on
positive prompts, and is scored against *heads*. `pair_heads` is that; `pair_edges` scores the pairs
as what they claim to be, edges between heads.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.edges import EdgeGraph, EdgeModel, Pairs, Patching

BATCH = 50


@dataclass(frozen=True)
class Codes:
    """The code of every head in every prompt."""

    positive: Int[Tensor, "prompt head"]
    negative: Int[Tensor, "other head"]

    @property
    def node_scores(self) -> Float[Tensor, " head"]:
        """How many codes a head takes on positives and never on negatives, softmax over heads."""
        return self._counts.softmax(0)

    @property
    def _counts(self) -> Float[Tensor, " head"]:
        columns = zip(self.positive.T.tolist(), self.negative.T.tolist(), strict=True)
        return torch.tensor([float(len({*mine} - {*others})) for mine, others in columns])

    @property
    def pairs(self) -> Float[Tensor, "head head"]:
        """How many pairs of codes two heads take together on positives and never on negatives."""
        n_heads = self.positive.shape[1]
        found = torch.zeros(n_heads, n_heads)
        columns = self.positive.T.tolist(), self.negative.T.tolist()
        for one in range(n_heads):
            for other in range(one + 1, n_heads):
                on, off = ({*zip(side[one], side[other], strict=True)} for side in columns)
                found[one, other] = found[other, one] = len(on - off)
        return found

    @property
    def pair_heads(self) -> Float[Tensor, " head"]:
        """How often a head is among the strongest pairs, half as many as there are: a node score.

        Softmax over heads. Of equal pairs the first heads' come first.
        """
        n_heads = self.positive.shape[1]
        first, second = torch.triu_indices(n_heads, n_heads, 1)
        order = self.pairs[first, second].argsort(descending=True, stable=True)[: n_heads**2 // 2]
        order = order[self.pairs[first, second][order] > 0]
        every = torch.cat([first[order], second[order]])
        return torch.bincount(every, minlength=n_heads).float().softmax(0)


def discrete_codes(
    positive: Float[Tensor, "prompt head d_model"],
    negative: Float[Tensor, "other head d_model"],
    *,
    examples: int = 10,
    hidden: int = 200,
    penalty: int | float = 0.02,
    epochs: int = 500,
    seed: int = 0,
) -> Codes:
    """Return the codes of what heads write on positive and on negative prompts.

    The autoencoder is trained on the first `examples` prompts, half of either kind: unit-norm rows
    and columns, one bias taken off in front and added back behind, ReLU, mean squared error plus
    `penalty` times the mean absolute latent, Adam at 1e-3, all at once. Raises ValueError for fewer
    than two examples.
    """
    if examples < 2:
        raise ValueError(
            f"discrete_codes(examples={examples}): 2 or more, half of them negative prompts."
        )
    trained = torch.cat([positive[: examples // 2], negative[: examples // 2]]).flatten(0, 1)
    source = torch.Generator().manual_seed(seed)
    width = positive.shape[-1]
    encoder = nn.Parameter(torch.randn(hidden, width, generator=source))
    decoder = nn.Parameter(encoder.detach().T.clone())
    bias = nn.Parameter(torch.zeros(width))
    optimizer = torch.optim.Adam([encoder, decoder, bias], lr=1e-3)
    for _ in range(epochs):
        _to_unit_norm(encoder, decoder)
        latents = ((trained - bias) @ encoder.T).relu()
        loss = (latents @ decoder.T + bias - trained).square().mean() + penalty * latents.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        _to_unit_norm(encoder, decoder)
        found = [((side - bias) @ encoder.T).argmax(-1) for side in (positive, negative)]
    return Codes(*found)


@torch.no_grad()
def _to_unit_norm(encoder: nn.Parameter, decoder: nn.Parameter) -> None:
    encoder.div_(encoder.norm(dim=1, keepdim=True))
    decoder.div_(decoder.norm(dim=0, keepdim=True))


@torch.no_grad()
def head_outputs(
    model: EdgeModel, pairs: Pairs
) -> tuple[Float[Tensor, "pair head d_model"], Float[Tensor, "pair head d_model"]]:
    """Return what heads write in clean and corrupted runs, the mean over positions up to the end.

    Heads as in `heads_of`, scaled so that the mean squared norm over all of them is d_model.
    """
    heads, found = heads_of(model.graph), []
    for part in pairs.parts(BATCH):
        runs, real = Patching(model, part), part.real[:, None, :, None].float()
        sides = [
            (run.written[:, heads] * real).sum(2) / real.sum(2)
            for run in (runs.clean, runs.corrupt)
        ]
        found.append(sides)
    clean, corrupt = (torch.cat(side) for side in zip(*found, strict=True))
    scale = torch.cat([clean, corrupt]).square().mean().sqrt()
    return clean / scale, corrupt / scale


def heads_of(graph: EdgeGraph) -> list[int]:
    """Return the numbers of the writers that are heads."""
    return [number for number, name in enumerate(graph.writers) if name.startswith("a")]


def pair_edges(graph: EdgeGraph, codes: Codes) -> Float[Tensor, " edge"]:
    """Return the pairs' counts as scores of edges: from head to head, by q, k and v alike.

    Every other edge has 0: the method says nothing of it.
    """
    heads = heads_of(graph)
    table = torch.zeros(graph.n_writers + 1, graph.n_writers + 1)
    where = torch.tensor(heads)
    table[where[:, None], where] = codes.pairs
    return table[graph.writer, graph.reader]
