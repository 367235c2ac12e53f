"""Composition root of the archive: tables, feed, projector, verbs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Final

import uvloop

from penstock.bus import topology
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError, TransientError
from penstock.endpoint import Endpoint
from penstock.memory import settle
from penstock.telemetry.health import HealthServer
from penstock.telemetry.logs import EventLog
from penstock.telemetry.process import observed
from penstock_archive.drivers import open_store
from penstock_archive.feed import Feed
from penstock_archive.parts import Parts, verbs
from penstock_archive.projector import Projector
from penstock_archive.settings import ArchiveSettings
from penstock_archive.store import REVISION, Store
from penstock_archive.upkeep import Upkeep

log = EventLog(__name__)

SERVICE: Final = "archive"
_MIGRATE: Final = "penstock_archive.migrate"
_LONGEST_DELAY_SECONDS: Final = 15.0


def run(settings: ArchiveSettings) -> None:
    """Project and answer until SIGTERM or SIGINT.

    Raises:
        SystemExit: With 1 if the archive cannot start or must not continue.
    """
    try:
        with observed(settings, SERVICE):
            uvloop.run(serve(settings))
    except PenstockError as error:
        log.exception("archive.failed", code=error.code)
        sys.exit(1)


async def serve(settings: ArchiveSettings, *, until: asyncio.Event | None = None) -> None:
    """Project and answer until SIGTERM or SIGINT, or until ``until`` is set.

    Args:
        settings: Of this process.
        until: Stands for the signals, in tests.

    Raises:
        InvariantError: The archive belongs to another stream, or the bus is unfit.
    """
    ending = until if until is not None else asyncio.Event()
    if until is None:
        os.nice(settings.projector_niceness)
        settle()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
    bus = await connect(settings, name=f"projector-{settings.instance_id}")
    store = open_store(settings.resolved_database_url)
    try:
        await topology.ensure(bus, settings)
        await _serve(settings, bus, store, ending)
    finally:
        await store.close()
        await bus.close()


async def _serve(settings: ArchiveSettings, bus: Bus, store: Store, ending: asyncio.Event) -> None:
    claims = Claims(bus, settings.claim_threshold_bytes)
    feed = Feed(
        bus,
        subjects.RUNS,
        subjects.PROJECTOR,
        batch_size=settings.projector_batch_size,
        recreate=lambda: topology.ensure(bus, settings),
    )
    projector = Projector(
        bus,
        store,
        feed,
        LogReader(bus, claims),
        claims,
        batch_size=settings.projector_batch_size,
        flush_seconds=settings.projector_flush_seconds,
    )
    parts = Parts(settings, bus, claims)
    upkeep = Upkeep(settings, parts, store)
    projector.on_refused = upkeep.forget_late
    endpoint = Endpoint(settings, SERVICE, verbs(parts))

    async def canary() -> None:
        await bus.request(subjects.canary(settings.instance_id), b"{}")

    health = HealthServer(host=settings.metrics_host, port=settings.metrics_port, canary=canary)
    await health.start()
    await endpoint.start()
    projecting = asyncio.create_task(
        _project(settings, store, projector, upkeep, ending), name="projector"
    )
    waiting = asyncio.create_task(ending.wait(), name="ending")
    log.info("projector.ready")
    try:
        await asyncio.wait({projecting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        log.info("projector.ending")
        await projector.stop()
        if not ending.is_set():
            await projecting
    finally:
        waiting.cancel()
        await _finish(projecting)
        await upkeep.stop()
        await endpoint.stop()
        await parts.close()
        await health.stop()


async def _finish(projecting: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait({projecting}, timeout=10.0)
    if not done:
        projecting.cancel()
        await asyncio.wait({projecting})


async def _project(
    settings: ArchiveSettings,
    store: Store,
    projector: Projector,
    upkeep: Upkeep,
    ending: asyncio.Event,
) -> None:
    delay = 0.5
    while not ending.is_set():
        try:
            await ensure_tables(settings, store)
        except TransientError as error:
            log.warning("projector.waiting", code=error.code, reason=error.message)
            upkeep.hindered(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
        else:
            await upkeep.start()
            await projector.run()
            return


async def ensure_tables(settings: ArchiveSettings, store: Store) -> None:
    """Bring the tables up to date, in a child process, where they are not.

    Raises:
        TransientError: ``archive_unavailable``.
    """
    if await store.revision() == REVISION:
        return
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _MIGRATE,
        env={**os.environ, "PENSTOCK_DATABASE_URL": settings.resolved_database_url},
    )
    if await child.wait() != 0:
        raise TransientError("archive_unavailable", "the tables could not be brought up to date")
