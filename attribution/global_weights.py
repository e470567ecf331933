"""Global weights: what one unit of a feature gives another's pre-activation, in any prompt (2.7).

`weight[n, s] = w_read_n · w_write_s` along the residual stream, `w_read_n W_O W_V w_write_s`
through one of the model's heads; gains and centring of all norms folded in, their denominators left
out. An edge of a run is what the run brings (activation, pattern, denominators) times this weight.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.places import Branch, Head, Place, Places

Direction = Literal["in", "out"]
NUMBERS = 2**22
"""How many weights there are at once while the strongest are looked for."""


class Way(NamedTuple):
    """How what was written comes to a reader: by one of its branches, perhaps through a head."""

    via: str
    branch: Branch
    head: Head | None


def ways_of(places: Places, place: Place) -> Iterator[Way]:
    """Yield every way in which the features of a place read other positions' or their own."""
    for branch in place.branches:
        yield Way(branch.via, branch, None)
        if branch.head is None:
            before = "" if branch is place.branches[0] else f"{branch.via}, "
            for head in places.heads():
                if places.sees(head, place):
                    yield Way(before + head.via, branch, head)


def way_of(places: Places, place: Place, via: Any) -> Way:
    """Return the way of that name; ValueError where a place's features read in no such way."""
    found = {way.via: way for way in ways_of(places, place)}
    if via not in found:
        raise ValueError(
            f"via={via!r}: {place.name} of layer {place.layer} reads via {', '.join(found)}."
        )
    return found[via]


def virtual_weights(
    model: Any,
    reader: tuple[int, str],
    writer: tuple[int, str],
    via: str = "residual",
    *,
    readers: Sequence[int] | None = None,
    writers: Sequence[int] | None = None,
) -> Float[Tensor, "target source"]:
    """Return the global weights between features of two sublayers, as a dense table.

    `reader`, `writer`: (layer, "attn", "mlp", "resid" or "mid"). `via`: "residual", or one of the
    model's heads ("L1.head 3"); an attention SAE reads through the heads of its own layer, and
    neurons read with `split="half"` via "gate" besides. `readers`, `writers`: numbers of features,
    all by default. The effect of `source` on the pre-activation of `target` in a run is the weight
    times the source's activation, the head's pattern entry, and one over the denominators of the
    norms between. A feature that writes to several layers counts with all its writes that the
    reader sees; where norms stand behind them, as if their denominators were 1.

    Weights are zero where the reader comes before the writer. Raises ValueError for a sublayer
    without features or a way in which the reader does not read, IndexError for a feature that does
    not exist.

    >>> from circuits import load
    >>> model = load("four-tasks", attention="heads")
    >>> virtual_weights(model, (1, "mlp"), (0, "mlp"), "L1.head 3", readers=[5]).shape
    torch.Size([1, 1024])
    """
    places = Places(model.weights)
    to, of = places.named(*reader), places.named(*writer)
    rows, columns = _numbers(places, to, readers), _numbers(places, of, writers)
    with torch.no_grad():
        none = torch.zeros(len(rows), of.n_features, dtype=model.dtype, device=model.device)
        parts = parts_in(places, to, way_of(places, to, via), rows, of)
        return sum(parts.values(), none)[:, columns]


def _numbers(places: Places, place: Place, given: Sequence[int] | None) -> Int[Tensor, " _"]:
    where = places.weights.unembedding.device
    if given is None:
        return torch.arange(place.n_features, device=where)
    parts = [places.feature((place.layer, place.name, number)).index for number in given]
    return torch.tensor(parts, dtype=torch.int64, device=where)


def reading(
    places: Places, place: Place, way: Way, index: Int[Tensor, " row"]
) -> tuple[int, bool, Float[Tensor, "row d_model"]]:
    """Return the stage of the stream that features read in one way, its side, and how they read.

    The side is True for the stream in front of what replaces it there.
    """
    pulled = places.pulled(way.branch, way.branch.rows[index])
    if way.head is None:
        return place.reads_at, place.replaces, pulled
    return 2 * way.head.layer, False, places.before(way.head, pulled)


def parts_in(
    places: Places, place: Place, way: Way, index: Int[Tensor, " row"], writer: Place
) -> dict[int, Float[Tensor, "row feature"]]:
    """Return the weights of all features of `writer` into some of `place`, write by write."""
    stage, front, vectors = reading(places, place, way, index)
    visible = places.visible(writer, stage, front=front)
    return {number: places.met(writer, number, vectors) for number in visible}


def parts_out(
    places: Places, place: Place, index: Int[Tensor, " row"], reader: Place, way: Way
) -> dict[int, Float[Tensor, "row feature"]]:
    """Return the weights of some features of `place` into all of `reader`, write by write."""
    stage, front = reader.reads_at, reader.replaces
    if way.head is not None:
        stage, front = 2 * way.head.layer, False
    found = {}
    for number in places.visible(place, stage, front=front):
        added = places.added(place, index, number)
        arrived = added if way.head is None else places.behind(way.head, added)
        found[number] = places.read(way.branch, arrived)
    return found


@dataclass(frozen=True, eq=False)
class Strongest:
    """The k entries of largest magnitude a row, of tables that are seen one at a time."""

    weight: Float[Tensor, "row k"]
    table: Int[Tensor, "row k"]
    """Which of the tables, -1 where there were not k that are not zero."""
    column: Int[Tensor, "row k"]

    @classmethod
    def nothing(cls, model: Any, n_rows: int) -> "Strongest":
        """Return what there is before any table was seen."""
        none = torch.zeros(n_rows, 0, dtype=torch.int64, device=model.device)
        return cls(none.to(model.dtype), none, none)

    def joined(self, table: Float[Tensor, "row feature"], number: int, k: int) -> "Strongest":
        """Return the k largest |entry| of each row, those of one more table among them."""
        at = table.abs().topk(min(k, table.shape[1]), dim=1).indices
        weight = table.gather(1, at)
        mine = torch.full_like(at, number).masked_fill(weight == 0, -1)
        pairs = ((self.weight, weight), (self.table, mine), (self.column, at))
        both = [torch.cat(pair, dim=1) for pair in pairs]
        order = both[0].abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        return Strongest(*(part.gather(1, order) for part in both))


def strongest_weights(
    model: Any,
    place: tuple[int, str],
    k: int = 8,
    *,
    direction: Direction = "in",
    via: str = "residual",
    numbers: int = NUMBERS,
    progress: Callable[[Sequence[int]], Sequence[int]] = lambda starts: starts,
) -> pd.DataFrame:
    """Return, for every feature of a sublayer, its k strongest global neighbours by |weight|.

    `place`: (layer, sublayer). `direction`: "in" for what writes to the features, "out" for what
    reads them. `via` as in `virtual_weights`; of neighbours that do not read that way there are
    none. Features are taken in blocks, so that no more than about `numbers` weights are there at
    once; the table of all pairs never is. Columns: feature, rank, kind, layer, sublayer, index,
    name, weight; zero weights are left out.

    Raises ValueError as `virtual_weights`, and for a `k` or a direction that makes no sense.
    """
    check_neighbours(k, direction)
    places = Places(model.weights)
    own = places.named(*place)
    if direction == "in":
        way_of(places, own, via)
    widest = max(other.n_features for other in places.every)
    size = max(1, numbers // widest)
    found: list[pd.DataFrame] = []
    with torch.no_grad():
        for start in progress(range(0, own.n_features, size)):
            end = min(start + size, own.n_features)
            index = torch.arange(start, end, device=model.weights.unembedding.device)
            best, met = Strongest.nothing(model, len(index)), []
            for other, table in _tables(places, own, index, direction, via):
                best = best.joined(table, len(met), k)
                met.append(other)
            found.append(_rows(met or [own], best, index))
    return pd.concat(found, ignore_index=True)


def check_neighbours(k: Any, direction: Any) -> None:
    """Raise ValueError for a number of neighbours or a direction that makes no sense."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r}: how many neighbours, a whole number from 1.")
    if direction not in ("in", "out"):
        raise ValueError(
            f'direction={direction!r}: "in" for what writes to a feature, "out" for what reads it.'
        )


def _tables(
    places: Places, own: Place, index: Tensor, direction: Direction, via: str
) -> Iterator[tuple[Place, Tensor]]:
    """Neighbouring places, and the weights of the features of each."""
    for other in places.every:
        if direction == "in":
            parts = parts_in(places, own, way_of(places, own, via), index, other)
            ways = [parts]
        else:
            read = [way for way in ways_of(places, other) if way.via == via]
            ways = [parts_out(places, own, index, other, way) for way in read]
        for parts in ways:
            if parts:
                yield other, sum(parts.values(), torch.zeros_like(next(iter(parts.values()))))


def _rows(places: Sequence[Place], best: Strongest, index: Tensor) -> pd.DataFrame:
    """The table of the strongest neighbours of some features."""
    parts: list[pd.DataFrame] = []
    features = index.cpu().numpy()
    for number, place in enumerate(places):
        row, rank = np.nonzero(best.table.cpu().numpy() == number)
        part = place.rows(best.column.cpu().numpy()[row, rank])
        part.insert(0, "feature", features[row])
        part.insert(1, "rank", rank)
        parts.append(part.assign(weight=best.weight.double().cpu().numpy()[row, rank]))
    whole = pd.concat([part for part in parts if len(part)] or parts[:1])
    return whole.sort_values(["feature", "rank"], kind="stable").reset_index(drop=True)
