"""Does the mean circuit of many prompts do it alone in prompts that it was not made of?

In every prompt the circuit's nodes are those of its roles' positions. All others, errors and what
is not active too, are set to their mean over prompts at the same role, in the real model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from circuits.by_role import (
    Masks,
    active_nodes,
    placed,
    ratio_interval,
    size_of,
    strongest_nodes,
)
from circuits.circuit import Circuit
from circuits.faithfulness import check_shares, recovered, share_of
from circuits.items import Item, items_of
from graphs.files.charts import write_chart
from graphs.nodes import INTERIOR
from replacement.edits.keeping import Part, filled_values, mean_values, values_of
from replacement.run import Run
from replacement.target import Target

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Of the circuit's nodes."""
CALL = "average.faithfulness"


@dataclass(frozen=True)
class AverageFaithfulness:
    """What of the targets of some prompts is left with only a mean circuit, and what without it."""

    prompts: pd.DataFrame
    """One row a prompt: label, model, circuit, complement, empty (values of the target), nodes (of
    the circuit, active here) and all (active nodes and errors)."""
    curve: pd.DataFrame
    """share, nodes, value, faithfulness: with only the strongest nodes of the circuit, by
    |attribution| where a prompt has them; means over prompts."""

    @property
    def faithfulness(self) -> float:
        """(m(C) - m(∅)) / (m(M) - m(∅)) of means over prompts; NaN where that is no number."""
        return self._share("circuit")

    @property
    def complement_share(self) -> float:
        """The same of everything but the circuit."""
        return self._share("complement")

    @property
    def interval(self) -> tuple[float, float]:
        """The bootstrap's 95 % interval of the faithfulness over prompts; NaN for a single one."""
        return ratio_interval(*map(self._column, ("circuit", "empty", "model")))[1:]

    @property
    def node_share(self) -> float:
        """The circuit's nodes as a share of all active nodes and errors, mean over prompts."""
        return float(np.mean(self._column("nodes") / self._column("all")))

    def picture(self) -> str:
        """Return what is recovered against the number of nodes as an SVG."""
        own, every = self._mean("nodes"), self._mean("all")
        points = {"the circuit": (own, self.faithfulness)}
        points["all but it"] = (every - own, self.complement_share)
        return recovered(self.curve["nodes"], self.curve["faithfulness"], points)

    def save(self, path: str | Path) -> Path:
        """Write the picture, .svg or .png (needs cairosvg), and return where."""
        return write_chart(self.picture(), path)

    def _share(self, name: str) -> float:
        return float(share_of(self._mean(name), self._mean("empty"), self._mean("model")))

    def _mean(self, name: str) -> float:
        return float(self._column(name).mean())

    def _column(self, name: str) -> np.ndarray:
        return np.asarray(self.prompts[name], dtype=float)

    def __repr__(self) -> str:
        names = ("model", "circuit", "complement", "empty", "nodes", "all")
        mean = {name: self._mean(name) for name in names}
        low, high = self.interval
        return "\n".join(
            [
                f"{len(self.prompts)} prompts, {mean['nodes']:.1f} of {mean['all']:.1f} active "
                f"nodes kept ({self.node_share:.1%}), the others at their mean by role",
                f"  everything   {mean['model']:10.4f}",
                f"  circuit      {mean['circuit']:10.4f}  {self.faithfulness:8.1%}  "
                f"(95 %: {low:.1%} to {high:.1%})",
                f"  complement   {mean['complement']:10.4f}  {self.complement_share:8.1%}",
                f"  nothing      {mean['empty']:10.4f}",
            ]
        )


@torch.no_grad()
def average_faithfulness(
    circuit: Circuit,
    items: Iterable[Any],
    reference: Iterable[Any] | None,
    *,
    model: Any,
    roles: Any,
    shares: Any,
    progress: bool,
) -> AverageFaithfulness:
    """Return how much a mean circuit keeps alone; see `AverageCircuit.faithfulness`."""
    shares = SHARES if shares is None else shares
    check_shares(CALL, shares)
    given = list(items_of(items, model))
    others = given if reference is None else list(items_of(reference, model))
    if not given or not others:
        raise ValueError(f"{CALL}: no prompts. Give one target or row or more.")
    names = circuit.meta["roles"]
    lay = _layer(circuit, roles)

    def seen() -> Iterator[tuple[Run, Int[Tensor, " pos"]]]:
        for number, item in enumerate(tqdm(others, desc="means", delay=1.0, disable=not progress)):
            target, slots = lay(item, number)
            yield target.run, slots

    means, count = mean_values(seen(), len(names) + 1)
    strength, rows = None, []
    for number, item in enumerate(tqdm(given, desc="kept", delay=1.0, disable=not progress)):
        target, slots = lay(item, number)
        lacking = sorted({[*names, "no role"][slot] for slot in slots.tolist() if not count[slot]})
        if lacking:
            raise ValueError(
                f"{CALL}: item {number} has a position in {lacking[0]!r}, no prompt of the mean "
                "has. Give reference= prompts with the same roles."
            )
        if strength is None:
            strength = strengths(circuit, values_of(target.run))
        rows.append(_row(target, placed(strength, slots), placed(means, slots), shares))
    table = pd.DataFrame(rows)
    tops = [[f"{kind} {share}" for share in shares] for kind in ("value", "nodes")]
    value, nodes = (table[columns].mean().to_numpy() for columns in tops)
    prompts = table.drop(columns=[*tops[0], *tops[1]])
    curve = {"share": shares, "nodes": nodes, "value": value}
    empty, whole = (float(np.mean(prompts[name].to_numpy())) for name in ("empty", "model"))
    curve["faithfulness"] = share_of(value, empty, whole)
    return AverageFaithfulness(prompts, pd.DataFrame(curve))


def _layer(circuit: Circuit, roles: Any) -> Callable[[Item, int], tuple[Target, Tensor]]:
    """What makes an item's target, checked, with the slot of each position; the last: no role."""
    names, facts = circuit.meta["roles"], ("model", "layers", "errors")

    def laid(item: Item, number: int) -> tuple[Target, Tensor]:
        target, named, _ = item.laid(roles, circuit.meta["many"]["rest"], number)
        run = target.run
        found = (run.model.name, run.model.read_as, run.errors) if isinstance(run, Run) else None
        if found != tuple(circuit.meta[name] for name in facts):
            raise ValueError(
                f"{CALL}: item {number} is "
                f"{'a contrast' if found is None else f'of {found[0]!r} read as {found[1]!r}'}; "
                f"the circuit is of {circuit.meta['model']!r} read as "
                f"{circuit.meta['layers']!r}. Give plain targets of that model, read likewise."
            )
        slots = [names.index(name) if name in names else len(names) for name in named]
        return target, torch.tensor(slots, device=run.next_logits.device)

    return laid


def strengths(circuit: Circuit, like: Any) -> dict[Part, Float[Tensor, "slot _"]]:
    """Return |attribution| where a prompt has them of a mean's nodes, by slot; 0 of all others.

    Nodes are heads, features, … and errors as strong as the threshold's share of the value. `like`:
    values of any run of the model. The last slot, of positions without a role, has none.
    """
    table, names = circuit.nodes, circuit.meta["roles"]
    least = max(circuit.meta["threshold"] * abs(circuit.value), 1e-12)
    strong = table["kind"].eq("error") & table["attribution"].abs().ge(least)
    table = table.loc[table["kind"].isin(INTERIOR) | strong]
    found = {part: one.new_zeros(len(names) + 1, one.shape[1]) for part, one in like.items()}
    columns = ["kind", "layer", "sublayer", "pos", "index", "attribution", "share"]
    for kind, layer, sublayer, pos, index, attribution, share in table[columns].itertuples(
        index=False
    ):
        which = kind if kind in ("error", "skip") else "nodes"
        where = 0 if which != "nodes" else index
        found[layer, sublayer, which][pos, where] = abs(attribution) / share
    return found


def _row(
    target: Target, scores: Any, reference: Any, shares: Sequence[int | float]
) -> dict[str, Any]:
    """A prompt's values with the circuit, its complement, nothing and parts of the circuit kept."""
    active = active_nodes(values_of(target.run))
    circuit = {part: one > 0 for part, one in scores.items()}
    own, nothing = size_of(circuit, active), {part: one & False for part, one in active.items()}
    tops = [
        circuit if share == 1 else strongest_nodes(scores, active, max(1, round(share * own)))
        for share in shares
    ]
    complement = {part: ~mask for part, mask in circuit.items()}
    sets: list[Masks] = [circuit, complement, nothing, *tops]
    masks = {part: torch.stack([one[part] for one in sets]) for part in active}
    alone, rest, empty, *values = filled_values(target, masks, reference).tolist()
    return {
        "label": target.label,
        "model": target.value,
        "circuit": alone,
        "complement": rest,
        "empty": empty,
        "nodes": own,
        "all": sum(int(mask.sum()) for mask in active.values()),
        **{f"value {share}": value for share, value in zip(shares, values, strict=True)},
        **{f"nodes {share}": size_of(top, active) for share, top in zip(shares, tops, strict=True)},
    }
