"""What tests of the command line share."""

from pathlib import Path

import jaxtyping
import pytest


@pytest.fixture
def at_the_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, without the type checks of the tests, which refuse in their own words."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.chdir(tmp_path)
