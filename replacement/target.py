"""What is to be explained: a number that reads the residual stream of one run linearly."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from replacement.notebook import as_html


class Seed(NamedTuple):
    """Where a target reads: `vector` · residual stream of `stage` at `pos`, run's scales held."""

    stage: int
    pos: int
    vector: Float[Tensor, " d_model"]
    front: bool = False
    """Where the stream is replaced at this stage: True if what is replaced is read."""


@dataclass(frozen=True)
class Term:
    """One summand of a target, as data: enough to save it, and to measure it in a changed run."""

    kind: str
    """ "logit", "centered_logit", "feature", "direction" or "attention_score"."""
    weight: float
    layer: int
    pos: int
    """A score: the query."""
    index: int
    """Token id of a logit, number of a feature, head of a score; -1 for a direction."""
    vector: Float[Tensor, " d_model"] | None = None
    """The direction, for that kind."""
    sublayer: str = ""
    """A feature: name of the sublayer, "attn", "mlp", "resid" or "mid"."""
    key: int = -1
    """A score: position of the key."""
    side: str = ""
    """A score: which side is explained, "query", "key" or "both"."""

    def as_data(self) -> dict[str, Any]:
        """Return the term as JSON-able data."""
        data = dataclasses.asdict(dataclasses.replace(self, vector=None))
        data["vector"] = None if self.vector is None else self.vector.tolist()
        return data


@dataclass(frozen=True, eq=False)
class Target:
    """A logit, feature, direction or attention score, or a linear combination of such, of one run.

    Made by `run.logit`, `run.feature`, `run.direction` and `run.attention_score`; `a - b`, `a + b`
    and `2 * a` are targets too. `value = sum of seeds + bias` with everything of the run held.
    """

    run: Any
    """The run (`replacement.run.Run`) it belongs to."""
    label: str
    value: float
    """What the original model computed."""
    bias: float
    """The constant part: final norm bias, unembedding bias, encoder bias."""
    pos: int
    """The position explained; the last one for combinations."""
    seeds: tuple[Seed, ...]
    terms: tuple[Term, ...]
    centered_form: "Target | None" = None

    def seeds_at(self, stage: int, *, front: bool = False) -> list[Seed]:
        """Return the seeds that read the stream of a stage, or what is replaced there."""
        return [seed for seed in self.seeds if (seed.stage, seed.front) == (stage, front)]

    def centered(self) -> "Target":
        """Return the logit less the mean over the vocabulary (unembedding bias included).

        The common offset of all logits, which no probability depends on, is left out. Raises
        ValueError for a target that is no single logit: a difference has lost the offset already.
        """
        if self.centered_form is None:
            raise ValueError(
                f"{self.label} is not a single logit; only run.logit(...) can be centered. "
                "A difference of two logits is free of the common offset as it is."
            )
        return self.centered_form

    def __add__(self, other: "Target") -> "Target":
        if not isinstance(other, Target):
            return NotImplemented
        if other.run is not self.run:
            raise ValueError(
                f"{self.label} and {other.label} belong to different runs. "
                "Make both from the same run = model.run(prompt)."
            )
        minus = other.label.startswith("-")
        label = f"{self.label} {'-' if minus else '+'} {other.label.removeprefix('-')}"
        return Target(
            run=self.run,
            label=label,
            value=self.value + other.value,
            bias=self.bias + other.bias,
            pos=max(self.pos, other.pos),
            seeds=self.seeds + other.seeds,
            terms=self.terms + other.terms,
        )

    def __mul__(self, factor: int | float) -> "Target":
        if not isinstance(factor, int | float) or isinstance(factor, bool):
            return NotImplemented
        if not math.isfinite(factor):
            raise ValueError(f"{factor} · {self.label}: a finite factor is needed.")
        inner = self.label if len(self.terms) == 1 else f"({self.label})"
        return Target(
            run=self.run,
            label=f"-{inner}" if factor == -1 else f"{factor:g}·{inner}",
            value=factor * self.value,
            bias=factor * self.bias,
            pos=self.pos,
            seeds=tuple(seed._replace(vector=factor * seed.vector) for seed in self.seeds),
            terms=tuple(
                dataclasses.replace(term, weight=factor * term.weight) for term in self.terms
            ),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: int | float) -> "Target":
        return self * (1 / divisor)

    def __neg__(self) -> "Target":
        return self * -1

    def __sub__(self, other: "Target") -> "Target":
        return self + (-other) if isinstance(other, Target) else NotImplemented

    def __repr__(self) -> str:
        return f"Target({self.label} = {self.value:.4f} at position {self.pos})"

    def _repr_html_(self) -> str:
        """What it is, and its terms."""
        columns = {
            "weight": [f"{term.weight:+g}" for term in self.terms],
            "kind": [term.kind for term in self.terms],
            "of": [
                self.run.model.token_text(term.index)
                if term.kind in ("logit", "centered_logit")
                else f"layer {term.layer}"
                + (f", {term.sublayer} {term.index}" if term.index >= 0 else "")
                for term in self.terms
            ],
            "at": [f"{self.run.tokens[term.pos]!r}@{term.pos}" for term in self.terms],
        }
        return as_html(repr(self), columns)


def sum_of(targets: Sequence[Target]) -> Target:
    """Return the sum of one or more targets of one run."""
    total = targets[0]
    for other in targets[1:]:
        total = total + other
    return total
