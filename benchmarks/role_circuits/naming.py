"""Names of heads by measure: where they look from a role, and what they write there.

A head *looks at* the previous token, an earlier copy of the token at hand (duplicate), what came
after it (induction), the first token, or a role, if more than `LOOKS` of its attention goes there,
the most telling first. It *copies* where, of what it moved from the key it attends to most, the
token there is among the `TOP` tokens raised most (Wang et al. 2022 count 5), in more than half of
the prompts, and *suppresses* it where it is among those lowered most.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from attribution.vocabulary import feature_tokens
from benchmarks.role_circuits.asking import Asked
from benchmarks.role_circuits.keeping import Means, Part, keep
from replacement.model import ReplacementModel

LOOKS = 0.4
COPIES = 0.5
TOP = 5
PLACES = ("duplicate", "induction", "previous token", "itself", "first token")
"""Places named by the tokens, the most telling first; all others are roles."""


def heads_named(asked: Sequence[Asked], means: Means, parts: Sequence[Part]) -> pd.DataFrame:
    """Return a row for each head among the parts: where it looks, what it writes, what it is for.

    Columns: role (where it acts), looks at, share (of its attention), copies, suppresses (shares of
    prompts), name, and `without`: the share of the metric left when it alone is mean-ablated there.
    """
    heads = [part for part in parts if part[0] == "head"]
    left = keep(asked, means, [[part] for part in heads])
    rows = []
    for part, kept in zip(heads, left, strict=True):
        looked = [_looks(one, part) for one in asked if part[4] in one.where]
        names = {name for look in looked for name in look}
        total = {name: sum(look.get(name, 0.0) for look in looked) / len(looked) for name in names}
        place, share = _telling(total)
        found = [_copied(one, part) for one in asked if part[4] in one.where]
        copies, suppresses = (sum(side) / len(found) for side in zip(*found, strict=True))
        rows.append(
            {
                "head": f"{part[2]}.{part[3]}",
                "role": part[4],
                "looks at": place,
                "share": share,
                "copies": copies,
                "suppresses": suppresses,
                "name": _name(place, share, copies, suppresses),
                "without": kept.complement,
            }
        )
    return pd.DataFrame(rows)


def promoted_by(model: ReplacementModel, parts: Sequence[Part], count: int = 5) -> pd.DataFrame:
    """Return the tokens that the strongest neurons or features among the parts raise and lower."""
    chosen = [part for part in parts if part[0] in ("neuron", "feature")][:count]
    rows = []
    for kind, _, layer, index, role in chosen:
        words = feature_tokens(model, (layer, index), k=4)
        sides = {
            name: " ".join(words.loc[words["relation"].eq(name), "token"])
            for name in ("promoted", "suppressed")
        }
        rows.append({"node": f"{kind} {layer}.{index}", "role": role, **sides})
    return pd.DataFrame(rows)


def _telling(total: dict[str, float]) -> tuple[str, float]:
    """The first place with enough of the attention; else the one with most."""
    for name in PLACES:
        if total.get(name, 0.0) > LOOKS:
            return name, total[name]
    best = max(sorted(total), key=lambda name: total[name])
    return best, total[best]


def _looks(one: Asked, part: Part) -> dict[str, float]:
    """How much of a head's attention goes to each place."""
    run, (_, _, layer, head, role) = one.run, part
    ids = run.token_ids.tolist()
    found: dict[str, float] = defaultdict(float)
    places = {pos: name for name, several in one.roles.items() for pos in several}
    queries = one.where[role]
    for query in queries:
        attention = _pattern(run, layer)[head, query].tolist()
        for key in range(query + 1):
            share = attention[key] / len(queries)
            earlier = key < query and ids[key] == ids[query]
            after = 0 < key <= query and key - 1 < query and ids[key - 1] == ids[query]
            found["duplicate"] += share * earlier
            found["induction"] += share * (after and key != query)
            found["previous token"] += share * (key == query - 1)
            found["itself"] += share * (key == query)
            found["first token"] += share * (key == 0)
            if key in places and key != query:
                found[places[key]] += share
    return found


def _copied(one: Asked, part: Part) -> tuple[bool, bool]:
    """Whether the token looked at most is among those that the head's move raises, or lowers."""
    run, (_, _, layer, head, role) = one.run, part
    query = one.where[role][0]
    key = int(_pattern(run, layer)[head, query].argmax())
    weights = run.weights
    norm, heads = weights.layers[layer].attention_norm, weights.layers[layer].heads
    read = norm.unscaled(run.residuals[2 * layer][key])  # a denominator changes no rank
    moved = read @ heads.value_of_head[head // heads.group] @ heads.output_of_head[head]
    logits = weights.final_norm.unscaled(moved) @ weights.unembedding.T
    rank = logits.argsort(descending=True)
    token = run.token_ids[key]
    return bool((rank[:TOP] == token).any()), bool((rank[-TOP:] == token).any())


def _pattern(run: Any, layer: int) -> Float[Tensor, "head query key"]:
    return run.sublayer(layer, "attn").run.pattern


def _name(place: str, share: float, copies: float, suppresses: float) -> str:
    """A head in words."""
    if share <= LOOKS:
        return "looks widely"
    if suppresses > COPIES:
        return f"suppresses {place}"
    return f"copies {place}" if copies > COPIES else f"reads {place}"
