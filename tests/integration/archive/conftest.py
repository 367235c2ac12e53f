"""A log and an archive of the test's own, on either database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.bus import topology
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.history import HistoryReader
from penstock.bus.writer import LogWriter
from penstock.db import create_engine
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings
from penstock_archive.settings import ArchiveSettings
from penstock_orchestrator.settings import OrchestratorSettings
from tests.integration.orchestrator.conftest import World


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each test runs on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'archive.db'}"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def server(create_nats_server: Callable[..., NatsServer]) -> NatsServer:
    """A log of the test's own: the projector reads all of it."""
    return create_nats_server()


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[Bus]:
    settings = CoreSettings(nats_url=server.url)
    bus = await connect(settings, name="test")
    await topology.ensure(bus, settings)
    yield bus
    await bus.close()


@pytest.fixture
def settings(server: NatsServer, database_url: str, tmp_path: Path) -> ArchiveSettings:
    return ArchiveSettings.model_validate(
        {
            "nats_url": server.url,
            "data_dir": tmp_path,
            "database_url": database_url,
            "metrics_port": -1,
            "projector_batch_size": 150,
            "projector_flush_seconds": 0.02,
        }
    )


@pytest.fixture
async def world(bus: Bus, server: NatsServer) -> AsyncIterator[World]:
    """A bus without an engine; what is read of runs is whole, from the log or the archive."""
    settings = OrchestratorSettings(nats_url=server.url, ack_wait_seconds=1, lease_ttl_seconds=1)
    claims = Claims(bus, settings.claim_threshold_bytes)
    writer = await LogWriter(bus, settings, claims).start()
    world = World(settings, bus, writer, HistoryReader(bus, claims), server)
    yield world
    await world.stop_engines()
    await writer.close()
