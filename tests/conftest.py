"""Fixtures and markers for all kinds of tests."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MARKER_OF_FOLDER = {
    "unit": "unit",
    "properties": "unit",
    "contracts": "unit",
    "integration": "integration",
    "e2e": "e2e",
    "chaos": "chaos",
    "deploy": "deploy",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if marker := MARKER_OF_FOLDER.get(folder):
            item.add_marker(marker)
