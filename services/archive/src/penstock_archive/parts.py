"""Archive request handlers, and from when on they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import archive, archive_maintenance, archive_reports
from penstock.contracts.errors import TransientError
from penstock.db import create_engine
from penstock.endpoint import Verb
from penstock_archive.erasure import Eraser
from penstock_archive.keeping import Keeper
from penstock_archive.queries import Queries
from penstock_archive.reports import Reports
from penstock_archive.settings import ArchiveSettings
from penstock_archive.traces import Traces

_PATIENCE_SECONDS: Final = 3.0


class Parts:
    """The objects that answer the archive's verbs, each by a method of the verb's name."""

    def __init__(self, settings: ArchiveSettings, bus: Bus, claims: Claims) -> None:
        """Compose them; the database is connected at the first request."""
        self._engine = engine = create_engine(
            settings.resolved_database_url,
            pool_size=settings.database_pool_size,
            recycle_seconds=settings.database_pool_recycle_seconds,
        )
        reader = LogReader(bus, claims)
        self.queries = Queries(engine, claims.pack)
        self.reports = Reports(engine)
        self.eraser = Eraser(engine, bus, Traces(bus, reader), settings.shards)
        self.keeper = Keeper(engine, bus, reader, claims)
        self.ready = asyncio.Event()
        """The tables are as the code knows them."""
        self.hindrance = TransientError("archive_starting", "the archive's tables are being made")
        """Why they are not."""

    async def when_ready(self) -> Parts:
        """Return the parts; callers wait while the process starts.

        Raises:
            TransientError: ``archive_starting``, ``archive_unavailable``.
        """
        if not self.ready.is_set():
            try:
                await asyncio.wait_for(self.ready.wait(), _PATIENCE_SECONDS)
            except TimeoutError:
                raise self.hindrance from None
        return self

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()


_REQUESTS: Final[Mapping[str, tuple[str, type[BaseModel]]]] = {
    "list_runs": ("queries", archive.ListRuns),
    "get_run": ("queries", archive.GetRun),
    "run_facts": ("queries", archive.RunFacts),
    "open_runs": ("queries", archive.OpenRuns),
    "list_sessions": ("queries", archive.ListSessions),
    "get_session": ("queries", archive.GetSession),
    "session_messages": ("queries", archive.SessionMessages),
    "delete_session": ("queries", archive.DeleteSession),
    "usage_summary": ("reports", archive_reports.UsageSummary),
    "list_steps": ("reports", archive.ListSteps),
    "list_signals": ("reports", archive.ListSignals),
    "cost_report": ("reports", archive_reports.CostReport),
    "profile_report": ("reports", archive_reports.ProfileReport),
    "get_profile": ("reports", archive_reports.GetProfile),
    "erase_run": ("eraser", archive_maintenance.EraseRun),
    "erase_session": ("eraser", archive_maintenance.EraseSession),
    "erase_tenant": ("eraser", archive_maintenance.EraseTenant),
    "restore_run": ("keeper", archive_maintenance.RestoreRun),
    "rebuild": ("keeper", archive_maintenance.Rebuild),
    "get_status": ("keeper", archive.GetStatus),
}
_WRITING: Final = frozenset(
    {"delete_session", "erase_run", "erase_session", "erase_tenant", "restore_run", "rebuild"}
)


def verbs(parts: Parts) -> Mapping[str, Verb]:
    """Return all verbs by name."""

    def perform(part: str, name: str) -> Callable[[Any], Awaitable[BaseModel]]:
        async def ask(request: BaseModel) -> BaseModel:
            method = getattr(getattr(await parts.when_ready(), part), name)
            answer: BaseModel = await method(request)
            return answer

        return ask

    return {
        name: Verb(request, perform(part, name), reads=name not in _WRITING)
        for name, (part, request) in _REQUESTS.items()
    }
