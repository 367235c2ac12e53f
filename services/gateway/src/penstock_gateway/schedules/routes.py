"""Schedules beyond their documents: where they are, pausing, firing, ticks to come, their runs."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from itertools import islice
from typing import Annotated, Final
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime, Field

from penstock import clock
from penstock.contracts.archive import ListRuns, RunPage
from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.facts import Trigger
from penstock.contracts.ids import run_id_from_key
from penstock.contracts.schedules import SCHEDULE_TAG, due_at, ticks_after
from penstock.runs.definition_views import ScheduleState, Tick, Ticks
from penstock.runs.start import scheduled_run
from penstock.runs.views import RunView, summary_view
from penstock_gateway.archive.queries import Cursor, Limit
from penstock_gateway.context import GatewayParts, IdempotencyKey, Operator, PathToken, Viewer
from penstock_gateway.core.requests import Input
from penstock_gateway.runs.start import new_run_id

schedules: Final = APIRouter(prefix="/v1/schedules/{name}", tags=["schedules"])

_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 2200


class Pause(Input):
    """Why a schedule is paused."""

    reason: Annotated[str, Field(max_length=1000)] = ""


@schedules.get("/state")
async def get_schedule_state(
    gateway: GatewayParts, caller: Viewer, name: PathToken
) -> ScheduleState:
    """Return the state of a schedule in force: paused or not, its next tick, latest outcomes."""
    return await gateway.schedules.state(caller.tenant, name)


@schedules.post("/pause")
async def pause_schedule(
    gateway: GatewayParts, caller: Operator, name: PathToken, body: Pause | None = None
) -> ScheduleState:
    """Let ticks pass by unused until it is resumed; applying its document again does not."""
    reason = body.reason if body is not None else ""
    return await gateway.schedules.pause(caller.tenant, name, by=caller.key_id, reason=reason)


@schedules.post("/resume")
async def resume_schedule(
    gateway: GatewayParts, caller: Operator, name: PathToken
) -> ScheduleState:
    """Resume a schedule; ticks during the pause stay skipped. 409 if its document pauses it."""
    return await gateway.schedules.resume(caller.tenant, name, by=caller.key_id)


@schedules.post("/trigger", status_code=202)
async def trigger_schedule(
    gateway: GatewayParts,
    caller: Operator,
    response: Response,
    name: PathToken,
    key: IdempotencyKey,
) -> RunView:
    """Start what the schedule starts, now, also while it is paused; its ticks stay as they are."""
    tenant = caller.tenant
    record = await gateway.schedules.record(tenant, name)
    if key is None:
        run_id, digest = new_run_id(), None
    else:
        run_id = run_id_from_key(tenant, f"schedule\x00{name}\x00trigger\x00{key}")
        digest = sha256(name.encode()).hexdigest()
    params = scheduled_run(tenant, run_id, record, clock.now(), caller.key_id)
    params = replace(params, request_digest=digest)
    started = await gateway.starter.start(params)
    response.headers["Location"] = f"/v1/runs/{started.run_id}"
    if started.replayed:
        response.headers["Idempotent-Replayed"] = "true"
        return await gateway.runs.view(tenant, started.run_id)
    return summary_view(tenant, started.run_id, started.seq, started.invoked)


@schedules.get("/ticks")
async def list_ticks(
    gateway: GatewayParts,
    caller: Viewer,
    name: PathToken,
    next_: Annotated[int, Query(alias="next", ge=1, le=100, description="How many")] = 5,
    after: Annotated[AwareDatetime | None, Query(description="Not from now, from then on")] = None,
) -> Ticks:
    """List the next ticks of a schedule, paused or not."""
    if after is not None and not _FIRST_YEAR < after.year < _LAST_YEAR:
        allowed = f"years from {_FIRST_YEAR + 1} to {_LAST_YEAR - 1}"
        detail = finding("after", f"got the year {after.year}", allowed)
        raise RejectedError("invalid_request", f"after: {detail.message}", details=(detail,))
    record = await gateway.schedules.record(caller.tenant, name)
    zone = ZoneInfo(record.timezone)
    return Ticks(
        items=tuple(
            Tick(
                tick=tick,
                scheduled_at=tick.astimezone(zone),
                due_at=due_at(caller.tenant, record, tick),
            )
            for tick in islice(ticks_after(record, after or clock.now()), next_)
        )
    )


@schedules.get("/runs")
async def list_schedule_runs(
    gateway: GatewayParts, caller: Viewer, name: PathToken, limit: Limit = 50, cursor: Cursor = None
) -> RunPage:
    """List the runs that the schedule has started, the latest first, also if it is gone."""
    request = ListRuns(
        tenant=caller.tenant,
        trigger=(Trigger.SCHEDULE,),
        tags={SCHEDULE_TAG: name},
        limit=limit,
        cursor=cursor,
    )
    return await gateway.archive.ask("list_runs", request, RunPage)
