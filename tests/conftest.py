"""What holds for every test: no network, fixed seeds, and a hypothesis that repeats itself.

The library may not be imported here: jaxtyping instruments its packages at their first import.
"""

import os

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random state, in whatever order tests run."""
    torch.manual_seed(0)
