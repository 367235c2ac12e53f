"""Deleting runs for good: first the tables, with a tombstone, then the bus.

Invariant: from the tombstone on nothing of the run is projected again, and until the tombstone
says ``erased_at`` the bus is cleaned again after every start. So a crash leaves nothing behind.
Only ended runs are deleted: no process works on them or waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Table, delete, func, insert, select, text, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from penstock import clock
from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts import subjects
from penstock.contracts.archive_maintenance import Erased, EraseRun, EraseSession, EraseTenant
from penstock.contracts.errors import ConflictError, ErrorDetail, RejectedError, TransientError
from penstock.contracts.ids import shard_of
from penstock.db import session_factory, session_scope
from penstock.telemetry.logs import EventLog
from penstock_archive.tables import (
    claims,
    facts,
    messages,
    projection,
    runs,
    sessions,
    signals,
    steps,
    tombstones,
    traits,
    usage,
)
from penstock_archive.traces import Traces

log = EventLog(__name__)

_OF_RUNS: Final = (facts, runs, traits, steps, messages, usage, signals, claims)
_AT_ONCE: Final = 200
"""Runs in one transaction."""
TOMBSTONE_DAYS: Final = 30
"""Days for which facts that a process publishes of a deleted run are refused."""


class Eraser:
    """The archive's verbs that delete."""

    def __init__(self, engine: AsyncEngine, bus: Bus, traces: Traces, shards: int) -> None:
        """Delete over an engine that the caller disposes of.

        Args:
            engine: Of the archive's database.
            bus: The connection.
            traces: Cleans the bus.
            shards: Number of shards of the installation.
        """
        self._factory = session_factory(engine)
        self._bus = bus
        self._traces = traces
        self._shards = shards

    async def erase_run(self, request: EraseRun) -> Erased:
        """Delete an ended run and its child runs.

        Raises:
            RejectedError: ``run_not_found``.
            ConflictError: ``run_not_ended``.
            TransientError: ``archive_behind``: something of the run may still be on its way.
        """
        tenant = request.tenant
        last_seq = await self._caught_up()
        family = await self._family(tenant, request.run_id)
        if not family and not await self._unfinished(tenant, request.run_id):
            raise RejectedError("run_not_found", f"there is no run {request.run_id[:64]}")
        require_ended(family)
        run_ids = [row.run_id for row in family] or [request.run_id]
        return await self.erase(tenant, run_ids, last_seq)

    async def erase_session(self, request: EraseSession) -> Erased:
        """Delete a session and all its runs.

        Raises:
            RejectedError: ``session_not_found``.
            ConflictError: ``run_not_ended``.
            TransientError: ``archive_behind``.
        """
        tenant, session_id = request.tenant, request.session_id
        last_seq = await self._caught_up()
        known = await self._read(
            select(sessions.c.session_id).where(
                sessions.c.tenant == tenant, sessions.c.session_id == session_id
            )
        )
        own = await self._read(
            _runs().where(runs.c.tenant == tenant, runs.c.session_id == session_id)
        )
        if not known and not own:
            raise RejectedError("session_not_found", f"there is no session {session_id[:80]!r}")
        family = {row.run_id: row for row in own}
        for row in own:
            family.update({one.run_id: one for one in await self._family(tenant, row.run_id)})
        require_ended(family.values())
        erased = await self.erase(tenant, list(family), last_seq)
        async with session_scope(self._factory) as session:
            await session.execute(
                delete(sessions).where(
                    sessions.c.tenant == tenant, sessions.c.session_id == session_id
                )
            )
        return erased

    async def erase_tenant(self, request: EraseTenant) -> Erased:
        """Delete all runs and sessions of a tenant; its definitions and keys stay.

        Raises:
            ConflictError: ``run_not_ended``.
            TransientError: ``archive_behind``.
        """
        tenant = request.tenant
        last_seq = await self._caught_up()
        require_ended(
            await self._read(
                _runs()
                .where(runs.c.tenant == tenant, runs.c.seq.is_not(None), runs.c.ended_at.is_(None))
                .limit(10)
            )
        )
        count = letters = objects = 0
        while run_ids := [
            row.run_id
            for row in await self._read(_runs().where(runs.c.tenant == tenant).limit(_AT_ONCE))
        ]:
            digests = await self._bury(tenant, run_ids, last_seq)
            objects += await self._traces.forget_objects(digests)
            count += len(run_ids)
        digests = await self._unclaimed(
            await self._traces.claims_in(subjects.tenant_filter(tenant))
        )
        objects += await self._traces.forget_objects(digests)
        letters += await self._traces.forget_letters(tenant, None)
        await self._traces.forget_tenant(tenant, until_seq=last_seq)
        async with session_scope(self._factory) as session:
            await session.execute(delete(sessions).where(sessions.c.tenant == tenant))
            await session.execute(
                update(tombstones)
                .where(tombstones.c.tenant == tenant, tombstones.c.erased_at.is_(None))
                .values(erased_at=clock.now())
            )
        log.info("archive.tenant_erased", tenant=tenant, runs=count, objects=objects)
        return Erased(runs=count, objects=objects, dead_letters=letters)

    async def erase(self, tenant: str, run_ids: Sequence[str], last_seq: int) -> Erased:
        """Delete runs that have ended, from tables and bus.

        Args:
            tenant: Whose.
            run_ids: Which.
            last_seq: The archive has all of the log up to here.
        """
        objects = letters = 0
        for begin in range(0, len(run_ids), _AT_ONCE):
            part = run_ids[begin : begin + _AT_ONCE]
            digests = await self._bury(tenant, part, last_seq)
            found = await self._clean(tenant, part, last_seq, digests)
            objects += found.objects
            letters += found.dead_letters
        log.info("archive.runs_erased", tenant=tenant, runs=len(run_ids), objects=objects)
        return Erased(runs=len(run_ids), objects=objects, dead_letters=letters)

    async def finish(self) -> int:
        """Clean the bus of runs whose deletion was interrupted; return how many."""
        found = await self._read(select(tombstones).where(tombstones.c.erased_at.is_(None)))
        for row in found:
            await self._clean(row.tenant, [row.run_id], row.seq, ())
        return len(found)

    async def forget_late(self, refused: dict[tuple[str, str], int]) -> None:
        """Delete later facts of deleted runs from the log, each up to a sequence."""
        for (tenant, run_id), seq in refused.items():
            shard = shard_of(run_id, self._shards)
            found = await self._traces.claims_in(subjects.run_filter(tenant, shard, run_id))
            await self._traces.forget_objects(await self._unclaimed(found))
            await self._traces.forget_run(tenant, shard, run_id, until_seq=seq)

    async def retain(self, keep: timedelta) -> int:
        """Delete runs that ended longer than ``keep`` ago, and old tombstones; return how many."""
        last_seq = await self._caught_up()
        limit = clock.now() - keep
        count = 0
        while found := await self._read(
            _runs().where(runs.c.ended_at < limit).order_by(runs.c.ended_at).limit(_AT_ONCE)
        ):
            of_tenant: dict[str, list[str]] = {}
            for row in found:
                of_tenant.setdefault(row.tenant, []).append(row.run_id)
            for tenant, run_ids in of_tenant.items():
                await self.erase(tenant, run_ids, last_seq)
            count += len(found)
        old = clock.now() - timedelta(days=TOMBSTONE_DAYS)
        async with session_scope(self._factory) as session:
            await session.execute(
                delete(tombstones).where(
                    tombstones.c.deleted_at < old, tombstones.c.erased_at.is_not(None)
                )
            )
        return count

    # -- the tables --------------------------------------------------------------------------

    async def _bury(self, tenant: str, run_ids: Sequence[str], seq: int) -> set[str]:
        """Delete all rows of runs, leave tombstones; return objects without a claim."""
        now = clock.now()
        async with session_scope(self._factory) as session:
            await _lock(session)
            own = _of(claims, tenant, run_ids)
            claimed = set((await session.execute(select(claims.c.sha256).where(*own))).scalars())
            touched = (
                await session.execute(
                    select(runs.c.session_id)
                    .distinct()
                    .where(*_of(runs, tenant, run_ids), runs.c.session_id.is_not(None))
                )
            ).scalars()
            touched_sessions = list(touched)
            for table in _OF_RUNS:
                await session.execute(delete(table).where(*_of(table, tenant, run_ids)))
            await session.execute(delete(tombstones).where(*_of(tombstones, tenant, run_ids)))
            if run_ids:
                await session.execute(
                    insert(tombstones),
                    [
                        {"tenant": tenant, "run_id": run_id, "seq": seq, "deleted_at": now}
                        for run_id in run_ids
                    ],
                )
            for session_id in touched_sessions:
                await _shrink_session(session, tenant, session_id)
        for session_id in touched_sessions:
            await self._traces.forget_session(tenant, session_id, run_ids)
        return await self._unclaimed(claimed)

    async def _unclaimed(self, digests: Collection[str]) -> set[str]:
        """Return those that no run in the archive claims."""
        if not digests:
            return set()
        rows = await self._read(
            select(claims.c.sha256).distinct().where(claims.c.sha256.in_(digests))
        )
        return set(digests) - {row[0] for row in rows}

    async def _clean(
        self, tenant: str, run_ids: Sequence[str], seq: int, digests: Collection[str]
    ) -> Erased:
        """Clean the bus. Objects go before the messages that claim them, lest one be forgotten."""
        in_log: set[str] = set()
        for run_id in run_ids:
            shard = shard_of(run_id, self._shards)
            in_log |= await self._traces.claims_in(subjects.run_filter(tenant, shard, run_id))
        gone = {*digests, *await self._unclaimed(in_log)}
        objects = await self._traces.forget_objects(gone)
        letters = await self._traces.forget_letters(tenant, run_ids)
        for run_id in run_ids:
            shard = shard_of(run_id, self._shards)
            await self._traces.forget_run(tenant, shard, run_id, until_seq=seq)
        async with session_scope(self._factory) as session:
            await session.execute(
                update(tombstones)
                .where(*_of(tombstones, tenant, run_ids))
                .values(erased_at=clock.now())
            )
        return Erased(runs=len(run_ids), objects=objects, dead_letters=letters)

    async def _caught_up(self) -> int:
        """Return the end of the log, which the archive has reached.

        Raises:
            TransientError: ``archive_behind``, ``log_unavailable``.
        """
        try:
            info = await self._bus.api(f"STREAM.INFO.{subjects.RUNS}")
        except JetStreamError as error:
            raise TransientError("log_unavailable", str(error)) from error
        last_seq = int(info["state"]["last_seq"])
        for _ in range(100):
            rows = await self._read(select(func.max(projection.c.last_seq)))
            if (rows[0][0] or 0) >= last_seq:
                return last_seq
            await asyncio.sleep(0.05)
        raise TransientError(
            "archive_behind",
            "the archive is behind the log: facts in flight cannot be deleted",
            retry_after_seconds=5,
        )

    async def _family(self, tenant: str, run_id: str) -> list[Row[Any]]:
        """Return a run and all that descend from it."""
        found: dict[str, Row[Any]] = {}
        generation = [run_id]
        condition: ColumnElement[bool] = runs.c.run_id == run_id
        while generation:
            rows = await self._read(_runs().where(runs.c.tenant == tenant, condition))
            generation = [row.run_id for row in rows if row.run_id not in found]
            found.update({row.run_id: row for row in rows})
            condition = runs.c.parent_run_id.in_(generation)
        return list(found.values())

    async def _unfinished(self, tenant: str, run_id: str) -> bool:
        return bool(
            await self._read(
                select(tombstones.c.seq).where(
                    *_of(tombstones, tenant, [run_id]), tombstones.c.erased_at.is_(None)
                )
            )
        )

    async def _read(self, query: Any) -> Sequence[Row[Any]]:
        async with session_scope(self._factory, read_only=True) as session:
            found: Sequence[Row[Any]] = (await session.execute(query)).all()
            return found


def require_ended(rows: Iterable[Row[Any]]) -> None:
    """Check that all runs have ended.

    Raises:
        ConflictError: ``run_not_ended``.
    """
    still = [row.run_id for row in rows if row.seq is not None and row.ended_at is None]
    if still:
        raise ConflictError(
            "run_not_ended",
            f"run {still[0]} has not ended: cancel it first, or wait",
            details=tuple(
                ErrorDetail(path="run_id", message=f"{run_id} has not ended") for run_id in still
            ),
        )


def _runs() -> Any:
    return select(runs.c.tenant, runs.c.run_id, runs.c.seq, runs.c.ended_at)


def _of(table: Table, tenant: str, run_ids: Sequence[str]) -> tuple[ColumnElement[bool], ...]:
    return table.c.tenant == tenant, table.c.run_id.in_(run_ids)


async def _lock(session: AsyncSession) -> None:
    """Keep the projector out: what it has loaded before this is worth nothing."""
    if session.get_bind().dialect.name == "sqlite":
        await session.execute(text("PRAGMA secure_delete = ON"))
    await session.execute(update(projection).values(generation=projection.c.generation + 1))


async def _shrink_session(session: AsyncSession, tenant: str, session_id: str) -> None:
    """Let a session say what its remaining runs say, or delete it with the last of them."""
    here = (runs.c.tenant == tenant, runs.c.session_id == session_id, runs.c.seq.is_not(None))
    left = (await session.execute(select(runs).where(*here).order_by(runs.c.seq))).all()
    place = (sessions.c.tenant == tenant, sessions.c.session_id == session_id)
    if not left:
        await session.execute(delete(sessions).where(*place))
        return
    first, last = left[0], left[-1]
    await session.execute(
        update(sessions)
        .where(*place)
        .values(
            name=last.name,
            created_at=first.created_at,
            updated_at=last.created_at,
            last_run_id=last.run_id,
            last_seq=last.seq,
        )
    )
