"""What `load` returns: a replacement model, and what its weights alone say about its features."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from attribution.coactivation import Weighting
from attribution.connections import connections
from attribution.vocabulary import feature_tokens
from replacement.model import ReplacementModel
from replacement.run import Run


class LoadedModel(ReplacementModel):
    """A `ReplacementModel` that can be asked about its features without a prompt."""

    def connections(
        self,
        feature: Any,
        k: int = 10,
        *,
        runs: Iterable[Run] | None = None,
        weighting: Weighting = "active",
    ) -> pd.DataFrame:
        """Return the strongest global in- and out-neighbours of a feature.

        See `attribution.connections.connections`.

        >>> from circuits import load
        >>> load("four-tasks").connections("L1.f18", k=2)["direction"].tolist()
        ['in', 'in', 'out', 'out']
        """
        return connections(self, feature, k, runs=runs, weighting=weighting)

    def feature_tokens(self, feature: Any, k: int = 10) -> pd.DataFrame:
        """Return the tokens a feature promotes, suppresses, is excited by and is inhibited by.

        See `attribution.vocabulary.feature_tokens`.

        >>> from circuits import load
        >>> load("four-tasks").feature_tokens((1, 18), k=1)["relation"].tolist()
        ['promoted', 'suppressed', 'excited', 'inhibited']
        """
        return feature_tokens(self, feature, k)
