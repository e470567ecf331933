"""One circuit of many prompts: each is traced, added up by roles, block by block on disk.

A block is whole or not there, and says which prompts it is of; so a job that was killed goes on at
the first block that is missing, and ends with the same files.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from attribution.plan import check_bound
from attribution.sweep import GateRule
from circuits.average import AverageCircuit, average_of, merge
from circuits.circuit import Circuit
from circuits.items import Item, items_of
from circuits.parquet import database, read_table, whole_folder, write_table
from circuits.ranks import Ranks, joined
from circuits.roles import POSITIONS
from circuits.summing import sums_of
from circuits.tracer import check_rule, trace
from graphs.files.atomic import write_whole
from replacement.target import Target

REST = "other"
BLOCK = 32
OF_TRACE = (
    "model",
    "layers",
    "errors",
    "n_layers",
    "threshold",
    "gate",
    "max_nodes",
    "dtype",
    "weights",
    "versions",
)
"""What is the same for all prompts."""
_PARTS = ["token", "position", "error", "bias", "pruned", "switch"]


def trace_many(
    items: Iterable[Target | Mapping[str, Any]],
    *,
    model: Any = None,
    roles: Any = None,
    rest: str | None = REST,
    folder: str | Path | None = None,
    threshold: int | float = 0.005,
    max_nodes: int | None = None,
    gate: GateRule = "absolute",
    min_share: int | float = 0.05,
    block: int = BLOCK,
    progress: bool = True,
) -> AverageCircuit:
    """Return the mean of the circuits of many prompts, laid together by the roles of positions.

    A node of the mean is a part of the model in a role (feature 512 of layer 3 at END); its
    attribution is the mean over all prompts, 0 where a prompt lacks it. Sums hold as in every
    single circuit: `explained` and the conservation of flow are linear.

    Parameters
    ----------
    items
        Targets, best made on the way (`(model.run(p).logit(" to") for p in prompts)`), so that one
        run at a time is in memory; or rows with `prompt`, `explain`, perhaps `minus`, `roles` and
        `against` (a counterfactual prompt: a mean of contrasts), as `circuits trace MODEL
        prompts.jsonl` reads them, which need `model`. One prompt against several counterfactuals is
        as many rows.
    roles
        Positions by name, `{"IO": 2, "S1": 4, "END": -1}` (a list of positions is added up), or a
        function of a run that returns such; rows may have their own. "positions": every position is
        a role, for prompts of one length. By default the explained position is END.
    rest
        What all positions without a role are called together; None leaves them out, and books what
        they gave and got as pruned.
    folder
        Where sums are kept, a temporary one by default. What is there of the same job is not done
        again; `prompts.parquet`, `nodes.parquet` and `edges.parquet` hold all in the end, those of
        few prompts too. `AverageCircuit.read(folder)` opens it again.
    threshold, max_nodes, gate
        As in `trace`.
    min_share
        Nodes and edges found in a smaller share of prompts are booked as pruned.
    block
        So many prompts are summed at once in memory.

    Under torchrun every process makes the same call, with a `folder`, and traces its share of the
    blocks; what comes out is the same, in all. Rows are run by the process that traces them alone.

    Raises
    ------
    TypeError, ValueError
        For an item or roles that make no sense (its number is said), no items, options that make
        no sense, or a folder that holds another job.

    Examples
    --------
    >>> from circuits import load, trace_many
    >>> model = load("four-tasks")
    >>> names = [("Mary", "John"), ("Alice", "Peter")]
    >>> rows = [
    ...     {
    ...         "prompt": f"When {a} and {b} went to the store, {b} gave a drink to",
    ...         "explain": f" {a}",
    ...         "minus": f" {b}",
    ...         "roles": {"IO": 2, "S1": 4, "S2": 10, "END": 14},
    ...     }
    ...     for a, b in names
    ... ]
    >>> mean = trace_many(rows, model=model, progress=False)
    >>> mean.meta["roles"]
    ['other', 'IO', 'S1', 'S2', 'END']
    """
    check_bound(max_nodes)
    check_rule(threshold, gate, "flow")
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise ValueError(f"trace_many(block={block!r}): how many prompts at once, 1 or more.")
    options = {"threshold": threshold, "gate": gate, "max_nodes": max_nodes, "rest": rest}
    with tempfile.TemporaryDirectory() as temporary, joined() as ranks:
        if ranks.count > 1 and folder is None:
            raise ValueError(
                f"trace_many(folder=None): {ranks.count} processes share the prompts. Give a "
                "folder that all of them see."
            )
        job = _Job(Path(temporary if folder is None else folder), options, roles, block, ranks)
        bar = tqdm(items, desc="prompts", disable=not progress or ranks.rank > 0)
        job.add_all(items_of(bar, model))
        ranks.wait()
        if not ranks.rank:
            merge(job.folder)
        ranks.wait()
        return average_of(job.folder, min_share)


class _Job:
    """A folder of blocks, what is asked of every prompt, and which blocks this process makes."""

    def __init__(
        self, folder: Path, options: dict[str, Any], roles: Any, block: int, ranks: Ranks
    ) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"trace_many(folder={str(folder)!r}): is a file; give a folder.")
        self.folder, self.options, self.roles, self.block = folder, options, roles, block
        self.ranks, self.blocks = ranks, folder / "blocks"
        self.blocks.mkdir(parents=True, exist_ok=True)
        self._hashed: tuple[Any, str] = (None, "")

    def add_all(self, items: Iterator[Item]) -> None:
        """Trace all items that no block has yet."""
        done = {int(place.name.split("-")[1]): place for place in self.blocks.glob("block-*")}
        number = 0
        for block in itertools.count():
            if block in done:
                given = self._kept(done[block], items, number)
            elif block % self.ranks.count == self.ranks.rank:
                traced = list(self._traced(itertools.islice(items, self.block), number))
                if traced:
                    self._write(self.blocks / f"block-{block:06}", traced, number)
                given = len(traced)
            else:  # another rank's
                given = sum(1 for _ in itertools.islice(items, self.block))
            number += given
            if not given and block >= max(done, default=-1):
                break
        if not number:
            raise ValueError("trace_many: there are no prompts. Give one target or row or more.")

    def _kept(self, place: Path, items: Iterator[Item], number: int) -> int:
        """How many prompts a block has that are the next ones given; ValueError for others."""
        digests = read_table(place / "prompts.parquet")["digest"].tolist()
        for which, digest in enumerate(digests, start=number):
            item = next(items, None)
            if item is None or item.digest != digest:
                raise ValueError(
                    f"trace_many(folder={str(self.folder)!r}): prompt {which} in it is "
                    f"{'not given' if item is None else 'another one than given'}. Give the "
                    "same prompts in the same order (more may follow) and, after a job of several "
                    "processes, the same block=, or another folder."
                )
            self._check(self._asked(item.model), which)
        return len(digests)

    def _traced(
        self, items: Iterable[Item], number: int
    ) -> Iterator[tuple[str, Circuit, list[str]]]:
        names = ("threshold", "gate", "max_nodes")
        options = {name: self.options[name] for name in names}
        for item in items:
            target, roles, given = item.laid(self.roles, self.options["rest"], number)
            circuit = trace(target, **options, progress=False)
            length = len(circuit.meta["tokens"]) if given == POSITIONS else None
            of_trace = {name: circuit.meta[name] for name in OF_TRACE}
            facts = {"of_trace": of_trace, "number of tokens": length}
            self._check({**self._asked(item.model), **facts}, number)
            yield item.digest, Circuit(circuit.data), roles
            number += 1

    def _asked(self, model: Any) -> dict[str, Any]:
        """What must be the same for all prompts and is known before one is run."""
        if self._hashed[0] is not model:
            self._hashed = (model, fingerprint(model))
        roles = None if callable(self.roles) else self.roles
        return {**self.options, "roles": roles, "weights": self._hashed[1]}

    def _check(self, facts: dict[str, Any], number: int) -> None:
        """Write down what is asked with the first prompt; ValueError where a later one differs."""
        path = self.folder / "asked.json"
        text = json.dumps(facts, indent=1)
        if not path.exists():
            write_whole(path, text.encode())
        there = json.loads(path.read_text(encoding="utf-8"))
        for name, fact in json.loads(text).items():
            if there.get(name) != fact:
                raise ValueError(
                    f"item {number}: {name} {fact!r:.120} where it was {there.get(name)!r:.120} "
                    "before. One model, one set of options and, where positions are roles, one "
                    "length is needed; give what differs another folder."
                )

    def _write(self, place: Path, given: list[tuple[str, Circuit, list[str]]], number: int) -> None:
        rows = [
            _row(number + which, digest, circuit, roles)
            for which, (digest, circuit, roles) in enumerate(given)
        ]
        sums = sums_of([circuit.data for _, circuit, _ in given], [roles for *_, roles in given])
        with whole_folder(place) as draft, database(draft.parent) as connection:
            write_table(connection, pd.DataFrame(rows), draft / "prompts.parquet")
            write_table(connection, sums.nodes, draft / "nodes.parquet")
            write_table(connection, sums.edges, draft / "edges.parquet")


def _row(number: int, digest: str, circuit: Circuit, roles: list[str]) -> dict[str, Any]:
    return {
        "number": number,
        "digest": digest,
        "prompt": circuit.meta["prompt"] or "",
        "label": circuit.meta["target"]["label"],
        "value": circuit.value,
        **circuit.explained.reindex(_PARTS).fillna(0.0).to_dict(),
        "tokens": len(circuit.meta["tokens"]),
        "nodes": len(circuit.data.nodes),
        "edges": len(circuit.data.edges),
        **circuit.meta["checks"],
        "roles": json.dumps(roles, ensure_ascii=False),
    }


def fingerprint(model: Any) -> str:
    """Return a hash of some numbers of all weights of a model and its layers.

    >>> from circuits import load
    >>> fingerprint(load("four-tasks")) == fingerprint(load("four-tasks"))
    True
    """
    found = hashlib.sha256()
    layers = [part for one in model.weights.layers for part in (one.attention, one.mlp)]
    parts = [*layers, *model.weights.streams.values()]
    tensors = [*model.hf_model.parameters()]
    for part in parts:
        if part is not None:
            tensors += [part.read, part.write, part.read_bias]
    for tensor in tensors:
        if tensor.numel():
            rows = torch.linspace(0, len(tensor) - 1, 8, device=tensor.device).long()
            few = tensor.detach()[rows].flatten()
            few = few[:: max(1, len(few) // 64)].double().cpu()
            found.update(few.numpy().tobytes())
    return found.hexdigest()[:16]
