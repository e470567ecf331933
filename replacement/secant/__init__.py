"""Two runs compared: every operation by its exact secant between them (docs/design.md, section 6).

The same interface as `replacement.held`, so that sweep and flow know nothing of which they run on.
"""

from replacement.secant.pair import RunPair
from replacement.secant.rule import SecantRule

__all__ = ["RunPair", "SecantRule"]
