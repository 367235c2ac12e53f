"""Schedules in force, as the engines have them: read afresh, for people who ask."""

from __future__ import annotations

import asyncio

from penstock import clock
from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError, finding
from penstock.contracts.schedules import (
    SCHEDULE_CONTROL,
    SCHEDULE_PROGRESS,
    SCHEDULE_RECORD,
    ScheduleControl,
    ScheduleProgress,
    ScheduleRecord,
    next_tick,
)
from penstock.runs.definition_views import ScheduleState
from penstock_gateway.runs.read import NOT_FOUND


class Schedules:
    """Reads schedules, and publishes commands of operators to the engines."""

    def __init__(self, bus: Bus) -> None:
        """Use the process's connection."""
        self._bucket = Bucket(bus, subjects.SCHEDULES)

    async def record(self, tenant: str, name: str) -> ScheduleRecord:
        """Return a schedule that is in force.

        Raises:
            RejectedError: ``not_found``.
            TransientError: The bus did not answer.
        """
        entry = await self._bucket.get(subjects.schedule_key(tenant, name))
        if entry is None:
            raise RejectedError(NOT_FOUND, f"no schedule {name} is in force")
        return SCHEDULE_RECORD.validate_json(entry.value)

    async def state(self, tenant: str, name: str) -> ScheduleState:
        """Return where a schedule is.

        Raises:
            RejectedError: ``not_found``.
            TransientError: The bus did not answer.
        """
        record, control, progress = await asyncio.gather(
            self.record(tenant, name), self._control(tenant, name), self._progress(tenant, name)
        )
        return _shown(record, control, progress)

    async def pause(
        self, tenant: str, name: str, *, by: str | None, reason: str = ""
    ) -> ScheduleState:
        """Let ticks pass by unused from now on. Pausing again changes the reason.

        Raises:
            RejectedError: ``not_found``.
            TransientError: The bus did not answer.
        """
        return await self._set(tenant, name, paused=True, by=by, reason=reason)

    async def resume(self, tenant: str, name: str, *, by: str | None) -> ScheduleState:
        """Use ticks again; those that have passed meanwhile are not made up for.

        Raises:
            RejectedError: ``not_found``.
            ConflictError: ``paused_by_document``.
            TransientError: The bus did not answer.
        """
        record = await self.record(tenant, name)
        if record.paused:
            raise ConflictError(
                "paused_by_document",
                f"the document of schedule {name} says that it is paused",
                details=(finding("spec.paused", "is true", "apply it as false"),),
            )
        return await self._set(tenant, name, paused=False, by=by, reason="")

    async def _set(
        self, tenant: str, name: str, *, paused: bool, by: str | None, reason: str
    ) -> ScheduleState:
        await self.record(tenant, name)
        known = await self._control(tenant, name)
        if not paused and (known is None or not known.paused):
            return await self.state(tenant, name)
        control = ScheduleControl(
            paused=paused, changed_at=clock.now(), changed_by=by, reason=reason
        )
        await self._bucket.put(
            subjects.schedule_part_key(tenant, name, "control"),
            control.model_dump_json(exclude_defaults=True).encode(),
        )
        return await self.state(tenant, name)

    async def _control(self, tenant: str, name: str) -> ScheduleControl | None:
        entry = await self._bucket.get(subjects.schedule_part_key(tenant, name, "control"))
        return None if entry is None else SCHEDULE_CONTROL.validate_json(entry.value)

    async def _progress(self, tenant: str, name: str) -> ScheduleProgress | None:
        entry = await self._bucket.get(subjects.schedule_part_key(tenant, name, "progress"))
        return None if entry is None else SCHEDULE_PROGRESS.validate_json(entry.value)


def _shown(
    record: ScheduleRecord, control: ScheduleControl | None, progress: ScheduleProgress | None
) -> ScheduleState:
    by_operator = control is not None and control.paused
    change = control.model_dump(include={"reason", "changed_by", "changed_at"}) if control else {}
    counted = (
        progress.model_dump(include={"last_tick", "last_run_id", "fired", "left_out"})
        if progress is not None
        else {}
    )
    return ScheduleState(
        name=record.name,
        target=record.target if record.selector is None else f"{record.target}@{record.selector}",
        paused=record.paused or by_operator,
        paused_by="document" if record.paused else "operator" if by_operator else None,
        next_tick=next_tick(record, clock.now()),
        pending=len(progress.pending) if progress is not None else 0,
        failure=progress.failure if progress is not None else None,
        **change,
        **counted,
    )
