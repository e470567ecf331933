"""What decides a training run."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunSettings:
    """What every training run has: how many steps, at which rate, from which seed."""

    steps: int = 4000
    learning_rate: float = 1e-3
    warm_up: int = 100
    seed: int = 0
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that train nothing, or the wrong way."""
        if self.steps < 1 or self.checkpoint_every < 1:
            raise ValueError(
                f"steps={self.steps}, checkpoint_every={self.checkpoint_every}: 1 or more."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: a number above 0.")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then a cosine to zero."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TopKSettings(RunSettings):
    """Everything but the model and the data that decides the weights of TopK layers."""

    n_features: int = 1024
    k: int = 16
    """Features kept at every position; the mean L0 is at most this."""
    k_start: int = 64
    """k at the first step; it falls to `k` over the first `k_share` of the steps."""
    k_share: float = 0.25
    dead_after: int = 100
    """Steps without a single activation after which a feature counts as dead."""
    restart_every: int = 50
    """Steps between restarts of dead features at tokens the others explain badly."""
    restart_share: float = 0.6
    """Share of the steps in which there are restarts; what is dead after that stays dead."""
    gentle_restarts: bool = True
    """Whether restarted features are weakened to what is left over at all tokens they answer to;
    without, a few that answer to many tokens can undo what was learned."""
    centred: bool = True
    """Whether inputs are taken from their mean while training, which is folded into the biases.
    Far faster where the mean is large beside what varies, as behind a pattern that rests on BOS."""

    def __post_init__(self) -> None:
        """Raise ValueError as `RunSettings`, and where more are kept than there are."""
        RunSettings.__post_init__(self)
        if not 0 < self.k <= self.n_features:
            raise ValueError(
                f"k={self.k} features cannot be kept of n_features={self.n_features}; "
                "give 0 < k <= n_features"
            )

    def k_at(self, step: int) -> int:
        """Return the number of features kept at a step.

        >>> settings = TopKSettings(k=16, k_start=64, k_share=0.25, steps=400)
        >>> settings.k_at(0), settings.k_at(50), settings.k_at(100)
        (64, 40, 16)
        """
        falling = max(1, round(self.k_share * self.steps))
        start = min(self.n_features, max(self.k, self.k_start))
        return self.k + round((start - self.k) * max(0.0, 1 - step / falling))

    def restarts_at(self, step: int) -> bool:
        """Return whether dead features are restarted after a step."""
        return (step + 1) % self.restart_every == 0 and step < self.restart_share * self.steps


@dataclass(frozen=True)
class LorsaSettings(TopKSettings):
    """Everything but the model and the data that decides the weights of Lorsa layers.

    `n_features` counts the value-output heads, in equal groups of one query-key head each.
    """

    repeats: int = 1
    """Query-key heads for each head of the model."""
    query_key_rate: float = 0.1
    """Learning rate of the query and key weights, as a share of the others'."""
    start: Literal["attention", "random"] = "attention"
    """From the model's own heads (their patterns, what they write), or from nothing."""
