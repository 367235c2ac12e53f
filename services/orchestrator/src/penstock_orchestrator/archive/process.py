"""Composition of the projector's process: tables, feed, projector, verbs.

SQLAlchemy is not imported at the start: migrations run in a process of their own, and queries
bring it when somebody asks. An idle projector is a third smaller so.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from penstock.bus import topology
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.reader import LogReader
from penstock.contracts import archive, subjects
from penstock.contracts.errors import TransientError
from penstock.endpoint import Endpoint, Verb
from penstock.memory import settle
from penstock.telemetry.health import HealthServer
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.archive.feed import Feed
from penstock_orchestrator.archive.projector import Projector
from penstock_orchestrator.archive.settings import ArchiveSettings
from penstock_orchestrator.archive.store import REVISION, Store, open_store

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from penstock_orchestrator.archive.queries import Queries

_log = EventLog("penstock.projector")

_MIGRATE: Final = "penstock_orchestrator.archive.migrate"
_LONGEST_DELAY_SECONDS: Final = 15.0


async def run_projector(settings: ArchiveSettings, *, until: asyncio.Event | None = None) -> None:
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
    queries = LazyQueries(settings, claims)
    endpoint = Endpoint(settings, "archive", verbs(queries))

    async def canary() -> None:
        await bus.request(subjects.canary(settings.instance_id), b"{}")

    health = HealthServer(host=settings.metrics_host, port=settings.metrics_port, canary=canary)
    await health.start()
    await endpoint.start()
    projecting = asyncio.create_task(_project(settings, store, projector, ending), name="projector")
    waiting = asyncio.create_task(ending.wait(), name="ending")
    _log.info("projector.ready")
    try:
        await asyncio.wait({projecting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("projector.ending")
        await projector.stop()
        if not ending.is_set():
            await projecting
    finally:
        waiting.cancel()
        await _finish(projecting)
        await endpoint.stop()
        await queries.close()
        await health.stop()


async def _finish(projecting: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait({projecting}, timeout=10.0)
    if not done:
        projecting.cancel()
        await asyncio.wait({projecting})


async def _project(
    settings: ArchiveSettings, store: Store, projector: Projector, ending: asyncio.Event
) -> None:
    delay = 0.5
    while not ending.is_set():
        try:
            await ensure_tables(settings, store)
        except TransientError as error:
            _log.warning("projector.waiting", code=error.code, reason=error.message)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
        else:
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


class LazyQueries:
    """Brings the queries, and SQLAlchemy with them, when somebody first asks."""

    def __init__(self, settings: ArchiveSettings, claims: Claims) -> None:
        """Prepare; nothing is imported or connected yet."""
        self._settings = settings
        self._claims = claims
        self._lock = asyncio.Lock()
        self._queries: Queries | None = None
        self._engine: AsyncEngine | None = None

    async def get(self) -> Queries:
        """Return the queries."""
        async with self._lock:
            if self._queries is None:
                await asyncio.to_thread(
                    importlib.import_module, "penstock_orchestrator.archive.queries"
                )
                from penstock.db import create_engine  # noqa: PLC0415 - see above
                from penstock_orchestrator.archive.queries import (  # noqa: PLC0415
                    Queries,
                )

                self._engine = create_engine(
                    self._settings.resolved_database_url,
                    pool_size=self._settings.database_pool_size,
                    recycle_seconds=self._settings.database_pool_recycle_seconds,
                )
                self._queries = Queries(self._engine, self._claims.pack)
            return self._queries

    async def close(self) -> None:
        """Close the connections, if there are any."""
        if self._engine is not None:
            await self._engine.dispose()


_REQUESTS: Final[Mapping[str, type[BaseModel]]] = {
    "list_runs": archive.ListRuns,
    "get_run": archive.GetRun,
    "run_facts": archive.RunFacts,
    "list_sessions": archive.ListSessions,
    "get_session": archive.GetSession,
    "session_messages": archive.SessionMessages,
    "delete_session": archive.DeleteSession,
    "usage_summary": archive.UsageSummary,
}


def verbs(queries: LazyQueries) -> Mapping[str, Verb]:
    """Return all verbs by name; each is the method of ``Queries`` of that name."""

    def perform(name: str) -> Callable[[Any], Awaitable[BaseModel]]:
        async def ask(request: BaseModel) -> BaseModel:
            method = getattr(await queries.get(), name)
            answer: BaseModel = await method(request)
            return answer

        return ask

    return {
        name: Verb(request, perform(name), reads=name != "delete_session")
        for name, request in _REQUESTS.items()
    }
