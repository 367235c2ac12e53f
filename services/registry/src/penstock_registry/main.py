"""Composition of the registry: database, buckets, live runners and verbs, in dependency order."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from penstock import clock, db
from penstock.bus.connection import Bus, JetStreamError, connect
from penstock.bus.topology import ensure
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError, TransientError
from penstock.endpoint import Endpoint
from penstock.memory import settle
from penstock.telemetry.health import HealthServer
from penstock.telemetry.logs import EventLog
from penstock.telemetry.process import observed
from penstock_registry.agents import HttpAgents
from penstock_registry.aliases import VersionAliases
from penstock_registry.definitions import Definitions
from penstock_registry.handlers import Parts, verbs
from penstock_registry.keys import ApiKeys
from penstock_registry.publisher import Publisher
from penstock_registry.runner_registry import RunnerRegistry
from penstock_registry.settings import RegistrySettings
from penstock_registry.store import Store, revision
from penstock_registry.tables import PACKAGE, REVISION

SERVICE: Final = "registry"
EXIT_FAILED: Final = 1

log = EventLog(__name__)


def run(settings: RegistrySettings) -> None:
    """Serve until SIGTERM or SIGINT, then leave the process.

    Raises:
        SystemExit: With 0 after an orderly end, 1 if it could not start.
    """
    import uvloop  # noqa: PLC0415 - only where a process is run

    try:
        with observed(settings, SERVICE):
            uvloop.run(serve(settings))
    except PenstockError as error:
        log.exception("registry.failed", code=error.code)
        sys.exit(EXIT_FAILED)
    sys.exit(0)


async def serve(settings: RegistrySettings, *, until: asyncio.Event | None = None) -> None:
    """Serve until a signal, or ``until`` is set.

    Raises:
        PenstockError: It could not start.
    """
    ending = until if until is not None else asyncio.Event()
    if until is None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
        settle()
    engine = db.create_engine(
        settings.resolved_database_url,
        pool_size=settings.database_pool_size,
        recycle_seconds=settings.database_pool_recycle_seconds,
    )
    try:
        bus, _ = await asyncio.gather(
            connect(settings, name=f"{SERVICE}-{settings.instance_id}"),
            _bring_up_to_date(engine),
        )
        try:
            await ensure(bus, settings)
            await _serve(settings, bus, Store(engine), ending)
        finally:
            await bus.close()
    finally:
        await engine.dispose()


async def _bring_up_to_date(engine: AsyncEngine) -> None:
    """Run the migrations that are missing; where none is, Alembic is not even imported."""
    if await revision(engine) != REVISION:
        await db.upgrade(engine, package=PACKAGE)


async def _serve(
    settings: RegistrySettings, bus: Bus, database: Store, ending: asyncio.Event
) -> None:
    publisher = Publisher(bus, database, _now)
    definitions = Definitions(database, publisher, _now)
    aliases = VersionAliases(database, publisher, _now)
    runner_registry = RunnerRegistry(bus, lost_kept_seconds=settings.registry_lost_kept_seconds)
    agents = HttpAgents(bus, database, definitions, _now, ttl_seconds=settings.runner_ttl_seconds)
    keys = ApiKeys(database, publisher, _now)
    endpoint = Endpoint(
        settings, SERVICE, verbs(Parts(definitions, aliases, agents, keys, runner_registry))
    )

    async def canary() -> None:
        await bus.request(subjects.canary(settings.instance_id), b"{}")

    health = HealthServer(host=settings.metrics_host, port=settings.metrics_port, canary=canary)
    await runner_registry.start()
    await publisher.repair()
    repairs = asyncio.create_task(_keep_repaired(bus, settings, publisher), name="repairs")
    try:
        await endpoint.start()
        await health.start()
        log.info("registry.ready")
        await ending.wait()
        log.info("registry.ending")
        await endpoint.stop()
        await health.stop()
    finally:
        repairs.cancel()
        await asyncio.gather(repairs, return_exceptions=True)
        await runner_registry.stop()


async def _keep_repaired(bus: Bus, settings: RegistrySettings, publisher: Publisher) -> None:
    """Repair streams and buckets after each reconnection, and at intervals.

    Streams too: a single server that restarts forgets those that are kept in memory.
    """
    reconnected = asyncio.Event()
    bus.on_reconnect.append(reconnected.set)
    while True:
        try:
            async with asyncio.timeout(settings.registry_repair_seconds):
                await reconnected.wait()
        except TimeoutError:
            log.debug("registry.repair_due")
        reconnected.clear()
        try:
            await ensure(bus, settings)
            await publisher.repair()
        except (TransientError, JetStreamError) as error:
            log.warning("registry.repair_postponed", reason=str(error))
            await asyncio.sleep(1.0)
            reconnected.set()


def _now() -> datetime:
    return clock.now()
