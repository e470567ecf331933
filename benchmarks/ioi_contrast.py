"""The IOI circuit of `four-tasks`: one contrast, averaged over pairs, and patches that confirm it.

The two names are exchanged throughout, so that what each of their three places does is part of the
difference. Nothing is chosen by hand; shares are of the difference of logit(IO) − logit(S):

1. *movers*: the heads that get `STRONG` of it or more at END by values, from which places;
2. *steered*: what they get there by queries and keys, also where S2 alone is changed;
3. *marks*: what writes `WEAK` or more at S2 for the movers that read there, and what that reads.

Then edges of `WEAK` or more between two places are cut, beside all others and random ones.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
import typer
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.baselines import exhaustive_edges, flow_tables, metric_difference, recorded
from benchmarks.edges import EdgeModel, Pairs, Patching
from benchmarks.four_tasks.folder import write_json
from benchmarks.report.cells import rounded
from benchmarks.tasks import counterfactuals as rules
from benchmarks.truth.measure import RECOMMENDED
from circuits import load
from replacement.secant import RunPair

PLACES = ("IO", "S1", "S2", "END", "other")
STRONG, WEAK, DRAWS = 0.1, 0.05, 20
Rule = Callable[[random.Random], rules.Counterfactual]
Asked = tuple[list[rules.Counterfactual], Pairs]


class Averaged(NamedTuple):
    """The mean contrast of many pairs, positions summed by what stands there; flows as shares."""

    difference: float
    flows: Float[Tensor, "edge read_at written_at"]
    sizes: Float[Tensor, " edge"]
    """Of each edge the mean size of its largest flow between two places; it may change sign."""
    looks: Float[Tensor, "layer head read_at looked_at"]
    moved: Float[Tensor, "layer head read_at"]
    """Attention of the clean runs, and how much of it lies elsewhere in the others."""


def asked(model: EdgeModel, rule: Rule, count: int) -> Asked:
    """Return held-out pairs by one of IOI's rules, the same ones every time."""
    rng = random.Random("ioi contrast")
    chosen = [rule(rng) for _ in range(count)]
    return chosen, rules.pairs_of(chosen, model.source.tokenizer, model.weights.d_vocab)


@torch.no_grad()
def averaged(model: EdgeModel, chosen: list[rules.Counterfactual], pairs: Pairs) -> Averaged:
    """Return the mean contrast of pairs."""
    found = []
    for row, runs in enumerate(recorded(model, pairs)):
        one = pairs.part(slice(row, row + 1))
        target = metric_difference(RunPair(*runs, RECOMMENDED), one)
        at = places(chosen[row], len(runs[0].tokens))
        tables = [torch.einsum("rqwp,qa,pb->rwab", t, at, at) for t in flow_tables(model, target)]
        edges = torch.cat([table.flatten(0, 1) for table in tables])
        clean, other = (torch.stack([one.attention.pattern for one in run.layers]) for run in runs)
        looks = torch.einsum("lhqk,qa,kb->lhab", clean, at, at)
        moved = ((clean - other).abs().sum(-1) / 2) @ at
        sizes = edges.flatten(1).abs().amax(1)
        found.append((torch.tensor(target.value), edges, sizes, looks, moved))
    whole, edges, sizes, *rest = (torch.stack(one).mean(0) for one in zip(*found, strict=True))
    return Averaged(float(whole), edges / whole, sizes / whole, *rest)


def places(one: rules.Counterfactual, n_pos: int) -> Float[Tensor, "pos place"]:
    """Return which place each position is, as ones and zeros."""
    named = {one.roles[name][0]: number for number, name in enumerate(PLACES[:-1])}
    return torch.eye(len(PLACES))[[named.get(pos, len(PLACES) - 1) for pos in range(n_pos)]]


def reading(model: EdgeModel, node: str, via: str) -> Bool[Tensor, " edge"]:
    """Return which edges a node gets by one way."""
    by = torch.tensor([one == via for one in model.graph.via])
    return by & (model.graph.reader == model.graph.nodes.index(node))


def part_of(model: EdgeModel, found: Averaged, head: str, at: str) -> dict[str, float]:
    """Return what a head gets at a place by v, q and k, and where it looks."""
    place = PLACES.index(at)
    layer, index = (int(number[1:]) for number in head.split("."))
    got = {via: found.flows[reading(model, head, via), place].sum(0) for via in "vqk"}
    looks = found.looks[layer, index, place]
    return {
        **{f"v from {name}": float(got["v"][number]) for number, name in enumerate(PLACES[:3])},
        **{via: float(got[via].sum()) for via in "qk"},
        **{f"looks at {name}": float(looks[number]) for number, name in enumerate(PLACES[:3])},
        "moved": float(found.moved[layer, index, place]),
    }


def told(model: EdgeModel, found: Averaged) -> dict[str, dict[str, dict[str, float]]]:
    """Return the movers at END, and what marks S2 for those of them that read there."""
    end, s2 = PLACES.index("END"), PLACES.index("S2")
    heads = [name for name in model.graph.writers if name.startswith("a")]
    values = {head: found.flows[reading(model, head, "v"), end].sum(0) for head in heads}
    movers = [head for head in heads if float(values[head].abs().sum()) >= STRONG]
    by_s2 = [reading(model, one, "v") for one in movers if abs(values[one][s2]) >= STRONG / 2]
    given = sum((found.flows[:, end, s2] * mask for mask in by_s2), torch.zeros(1))
    marks = {}
    for number, writer in enumerate(model.graph.writers):
        gives = float((given * (model.graph.writer == number)).sum())
        if abs(gives) >= WEAK:
            reads = part_of(model, found, writer, "S2") if writer in heads else {}
            marks[writer] = {"gives": gives, **reads}
    return {"movers": {head: part_of(model, found, head, "END") for head in movers}, "marks": marks}


def steered(model: EdgeModel, movers: list[str], asked: Asked) -> dict[str, dict[str, float]]:
    """Return what the movers get at END, and what cutting all queries of each undoes."""
    found, patching = averaged(model, *asked), Patching(model, asked[1])
    whole, rows = metric_with(patching, torch.ones(model.graph.n_edges, dtype=torch.bool)), {}
    for head in movers:
        fallen = whole - metric_with(patching, ~reading(model, head, "q"))
        rows[head] = part_of(model, found, head, "END") | {"cut": fallen / found.difference}
    return rows


def confirmed(model: EdgeModel, found: Averaged, pairs: Pairs) -> dict[str, Any]:
    """Return what cutting the named edges does, alone and together, beside others and chance."""
    patching, alone = Patching(model, pairs), exhaustive_edges(model, pairs) / found.difference
    named, rank = found.sizes >= WEAK, 1 + alone.abs().argsort(descending=True).argsort()
    strongest = rank <= named.sum()
    empty = metric_with(patching, torch.zeros_like(named))

    def figures(mask: Bool[Tensor, " edge"]) -> dict[str, float]:
        return {
            "mean effect": float(alone[mask].abs().mean()),
            "among as many strongest": float(strongest[mask].float().mean()),
            "left without": (metric_with(patching, ~mask) - empty) / found.difference,
            "left alone": (metric_with(patching, mask) - empty) / found.difference,
        }

    def rows(mask: Bool[Tensor, " edge"]) -> dict[str, dict[str, float]]:
        table = pd.DataFrame({"share": found.sizes, "effect": alone, "rank": rank, "mask": mask})
        table.index = pd.Index(model.graph.names)
        return table.loc[table.pop("mask")].sort_values("rank").to_dict("index")

    source = torch.Generator().manual_seed(0)
    drawn = [figures(named[torch.randperm(len(named), generator=source)]) for _ in range(DRAWS)]
    return {
        "edges": rows(named),
        "stronger, not named": rows(strongest & ~named),
        "named": figures(named),
        "others": figures(~named),
        "random": pd.DataFrame(drawn).mean().to_dict(),
    }


def metric_with(patching: Patching, mask: Bool[Tensor, " edge"]) -> float:
    """Return the mean metric with the marked edges clean, all others from the counterfactual."""
    return float(patching.metric(mask.float()).mean())


def measured(model: EdgeModel, count: int) -> dict[str, Any]:
    """Return all figures from `count` pairs of each rule."""
    swapped, flips = asked(model, rules.ioi_swapped, count), asked(model, rules.ioi_flip, count)
    found = averaged(model, *swapped)
    parts = told(model, found)
    third = Patching(model, asked(model, rules.ioi_random, count)[1])
    nothing = torch.zeros(model.graph.n_edges, dtype=torch.bool)
    return {
        "pairs": count,
        "difference": found.difference,
        **parts,
        "S2 alone changed": steered(model, list(parts["movers"]), flips),
        "metric with a third name at S2": metric_with(third, nothing),
        **confirmed(model, found, swapped[1]),
    }


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs of each counterfactual rule.")] = 100,
) -> None:
    """Look for the IOI circuit of the bundled model and confirm it by patching."""
    model = EdgeModel(load("four-tasks", mlp="neurons", attention="heads"))
    found = rounded(measured(model, pairs))
    for name, rows in found.items():
        nested = isinstance(rows, dict) and isinstance(next(iter(rows.values())), dict)
        typer.echo(f"\n{name}\n{pd.DataFrame(rows).T.to_string() if nested else rows}")
    if output is not None:
        command = f"python -m benchmarks.ioi_contrast --pairs {pairs} -o {output.name}"
        write_json(output, {"command": command, **found})


if __name__ == "__main__":
    typer.run(main)
