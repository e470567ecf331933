"""One browser for all tests of the page."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graphs.graph import Graph
from graphs.view.page import page
from tests.browser.opened import Opened, browser, missing


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def driver(downloads: Path) -> Iterator[Any]:
    why = missing()
    if why:
        pytest.skip(f"no browser: {why}")
    with browser(downloads) as driver:
        yield driver


@pytest.fixture
def opened(driver: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Opens the page of a graph; at the end nothing was asked for and nothing complained."""
    pages = []

    def of(graph: Graph, other: Graph | None = None, address: str = "") -> Opened:
        path = tmp_path / "page.html"
        path.write_text(page(graph, other), encoding="utf-8")
        pages.append(Opened(driver, path, address))
        return pages[-1]

    yield of
    assert pages[-1].requests() == []
    assert pages[-1].complaints() == []
