"""How differences of products are split: the one free choice of the secant map."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SecantRule:
    """Weights of the clean run in `Δ(ab) = (w·a + (1−w)·a′)·Δb + ((1−w)·b + w·b′)·Δa`.

    Exact for any weight from 0 to 1; 1/2 is the mean of both orders. `a` is the pattern, the query
    or the norm's scale; `b` the value, the key or the centred input.

    The defaults were measured (docs/contrast.md): with 1/2 what a query and a key did together can
    cancel, with 0 or 1 one of them gets nothing; between, edges of models whose circuit is known
    are all found.
    """

    pattern_value: int | float = 0.75
    query_key: int | float = 0.75
    norm: int | float = 0.5
    gated: int | float = 0.5
    """Of a gated MLP: `a` is the gate's branch, `b` the other."""

    def __post_init__(self) -> None:
        """Raise ValueError unless every weight is from 0 to 1."""
        for name, weight in vars(self).items():
            if not isinstance(weight, int | float) or not 0 <= weight <= 1:
                raise ValueError(f"SecantRule({name}={weight!r}): a weight from 0 to 1 is needed.")


def mixed(
    clean: Float[Tensor, "*axes"], other: Float[Tensor, "*axes"], weight: int | float
) -> Float[Tensor, "*axes"]:
    """Return `weight · clean + (1 − weight) · other`."""
    return weight * clean + (1 - weight) * other
