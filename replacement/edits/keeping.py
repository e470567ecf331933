"""Keep some nodes of the real model and set all others to what they are on average, or elsewhere.

Every node that is not kept, active in the run or not, is clamped to its reference value at its
position: an MLP then gives Σ kept a_i·w_i + Σ others ref_i·w_i + bias (+ its error, kept or at its
reference). Tokens and positions are the prompt and stay.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.edits.live import Fill, LiveEdits
from replacement.edits.measuring import measured, stages_of
from replacement.edits.node import Node
from replacement.edits.recorded import part_of, raw_error
from replacement.held import FeatureNodes, HeldHeads, Sublayer
from replacement.run import Run
from replacement.target import Target

Part = tuple[int, str, str]
Values = Mapping[Part, Float[Tensor, "pos _ ..."]]
"""What nodes are, by layer, sublayer and "nodes", "skip" or "error" (one node a position)."""


def values_of(run: Run) -> dict[Part, Float[Tensor, "pos _ ..."]]:
    """Return what every node of a run was, active or not; errors where layers miss something."""
    found: dict[Part, Tensor] = {}
    for one in run.sublayers:
        place, part = (one.layer, one.name), part_of(run, one.layer, one.name)
        skip = getattr(part, "skip_output", None)
        if isinstance(one, HeldHeads):
            found[*place, "nodes"] = one.mixed
            continue
        assert isinstance(one, FeatureNodes)
        found[*place, "nodes"] = one.active.spread_out()
        if skip is not None:
            found[*place, "skip"] = skip[:, None]
        if _misses(run, one):
            found[*place, "error"] = raw_error(part)[:, None]
    return found


def mean_values(
    given: Iterable[tuple[Run, Int[Tensor, " _"]]], n_slots: int
) -> tuple[dict[Part, Float[Tensor, "slot _ ..."]], Float[Tensor, " slot"]]:
    """Return the mean of what nodes are over runs, by slot, and how many positions each has.

    `given`: runs, one at a time, with the slot of each position. 0 where a slot has no position.
    """
    count, total = torch.zeros(n_slots), dict[Part, Tensor]()
    for run, slot in given:
        count = count.to(run.next_logits)
        count.index_add_(0, slot, torch.ones_like(slot, dtype=count.dtype))
        for part, values in values_of(run).items():
            if part not in total:
                total[part] = values.new_zeros(n_slots, *values.shape[1:])
            total[part].index_add_(0, slot, values)
    known = count.clamp_min(1)
    means = {part: one / known.view(-1, *[1] * (one.dim() - 1)) for part, one in total.items()}
    return means, count


@dataclass(frozen=True, eq=False)
class RunNodes:
    """The nodes of a run that can be kept or not: all that were active, and errors, in order."""

    parts: list[Part]
    part: Int[Tensor, " node"]
    """Which of the parts."""
    pos: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    starts: Mapping[tuple[int, str], int]
    """Number of the first node of each sublayer: its nodes in their order, then its errors."""

    def number(self, run: Run, node: Node) -> int:
        """Return the number of a node; -1 if it cannot be kept (a token) or was not active."""
        start = self.starts.get((node.layer, node.sublayer))
        if start is None or node.pos is None:
            return -1
        own = run.sublayer(node.layer, node.sublayer)
        if node.kind == "error":
            return start + own.n_nodes + node.pos if _misses(run, own) else -1
        found = own.find(node.kind, node.pos, node.index)
        return start + found if found >= 0 else -1

    def __len__(self) -> int:
        return len(self.pos)

    def masks(
        self, run: Run, kept: Bool[Tensor, "row node"], others: Bool[Tensor, " row"]
    ) -> dict[Part, Bool[Tensor, "row pos _"]]:
        """Return which node of each part is kept in each row; `others`: inactive ones too."""
        n_pos, masks = len(run.tokens), {}
        for number, part in enumerate(self.parts):
            mine = self.part == number
            width = 1 if part[2] != "nodes" else _width(run, part)
            mask = others[:, None, None].expand(-1, n_pos, width).clone()
            mask[:, self.pos[mine], self.index[mine]] = kept[:, mine]
            masks[part] = mask
        return masks


def nodes_of_run(run: Run) -> RunNodes:
    """Return the nodes of a run that can be kept or not."""
    parts, chosen, pos, index, starts = [], [], [], [], {}

    def add(part: Part, where: Tensor, which: Tensor) -> None:
        chosen.append(torch.full_like(where, len(parts)))
        parts.append(part)
        pos.append(where)
        index.append(which)

    everywhere = torch.arange(len(run.tokens), device=run.next_logits.device)
    for one in run.sublayers:
        place, nothing = (one.layer, one.name), torch.zeros_like(everywhere)
        starts[place] = sum(map(len, pos))
        if isinstance(one, HeldHeads):
            places = one.positions()
            add(
                (*place, "nodes"),
                places,
                torch.arange(len(places), device=places.device) % one.n_heads,
            )
            continue
        assert isinstance(one, FeatureNodes)
        add((*place, "nodes"), one.active.pos, one.active.index)
        if one.n_nodes > one.n_active:
            add((*place, "skip"), everywhere, nothing)
        if _misses(run, one):
            add((*place, "error"), everywhere, nothing)
    return RunNodes(parts, torch.cat(chosen), torch.cat(pos), torch.cat(index), starts)


def _misses(run: Run, sublayer: Sublayer) -> bool:
    """Whether a sublayer has errors: it is not read as its own parts, and was not replaced."""
    return run.errors and isinstance(sublayer, FeatureNodes) and not sublayer.features.exact


def _width(run: Run, part: Part) -> int:
    one = run.sublayer(part[0], part[1])
    return one.n_heads if isinstance(one, HeldHeads) else one.features.n_features  # pyright: ignore


def kept_values(
    target: Target,
    nodes: RunNodes,
    kept: Bool[Tensor, "row node"],
    others: Bool[Tensor, " row"],
    reference: Values,
) -> Float[Tensor, " row"]:
    """Return a target in the real model with only some nodes kept, one row a set of them.

    `nodes`: those that `kept` is about (of a run of the same length); `others`: whether what was
    not active there is kept too. Everything else is at the `reference`.
    """
    return filled_values(target, nodes.masks(target.run, kept, others), reference)


@torch.no_grad()
def filled_values(
    target: Target, masks: Mapping[Part, Bool[Tensor, "row pos _"]], reference: Values
) -> Float[Tensor, " row"]:
    """Return a target in the real model with only what masks keep, all else at the reference."""
    run = target.run
    fills = {
        part: Fill(mask, reference[part][None])
        for part, mask in masks.items()
        if not bool(mask.all())
    }
    done = run.model.tracer.run_edited(
        run.token_ids.to(run.next_logits.device).expand(len(next(iter(masks.values()))), -1),
        LiveEdits(run.weights, run.errors, fills=fills).substitutes(),
        stages_of(target),
    )
    return measured(target, done.streams)
