"""Forward passes in which some edges carry what another run wrote: the evaluation of circuits."""

from functools import cached_property
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.edges.model import EdgeModel, Parts, Passed
from benchmarks.edges.pairs import Pairs

Ablation = Literal["corrupt", "mean", "zero"]
ABLATIONS: Final = get_args(Ablation)


class Patching:
    """A batch of pairs whose edges can be patched; both runs are made once and kept.

    A reader gets, from every writer, what it wrote in this patched run where the edge is in the
    circuit, and its stand-in where it is not: what it wrote in the corrupted run, its mean over all
    corrupted prompts and positions up to the answer, or nothing.
    """

    def __init__(self, model: EdgeModel, pairs: Pairs, ablation: Ablation = "corrupt") -> None:
        """Raise ValueError for an unknown ablation."""
        if ablation not in ABLATIONS:
            raise ValueError(f"Patching(ablation={ablation!r}): one of {', '.join(ABLATIONS)}.")
        self.model, self.pairs, self.ablation = model, pairs, ablation

    @cached_property
    @torch.no_grad()
    def clean(self) -> Passed:
        """The clean run."""
        return self.model.run(self.model.entering(self.pairs.clean))

    @cached_property
    @torch.no_grad()
    def corrupt(self) -> Passed:
        """The corrupted run."""
        return self.model.run(self.model.entering(self.pairs.corrupt))

    @cached_property
    @torch.no_grad()
    def stand_in(self) -> Float[Tensor, "#batch writer #pos d_model"]:
        """What an edge outside the circuit carries."""
        written = self.corrupt.written
        if self.ablation == "corrupt":
            return written
        if self.ablation == "zero":
            return torch.zeros_like(written[:1, :, :1])
        real = self.pairs.real[:, None, :, None].to(written.dtype)
        return (written * real).sum((0, 2), keepdim=True) / real.sum()

    @cached_property
    @torch.no_grad()
    def _without_all(self) -> list[Float[Tensor, "#batch 1 #pos d_model"]]:
        """What the readers of every group get where no edge into it is in the circuit."""
        graph = self.model.graph
        seen = [self.stand_in[:, : graph.n_visible(group)] for group in range(graph.n_groups)]
        return [
            stand_in.sum(1, keepdim=True) + self.model.constant(group)
            for group, stand_in in enumerate(seen)
        ]

    def logits(self, mask: Float[Tensor, "*batch edge"]) -> Float[Tensor, "batch d_vocab"]:
        """Return the logits at every pair's answer with the masked edges in the circuit.

        `mask`: 1 in the circuit, 0 outside, anything between is a mixture; one for all pairs or one
        a pair. Differentiable in it.
        """
        graph = self.model.graph
        moved: list[Tensor] = []

        def reads(group: int, parts: Parts) -> Float[Tensor, "batch reader pos d_model"]:
            for part in parts[len(moved) :]:
                first = sum(map(_width, parts[: len(moved)]))
                moved.append(part - self.stand_in[:, first : first + _width(part)])
            table = graph.table(mask, group)
            change = torch.cat(moved[: graph.n_parts(group)], 1)
            weighted = (table @ change.flatten(2)).unflatten(-1, change.shape[2:])
            return self._without_all[group] + weighted

        entering = self.clean.parts[0][:, 0]
        passed = self.model.run(entering, reads)
        return self.model.logits(passed.final, self.pairs.end)

    @torch.no_grad()
    def metric(self, mask: Float[Tensor, "*batch edge"]) -> Float[Tensor, " batch"]:
        """Return the metric of every pair with the masked edges in the circuit."""
        return self.pairs.metric(self.logits(mask))

    @torch.no_grad()
    def without(self, edge: int) -> Float[Tensor, "batch d_vocab"]:
        """Return the logits with everything clean but one edge, which carries its stand-in.

        What the sublayers before its reader wrote is not computed again.
        """
        graph, clean = self.model.graph, self.clean
        patched = next(g for g in range(graph.n_groups) if edge < graph.edges_of(g).stop)
        row, writer = divmod(edge - graph.edges_of(patched).start, graph.n_visible(patched))

        def reads(group: int, parts: Parts) -> Float[Tensor, "batch reader pos d_model"]:
            stream = self.model.stream(group, parts)
            if group == patched:
                stream = stream.repeat(1, graph.n_readers(group), 1, 1)
                stream[:, row] += self.stand_in[:, writer] - clean.written[:, writer]
            return stream

        passed = self.model.run(clean.parts[0][:, 0], reads, after=clean.parts[: patched + 1])
        return self.model.logits(passed.final, self.pairs.end)


def _width(part: Float[Tensor, "batch writer pos d_model"]) -> int:
    return part.shape[1]
