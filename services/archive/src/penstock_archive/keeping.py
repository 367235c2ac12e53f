"""Bringing back: tables from the log, and a run's log from the tables."""

from __future__ import annotations

from typing import Final

from sqlalchemy import case, delete, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.copies import FactCopy, put_back
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.archive import ArchiveStatus, GetStatus
from penstock.contracts.archive_maintenance import Rebuild, Restored, RestoreRun
from penstock.contracts.errors import ConflictError, RejectedError, TransientError
from penstock.db import session_factory, session_scope
from penstock.telemetry.logs import EventLog
from penstock_archive.tables import (
    facts,
    messages,
    projection,
    runs,
    sessions,
    signals,
    steps,
    traits,
    usage,
)

log = EventLog(__name__)

_ENDED: Final = "run.ended"
_INVOKED: Final = "run.invoked"


class Keeper:
    """The archive's verbs that restore."""

    def __init__(self, engine: AsyncEngine, bus: Bus, reader: LogReader, claims: Claims) -> None:
        """Work over an engine that the caller disposes of.

        Args:
            engine: Of the archive's database.
            bus: The connection.
            reader: Reads the log.
            claims: Where large bodies are.
        """
        self._factory = session_factory(engine)
        self._bus = bus
        self._reader = reader
        self._claims = claims

    async def get_status(self, _request: GetStatus) -> ArchiveStatus:
        """Return how far the archive is.

        Raises:
            TransientError: ``log_unavailable``.
        """
        log_last_seq = await self._log_last_seq()
        async with session_scope(self._factory, read_only=True) as session:
            row = (await session.execute(select(projection))).first()
        if row is None:
            return ArchiveStatus(last_seq=0, log_last_seq=log_last_seq, lag_messages=log_last_seq)
        rebuilding = row.rebuild_until is not None and row.last_seq < row.rebuild_until
        return ArchiveStatus(
            last_seq=row.last_seq,
            log_last_seq=log_last_seq,
            lag_messages=max(0, log_last_seq - row.last_seq),
            rebuilding=rebuilding,
            rebuild_until=row.rebuild_until if rebuilding else None,
        )

    async def rebuild(self, request: Rebuild) -> ArchiveStatus:
        """Empty all tables that follow from facts, and have the projector begin anew.

        ``facts`` stays until the projector has read the same part of the log again: what the log
        has lost is nowhere else. A session that was hidden stays hidden.
        """
        until, reached = projection.c.rebuild_until, projection.c.last_seq
        further = case((until > reached, until), else_=reached)
        async with session_scope(self._factory) as session:
            await session.execute(
                update(projection).values(
                    generation=projection.c.generation + 1,
                    rebuild_until=further,
                    last_seq=0,
                )
            )
            for table in (runs, traits, steps, messages, usage, signals):
                await session.execute(delete(table))
            await session.execute(delete(sessions).where(sessions.c.deleted_seq.is_(None)))
        log.info("archive.rebuild_begins")
        return await self.get_status(GetStatus.model_validate(request.model_dump()))

    async def restore_run(self, request: RestoreRun) -> Restored:
        """Put the facts of an ended run back into the log.

        The end goes first, so that no runner takes up a step again; the invocation last, so that
        no engine decides before it can see earlier decisions. All may be repeated.

        Raises:
            RejectedError: ``run_not_found``.
            ConflictError: ``run_not_ended``.
            TransientError: The log did not take them; ask again.
        """
        async with session_scope(self._factory, read_only=True) as session:
            found = (
                await session.execute(
                    select(facts.c.seq, facts.c.subject, facts.c.type, facts.c.body)
                    .where(facts.c.run_id == request.run_id, facts.c.tenant == request.tenant)
                    .order_by(facts.c.seq)
                )
            ).all()
        if not any(row.type == _INVOKED for row in found):
            raise RejectedError("run_not_found", f"there is no run {request.run_id[:64]}")
        if not any(row.type == _ENDED for row in found):
            raise ConflictError(
                "run_not_ended", f"run {request.run_id} has not ended: it continues by itself"
            )
        shard = subjects.parse_fact(found[0].subject).shard
        there = {
            message.subject
            for message in await self._reader.stored(request.tenant, shard, request.run_id)
        }
        wanted = {
            row.subject: row for row in found
        }  # a fact that was restored before is there twice
        copies = [
            FactCopy(row.seq, subject, row.type, row.body.encode())
            for subject, row in wanted.items()
        ]
        count = await put_back(self._bus, self._claims, copies, there=there)
        log.info("archive.run_restored", run_id=request.run_id, facts=count)
        return Restored(run_id=request.run_id, facts=len(wanted), restored=count)

    async def _log_last_seq(self) -> int:
        try:
            info = await self._bus.api(f"STREAM.INFO.{subjects.RUNS}")
        except JetStreamError as error:
            raise TransientError("log_unavailable", str(error)) from error
        return int(info["state"]["last_seq"])
