"""The largest differences, in the terminal: what docs/layer_formats.md says was measured."""

import pytest

DIFFERENCES = pytest.StashKey[dict[str, list[float]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[DIFFERENCES] = {}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for package, found in config.stash[DIFFERENCES].items():
        terminalreporter.write_line(
            f"{package}: {len(found)} files, largest difference {max(found):.1e}"
        )
