"""What holds for every test: no network, fixed seeds, and a hypothesis that repeats itself.

Types and shapes are checked at run time in at most `CHECKED` cases of every test, spread evenly:
in all of them they would take most of the time.

The library may not be imported here: jaxtyping instruments its packages at their first import.
"""

import os
from collections import defaultdict
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("repeatable")

CHECKED = 6
TYPES_CHECKED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say of every case of a test whether types are checked in it."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    for several in cases.values():
        every = -(-len(several) // CHECKED)
        for number, item in enumerate(several):
            item.stash[TYPES_CHECKED] = number % every == 0


@pytest.fixture(autouse=True)
def types_checked(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether types and shapes are checked in the test at hand; they are, if it is one of those."""
    checked = request.node.stash[TYPES_CHECKED]
    jaxtyping.config.update("jaxtyping_disable", not checked)
    yield checked
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random state, in whatever order tests run."""
    torch.manual_seed(0)
