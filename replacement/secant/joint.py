"""How a difference of what a sublayer wrote joins the stream: as it is, or through a norm."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from replacement.held import Joint
from replacement.secant.norms import SecantNorm


class SecantJoint(Joint):
    """The secant of the norm after a sublayer; biases make no difference."""

    def __init__(self, secant: SecantNorm | None) -> None:
        super().__init__(None, None)
        object.__setattr__(self, "secant", secant)

    secant: SecantNorm | None

    def back(self, gradient: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        return gradient if self.secant is None else self.secant.back(gradient)

    def forward(
        self, written: Float[Tensor, "node d_model"], pos: Int[Tensor, " node"]
    ) -> Float[Tensor, "node d_model"]:
        return written if self.secant is None else self.secant.forward(written, pos)

    def bias(self, bias: Any, like: Any) -> None:
        """Return None: what is always written makes no difference."""
