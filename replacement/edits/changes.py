"""From edits to numbers: which row of a batch changes which node at which position to what.

All checks are here, so that a bad edit is refused before anything runs.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.edits.edit import EVERYWHERE, Ablate, Add, Scale, Set, SetPattern
from replacement.edits.node import SOURCES, Node, nodes_of
from replacement.edits.recorded import mean_recorded, recorded, width_of
from replacement.run import Run

Part = tuple[int, str, str]
"""Layer, sublayer and "nodes", "skip" or "error"; (-1, "", "token" | "position")."""


@dataclass(frozen=True, eq=False)
class Change:
    """Nodes of one part: what each becomes is `factor` times what it is plus `value`."""

    row: Int[Tensor, " change"]
    """Of the batch."""
    pos: Int[Tensor, " change"]
    index: Int[Tensor, " change"]
    factor: Float[Tensor, " change"]
    """0: clamped to `value`; 1: increased by it."""
    value: Float[Tensor, "change *width"]


@dataclass(frozen=True, eq=False)
class PatternChange:
    """Rows of patterns of one layer, clamped."""

    row: Int[Tensor, " change"]
    head: Int[Tensor, " change"]
    query: Int[Tensor, " change"]
    weights: Float[Tensor, "change key"]

    def applied(
        self, pattern: Float[Tensor, "*batch head query key"], n_rows: int
    ) -> Float[Tensor, "batch head query key"]:
        """Return a batch of patterns with these rows in place of what was there."""
        pattern = pattern.expand(n_rows, *pattern.shape[-3:]).clone()
        pattern[self.row, self.head, self.query] = self.weights
        return pattern


@dataclass(frozen=True, eq=False)
class Changes:
    """All changes of a batch of edited runs."""

    n_rows: int
    parts: Mapping[Part, Change]
    patterns: Mapping[int, PatternChange]
    """By layer."""

    def of(self, layer: int, sublayer: str) -> dict[str, Change]:
        """Return the changes of a sublayer: of its "nodes", "skip" and "error"."""
        return {part[2]: one for part, one in self.parts.items() if part[:2] == (layer, sublayer)}

    @property
    def places(self) -> set[tuple[int, str]]:
        """Sublayers in which something changes."""
        return {part[:2] for part in self.parts} | {(layer, "attn") for layer in self.patterns}


class _One(NamedTuple):
    row: int
    node: Node
    factor: float
    value: Tensor


def changes_of(run: Run, rows: Sequence[Sequence[Any]], *, goes_on: bool = False) -> Changes:
    """Return the changes that edits make of a run, one list of edits a row of the batch.

    `goes_on`: more tokens follow, so that a slice may begin behind the prompt.

    Raises TypeError, ValueError or IndexError for an edit that makes no sense, before anything
    runs: a node or position that does not exist, a mean over no runs, two edits of one node, a
    value that is not finite or of another width.
    """
    made, patterns = [], {}
    for row, edits in enumerate(rows):
        seen: set[Any] = set()
        for edit in edits:
            if isinstance(edit, SetPattern):
                _add_pattern(run, row, edit, patterns, seen)
                continue
            for node in _placed(run, edit, goes_on=goes_on):
                _refuse_second(node, seen)
                made.append(_One(row, node, *_effect(run, edit, node)))
    return _gathered(run, len(rows), made, patterns)


def changes_of_new_token(run: Run, edits: Sequence[Any], pos: int) -> Changes:
    """Return what edits at open-ended positions make of the token generated at `pos`."""
    made = []
    for edit in edits:
        if isinstance(edit, SetPattern) or not _goes_on(edit.positions, pos, run):
            continue
        for node in nodes_of(edit.nodes):
            node = node.placed(0)
            made.append(_One(0, node, *_effect_ahead(run, edit, node)))
    return _gathered(run, 1, made, {})


def _goes_on(positions: Any, pos: int, run: Run) -> bool:
    """Whether positions hold for a token after the prompt."""
    if isinstance(positions, str):
        return positions == EVERYWHERE
    if not isinstance(positions, slice) or positions.stop is not None:
        return False
    start, step = positions.start or 0, positions.step or 1
    start += len(run.tokens) if start < 0 else 0
    return pos >= start and (pos - start) % step == 0


def _refuse_second(node: Any, seen: set[Any]) -> None:
    if node in seen:
        raise ValueError(
            f"two edits of one node, {node}: what would hold is unclear. Give one edit a node and "
            "position."
        )
    seen.add(node)


def _placed(run: Run, edit: Any, *, goes_on: bool) -> Iterator[Node]:
    """The nodes of an edit, one for each position, each checked to exist."""
    if not isinstance(edit, Set | Scale | Ablate | Add):
        raise TypeError(
            f"an edit is Set, Scale, Ablate, Add or SetPattern; got {type(edit).__name__}: "
            f"{edit!r:.60}."
        )
    for node in nodes_of(edit.nodes):
        where = node.pos if edit.positions is None else edit.positions
        if where is None:
            raise ValueError(
                f"{node}: at which position? Give the node a pos, or the edit positions=14, "
                'slice(7, None) or "all".'
            )
        width_of(run.weights, node.placed(0))
        if goes_on and isinstance(where, slice) and (where.start or 0) >= len(run.tokens):
            continue
        for pos in positions_of(run, where):
            yield node.placed(pos)


def positions_of(run: Run, where: Any) -> list[int]:
    """Return positions of a run's prompt, from 0; IndexError for one outside."""
    count = len(run.tokens)
    if isinstance(where, slice):
        _refuse_outside(count, [where.start or 0])
        return list(range(count))[where]
    if isinstance(where, str):
        if where != EVERYWHERE:
            raise ValueError(f'positions={where!r}: a number, a list, a slice, or "all".')
        return list(range(count))
    try:
        given = [operator.index(where)] if hasattr(where, "__index__") else list(where)
        numbers = [operator.index(one) for one in given]
    except TypeError:
        raise TypeError(
            f'positions={where!r:.60}: a whole number, a list of them, a slice, or "all".'
        ) from None
    _refuse_outside(count, numbers)
    return [number % count for number in numbers]


def _refuse_outside(count: int, numbers: Sequence[int]) -> None:
    for number in numbers:
        if not -count <= number < count:
            raise IndexError(
                f"position {number} is outside the prompt of {count} tokens: 0 to {count - 1}, or "
                "-1 for the last."
            )


def _effect(run: Run, edit: Any, node: Node) -> tuple[float, Tensor]:
    """Factor and value of an edit at a position of the prompt."""
    if isinstance(edit, Scale):
        return 0.0, _number(run, node, edit.factor) * recorded(run, node)
    if isinstance(edit, Ablate):
        return 0.0, _reference(run, edit.to, node)
    if isinstance(edit, Add):
        return 1.0, _value(run, node, edit.amount)
    return 0.0, _value(run, node, edit.value)


def _effect_ahead(run: Run, edit: Any, node: Node) -> tuple[float, Tensor]:
    """The same in a token that the run has not seen."""
    nothing = run.next_logits.new_zeros(width_of(run.weights, node))
    if isinstance(edit, Scale):
        return float(_number(run, node, edit.factor)), nothing
    if isinstance(edit, Ablate):
        runs = _runs(run, edit.to)
        if runs is None:
            return 0.0, nothing
        if isinstance(edit.to, Run):
            raise ValueError(
                f"{node}: a token generated later has no counterpart in another run. Ablate it to "
                '"zero" or to a list of runs, or end the positions with the prompt.'
            )
        return 0.0, mean_recorded(runs, node._replace(pos=None))
    return _effect(run, edit, node)


def _reference(run: Run, to: Any, node: Node) -> Tensor:
    assert node.pos is not None, "nodes were placed"
    runs = _runs(run, to)
    if runs is None:
        return run.next_logits.new_zeros(width_of(run.weights, node))
    shortest = min(len(other.tokens) for other in runs)
    if node.pos >= shortest:
        raise IndexError(
            f"Ablate(to=...): {node} needs position {node.pos} in every run, and one has only "
            f"{shortest} tokens. Give runs that are long enough."
        )
    return mean_recorded(runs, node)


def _runs(run: Run, to: Any) -> list[Run] | None:
    """The runs that a reference is taken from; None for zero."""
    if isinstance(to, str) and to == "zero":
        return None
    runs: Any = [to] if isinstance(to, Run) else to
    if not isinstance(runs, Sequence) or not all(isinstance(one, Run) for one in runs):
        raise TypeError(f'Ablate(to={to!r:.60}): "zero", a run, or a list of runs.')
    if not runs:
        raise ValueError(
            "Ablate(to=[]): the mean over no runs is nothing. Give the runs to take it over."
        )
    for other in runs:
        if other.model is not run.model:
            raise ValueError(
                f"Ablate(to={other!r:.80}): a run of another model. Make it by run.model.run(...)."
            )
    return list(runs)


def _number(run: Run, node: Node, factor: Any) -> Tensor:
    return _checked(run, node, factor, (), "factor")


def _value(run: Run, node: Node, value: Any) -> Tensor:
    return _checked(run, node, value, width_of(run.weights, node), "value")


def _checked(run: Run, node: Node, value: Any, shape: tuple[int, ...], what: str) -> Tensor:
    try:
        made = torch.as_tensor(value).to(run.next_logits).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{node}: {what} {value!r:.60} is no number.") from None
    if made.shape != shape or not torch.isfinite(made).all():
        wanted = f"{shape[0]} finite numbers" if shape else "one finite number"
        got = f"shape {tuple(made.shape)}" if made.shape != shape else "NaN or infinity"
        raise ValueError(f"{node}: {wanted} are needed as {what}; got {got}.")
    return made


def _add_pattern(
    run: Run, row: int, edit: SetPattern, found: dict[int, list[Any]], seen: set[Any]
) -> None:
    queries, count = positions_of(run, edit.queries), len(run.tokens)
    layer, head, *_ = run.score_place(edit.layer, edit.head, count - 1, count - 1)
    named = Node("head", layer, "attn", index=head)
    given = torch.as_tensor(edit.weights).to(run.next_logits)
    if given.shape not in ((count,), (len(queries), count)):
        raise ValueError(
            f"SetPattern of {named}: {count} weights are needed (one a key), or {len(queries)} "
            f"rows of them; got shape {tuple(given.shape)}."
        )
    weights = given.detach().expand(len(queries), count)
    if not torch.isfinite(weights).all():
        raise ValueError(f"SetPattern of {named}: weights hold NaN or infinity; give finite ones.")
    for query, one in zip(queries, weights, strict=True):
        if one[query + 1 :].any():
            raise ValueError(
                f"SetPattern of {named}: a weight on a key after the query {query}. Later keys are "
                "not seen; give 0 there, or weights for each query."
            )
        _refuse_second(("pattern", layer, head, query), seen)
        found.setdefault(layer, []).append((row, head, query, one))


def _gathered(
    run: Run, n_rows: int, made: Sequence[_One], patterns: Mapping[int, list[Any]]
) -> Changes:
    parts: dict[Part, list[_One]] = {}
    for one in made:
        node = one.node
        name = node.kind if node.kind in (*SOURCES, "skip", "error") else "nodes"
        layer, sublayer = (-1, "") if node.kind in SOURCES else (node.layer, node.sublayer)
        parts.setdefault((layer, sublayer, name), []).append(one)
    device = run.next_logits.device

    def numbers(values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    changes = {
        part: Change(
            numbers([one.row for one in some]),
            numbers([one.node.pos for one in some]),
            numbers([one.node.index for one in some]),
            run.next_logits.new_tensor([one.factor for one in some]),
            torch.stack([one.value for one in some]),
        )
        for part, some in parts.items()
    }
    clamped = {
        layer: PatternChange(
            numbers([row for row, _, _, _ in some]),
            numbers([head for _, head, _, _ in some]),
            numbers([query for _, _, query, _ in some]),
            torch.stack([weights for _, _, _, weights in some]),
        )
        for layer, some in patterns.items()
    }
    return Changes(n_rows, changes, clamped)
