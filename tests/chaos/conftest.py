"""What all chaos shares: its size, and the table of figures at the end."""

from __future__ import annotations

import pytest

from tests.chaos.figures import Figures
from tests.chaos.rig import Size, chosen_size

FIGURES = pytest.StashKey[Figures]()


@pytest.fixture
def size() -> Size:
    """How much chaos there is."""
    return chosen_size()


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> Figures:
    """Where a test leaves its figures; printed when all tests have run."""
    return pytestconfig.stash.setdefault(FIGURES, Figures())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    figures = config.stash.get(FIGURES, None)
    if figures is not None:
        terminalreporter.section("figures of chaos")
        for line in figures.lines():
            terminalreporter.line(line)
