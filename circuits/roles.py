"""Which part every position of a prompt plays, so that prompts of one kind can be laid together."""

from collections.abc import Mapping
from typing import Any

from replacement.prompts import whole_number
from replacement.target import Target

POSITIONS = "positions"
"""Every position is a role of its own: for prompts of one length."""
LAST = "END"


def roles_by_position(target: Target, given: Any, rest: str | None) -> list[str]:
    """Return the name of the role of every position, "" where a position is to be left out.

    `given`: position (or several) by name, counted from 0 or from the end, or "positions"; None
    names the target's position END. `rest`: the name of all positions without a role, None to leave
    them out. Raises TypeError or ValueError for names or positions that make no sense.
    """
    n_pos = len(target.run.tokens)
    if given == POSITIONS:
        return [str(pos) for pos in range(n_pos)]
    named = {LAST: target.pos} if given is None else given
    if not isinstance(named, Mapping) or not named:
        raise TypeError(
            f"roles={given!r:.80}: position by name is needed, for instance "
            f'{{"IO": 2, "S1": 4, "END": -1}}, or "{POSITIONS}" for prompts of one length.'
        )
    found = [rest or ""] * n_pos
    taken: dict[int, str] = {}
    for name, places in named.items():
        if not isinstance(name, str) or not name.strip() or name == rest:
            raise ValueError(
                f"role {name!r}: a name is text that is not empty, and not {rest!r}, which all "
                "positions without a role have."
            )
        several = places if isinstance(places, list | tuple) else [places]
        for place in several:
            number = whole_number(place)
            if number is None or not -n_pos <= number < n_pos:
                raise ValueError(
                    f"role {name!r}: position {place!r} is outside the prompt of {n_pos} tokens; "
                    f"0 to {n_pos - 1}, or -1 for the last."
                )
            pos = number % n_pos
            if taken.setdefault(pos, name) != name:
                raise ValueError(
                    f"position {pos} is both {taken[pos]!r} and {name!r}: one role a position. "
                    "Leave one of them out."
                )
            found[pos] = name
    return found


def ordered(roles: Mapping[str, tuple[int, int]], rest: str | None) -> list[str]:
    """Return roles from left to right: by mean position, the rest before all others.

    `roles`: sum of positions and how many there were, by name.
    """
    return sorted(roles, key=lambda name: (name != rest, roles[name][0] / roles[name][1], name))
