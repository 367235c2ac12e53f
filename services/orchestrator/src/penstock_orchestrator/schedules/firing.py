"""Firing: one run in the log for each tick, under an id that the tick alone gives."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter, ValidationError

from penstock import clock
from penstock.bus.capacity import LogCapacity
from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError
from penstock.contracts.facts import RunInvoked, fact_bytes
from penstock.contracts.ids import shard_of
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.schedules import (
    ScheduleFailure,
    ScheduleRecord,
    due_at,
    schedule_run_id,
)
from penstock.contracts.versions import accepted_input, routed
from penstock.failpoints import reach
from penstock.runs.start import scheduled_run
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.schedules.metrics import (
    SCHEDULES_FAILED,
    SCHEDULES_FIRED,
    SCHEDULES_LATENESS,
)

log = EventLog(__name__)

_VERSION: Final[TypeAdapter[PublishedVersion]] = TypeAdapter(PublishedVersion)


class Firing:
    """Starts runs; the same tick fired twice, also by two engines, is one run."""

    def __init__(self, bus: Bus, writer: LogWriter, capacity: LogCapacity, *, shards: int) -> None:
        """Use a connection and a writer.

        Args:
            bus: The connection.
            writer: Appends the fact.
            capacity: Refuses runs while the log is full; ``None``: the log has no limit.
            shards: Number of shards of the installation.
        """
        self._published = Bucket(bus, subjects.PUBLISHED)
        self._writer = writer
        self._capacity = capacity
        self._shards = shards

    async def fire(
        self, tenant: str, record: ScheduleRecord, tick: datetime
    ) -> str | ScheduleFailure:
        """State that a tick's run is asked for; return its id, or why there can be none.

        Raises:
            TransientError: ``log_full``, or the bus did not answer; fire it again.
        """
        run_id = schedule_run_id(tenant, record.name, tick)
        try:
            invoked = await self._invoked(tenant, record, tick, run_id)
        except RejectedError as error:
            SCHEDULES_FAILED.labels(error.code).inc()
            log.warning("schedule.failed", tenant=tenant, schedule=record.name, code=error.code)
            return ScheduleFailure(tick=tick, error=error.info())
        if self._capacity is not None:
            await self._capacity.require()
        prefix = subjects.run_prefix(tenant, shard_of(run_id, self._shards), run_id)
        try:
            await self._writer.append(subjects.invoke(prefix), fact_bytes(invoked))
            reach("schedule.run_fired")
        except ConflictError:
            log.info("schedule.fired_already", tenant=tenant, run_id=run_id)
            return run_id
        SCHEDULES_FIRED.inc()
        late = (clock.now() - due_at(tenant, record, tick)).total_seconds()
        SCHEDULES_LATENESS.observe(max(0.0, late))
        return run_id

    async def _invoked(
        self, tenant: str, record: ScheduleRecord, tick: datetime, run_id: str
    ) -> RunInvoked:
        version = routed(await self._version(tenant, record), run_id)
        params = scheduled_run(tenant, run_id, record, tick, f"schedule:{record.name}")
        if version.input_schema is not None:
            # In a thread: the first check imports its library, and a schema may take its time.
            given = await asyncio.to_thread(accepted_input, version, params.input)
            params = replace(params, input=given)
        return params.invoked(version, clock.now())

    async def _version(self, tenant: str, record: ScheduleRecord) -> PublishedVersion:
        if record.selector is None:
            key, code = subjects.published_key(tenant, record.target), "unknown_name"
            wanted = record.target
        else:
            key = subjects.published_version_key(tenant, record.target, record.selector)
            code, wanted = "unknown_version", f"{record.target}@{record.selector}"
        entry = await self._published.get(key)
        if entry is None:
            raise RejectedError(code, f"{wanted} is not published")
        try:
            return _VERSION.validate_json(entry.value)
        except ValidationError as error:
            raise RejectedError("unreadable_version", f"{wanted}: {error}") from error
