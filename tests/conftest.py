"""Fixtures and markers for all kinds of tests."""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from penstock.embedded import NatsServer
from tests.support.loopback import refuse_other_hosts
from tests.support.postgres import create_database, drop_database, run_postgres

# Machines are shared: no example fails because it took long.
settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared-machine")

TESTS = Path(__file__).parent
FILES_BETWEEN_CHAOS = 5
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
        inside = item.path.is_relative_to(TESTS)
        # Tests outside are examples for authors of runners and workflows.
        folder = item.path.relative_to(TESTS).parts[0] if inside else "unit"
        if marker := MARKER_OF_FOLDER.get(folder):
            item.add_marker(marker)
    spread_chaos(items)


def spread_chaos(items: list[pytest.Item]) -> None:
    """Order the files so that chaos, which keeps all cores busy, does not start side by side."""
    files = dict.fromkeys(item.path for item in items)
    chaos = [file for file in files if file.parent == TESTS / "chaos"]
    others = [file for file in files if file.parent != TESTS / "chaos"]
    rank = {file: float(place) for place, file in enumerate(others)}
    rank |= {file: FILES_BETWEEN_CHAOS * place - 0.5 for place, file in enumerate(chaos)}
    items.sort(key=lambda item: rank[item.path])


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[None]:
    """No test reaches a model, or anything else, beyond this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse_other_hosts(socket.socket.connect))
        yield


@pytest.fixture(autouse=True)
def levels_of_loggers() -> Iterator[None]:
    """A command of the CLI silences the loggers of its process; here others read their lines."""
    loggers = [logging.getLogger(name) for name in ("penstock", "nats")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server for all tests that keep to their own tenant; never stopped by a test."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def create_nats_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., NatsServer]]:
    """Start servers of the test's own, on free ports; takes the options of `NatsServer`."""
    with ExitStack() as stack:

        def create(**options: Any) -> NatsServer:
            directory = tmp_path_factory.mktemp("nats")
            return stack.enter_context(NatsServer(directory, **options))

        yield create


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL 18: in a container where a Docker engine answers, else as a child process."""
    # Not below pytest's own folder: run by root, PostgreSQL works as another user, whom every
    # further pytest process would shut out of that folder.
    with (
        TemporaryDirectory(prefix="penstock-pg-", ignore_cleanup_errors=True) as directory,
        run_postgres(Path(directory)) as url,
    ):
        yield url


@pytest.fixture
async def postgres_database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of an empty PostgreSQL database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    url = await create_database(postgres_url, name)
    yield url
    await drop_database(postgres_url, name)
