"""Do a feature's strongest global in-neighbours make it? Named, ablated, and set against chance.

For induction and greater-than the MLP features at END that add most to the target are taken (mean
of |attribution| over training prompts, layers 1 and up). Their strongest in-neighbours along the
stream and through one head come from `model.connections`: by `expected`, what was really given over
the training prompts, and by weight alone. In each held-out prompt where the feature is active, its
neighbours that are active are set to 0 in the free model, wherever they stand, and in a second run
as many other active features of the same layers, drawn at random. A case counts where the
neighbours lower the feature's pre-activation by more.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from benchmarks.four_tasks.folder import write_json
from benchmarks.selection.prompts import Asked, asked, prompts
from circuits import load, trace
from replacement.edits import Ablate, Node, changes_of, live_values
from replacement.held import FeatureNodes
from replacement.run import Run

TASKS = ("induction", "greater_than")
Feature = tuple[int, int]
"""Layer and index of an MLP's feature."""


def strongest_features(train: Sequence[Asked], count: int) -> list[Feature]:
    """Return the MLP features at END of layers 1 and up that add most to the targets."""
    total: dict[Feature, float] = defaultdict(float)
    for one in train:
        nodes = trace(one.target, progress=False).nodes
        end = nodes["pos"].eq(len(one.run.tokens) - 1) & nodes["layer"].gt(0)
        here = nodes.loc[end & nodes["kind"].eq("feature")]
        for layer, index, attribution in zip(
            here["layer"], here["index"], here["attribution"], strict=True
        ):
            total[int(layer), int(index)] += abs(float(attribution))
    return sorted(total, key=lambda feature: -total[feature])[:count]


def in_neighbours(
    model: Any, feature: Feature, k: int, runs: Sequence[Run] | None
) -> dict[Feature, float]:
    """Return the k features that excite a feature most, by what runs show or by weight alone."""
    table = model.connections(f"L{feature[0]}.f{feature[1]}", k=4 * k, runs=runs)
    rank = "weight" if runs is None else "expected"
    table = table.loc[table["direction"].eq("in") & table[rank].gt(0)]
    order = table[rank].sort_values(ascending=False, kind="stable").index
    found: dict[Feature, float] = {}
    for layer, index, value in table.loc[order, ["layer", "index", rank]].itertuples(index=False):
        found.setdefault((int(layer), int(index)), float(value))
    return dict(list(found.items())[:k])


def active_features(run: Run, below: int) -> list[Node]:
    """Return the active features of MLPs of the first layers, `below` them being left out."""
    found = []
    for part in run.sublayers:
        if isinstance(part, FeatureNodes) and part.name == "mlp" and part.layer < below:
            places = zip(part.active.pos.tolist(), part.active.index.tolist(), strict=True)
            found += [Node("feature", part.layer, "mlp", pos, index) for pos, index in places]
    return found


def drops(
    run: Run, feature: Feature, neighbours: Sequence[Feature], rng: random.Random
) -> tuple[float, float] | None:
    """Return by how much a feature at END falls without its neighbours, and without others.

    None where the feature or all its neighbours are not active.
    """
    end = len(run.tokens) - 1
    if run.sublayer(feature[0], "mlp").find("feature", end, feature[1]) < 0:
        return None
    active = active_features(run, feature[0])
    mine = [node for node in active if (node.layer, node.index) in neighbours]
    layers = {layer for layer, _ in neighbours}
    others = [node for node in active if node not in mine and node.layer in layers]
    if not mine:
        return None
    target = run.feature(feature[0], end, feature[1])
    drawn = rng.sample(others, min(len(mine), len(others)))
    after = live_values(target, changes_of(run, [[Ablate(mine)], [Ablate(drawn)]]))
    return target.value - float(after[0]), target.value - float(after[1])


def measure(task: str, *, features: int, k: int, train: int, held_out: int) -> list[dict[str, Any]]:
    """Return, feature by feature and for both rankings, the neighbours and how often they win."""
    model = load("four-tasks", mlp="transcoders", attention="heads")
    seen = [asked(model, task, one) for one in prompts(task, "train", train)]
    tests = [asked(model, task, one).run for one in prompts(task, "held_out", held_out)]
    rows, runs = [], [one.run for one in seen]
    for feature in tqdm(strongest_features(seen, features), desc=task, delay=1.0):
        for rank, by in (("expected", runs), ("weight", None)):
            near = in_neighbours(model, feature, k, by)
            rng = random.Random(f"global neighbours/{task}/{feature}")
            with torch.no_grad():
                found = [drops(run, feature, list(near), rng) for run in tests]
            cases = [one for one in found if one is not None]
            rows.append(
                {
                    "feature": f"L{feature[0]}.f{feature[1]}",
                    "rank": rank,
                    "neighbours": {f"L{a}.f{b}": round(value, 5) for (a, b), value in near.items()},
                    "cases": len(cases),
                    "won": sum(mine > other for mine, other in cases),
                    "drop": _mean([mine for mine, _ in cases]),
                    "drop of others": _mean([other for _, other in cases]),
                }
            )
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def share_won(rows: Sequence[dict[str, Any]], rank: str) -> float:
    """Return in which share of all cases the neighbours of a ranking lower the feature more."""
    cases = sum(row["cases"] for row in rows if row["rank"] == rank)
    return sum(row["won"] for row in rows if row["rank"] == rank) / max(cases, 1)


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    features: Annotated[int, typer.Option(help="Features a task.")] = 5,
    k: Annotated[int, typer.Option(help="In-neighbours a feature.")] = 10,
    train: Annotated[int, typer.Option(help="Training prompts.")] = 40,
    held_out: Annotated[int, typer.Option(help="Held-out prompts.")] = 60,
) -> None:
    """Ablate the strongest global in-neighbours of each task's features, and random ones."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for task in TASKS:
        rows = measure(task, features=features, k=k, train=train, held_out=held_out)
        shares = {rank: round(share_won(rows, rank), 4) for rank in ("expected", "weight")}
        found[task] = {"share won": shares, "features": rows}
        typer.echo(f"{task}: {shares}")
    write_json(output, {"k": k, "train": train, "held out": held_out, "tasks": found})


if __name__ == "__main__":
    typer.run(main)
