"""What holds for every table of errors."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def as_users_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of the tests, which would refuse first, in words of their own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
