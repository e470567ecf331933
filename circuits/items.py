"""What can be traced in a row: targets, or rows that say what to run and to explain."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from circuits.contrasting import contrasted
from circuits.many import target_of
from circuits.roles import roles_by_position
from replacement.secant import RunPair
from replacement.target import Target

_NAMES = ("prompt", "explain", "minus", "against", "roles")
_ROW = (
    'A row is for instance {"prompt": "Mary and John went", "explain": " to", "minus": " in", '
    '"roles": {"IO": 1, "END": -1}}; minus, roles and against (a counterfactual) may be left out.'
)


class Item(NamedTuple):
    """One thing to trace: what it is, without having run it, and how to make its target."""

    digest: str
    target: Callable[[], Target]
    roles: Any
    model: Any

    def laid(self, roles: Any, rest: str | None, number: int) -> tuple[Target, list[str], Any]:
        """Return its target, the role of every position, and the roles as they were given.

        `roles`: for items without their own. Raises TypeError or ValueError, saying which item.
        """
        try:
            target = self.target()
            given = self.roles if self.roles is not None else roles
            given = given(target.run) if callable(given) else given
            return target, roles_by_position(target, given, rest), given
        except (ValueError, TypeError, IndexError) as problem:
            kind = TypeError if isinstance(problem, TypeError) else ValueError
            raise kind(f"item {number}: {problem}") from None


def items_of(items: Iterable[Any], model: Any) -> Iterator[Item]:
    """Yield targets and rows as what is done with them, not run yet.

    Raises TypeError or ValueError for one that is neither, saying which; see `trace_many`.
    """
    for number, item in enumerate(items):
        if isinstance(item, Target):
            yield _of_target(item)
        elif isinstance(item, Mapping):
            yield _of_row(item, model, number)
        else:
            raise TypeError(
                f"item {number} is a {type(item).__name__}: {item!r:.60}. A target is needed, or a "
                f"row. {_ROW}"
            )


def _of_target(target: Target) -> Item:
    run = target.run
    facts: list[Any] = [run.token_ids.tolist(), run.errors]
    if isinstance(run, RunPair):
        facts.append(run.other.token_ids.tolist())
    facts.append([term.as_data() for term in target.terms])
    return Item(_digest(facts), lambda: target, None, run.model)


def _of_row(row: Mapping[str, Any], model: Any, number: int) -> Item:
    wrong = [name for name in row if name not in _NAMES]
    missing = [name for name in ("prompt", "explain") if row.get(name) is None]
    if wrong or missing:
        what = f"no {missing[0]!r}" if missing else f"an unknown {wrong[0]!r}"
        raise ValueError(f"item {number} has {what}. {_ROW}")
    if model is None:
        raise ValueError(
            f"item {number} is a row, which a model must run. Give trace_many(..., model=model)."
        )

    def made() -> Target:
        target = target_of(model.run(row["prompt"]), row["explain"], row.get("minus"))
        return target if row.get("against") is None else contrasted(target, row["against"])

    return Item(_digest(dict(row)), made, row.get("roles"), model)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
