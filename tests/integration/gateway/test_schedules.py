"""Schedules over HTTP: where they are, pausing and resuming, ticks to come, firing by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import RunInvoked, Trigger
from penstock.contracts.schedules import (
    SCHEDULE_CONTROL,
    ScheduleFailure,
    ScheduleProgress,
    ScheduleRecord,
)
from tests.integration.gateway.conftest import Engine, Running

NIGHTLY: dict[str, Any] = {
    "name": "nightly",
    "target": "echo",
    "cron": "0 9 * * *",
    "timezone": "Europe/Berlin",
    "input": {"at": "{{ schedule.tick }}"},
    "tags": {"team": "ops"},
    "priority": 4,
}
AFTER = "2026-10-24T12:00:00Z"


async def define(engine: Engine, **fields: Any) -> None:
    record = ScheduleRecord.model_validate({**NIGHTLY, **fields})
    await Bucket(engine.bus, subjects.SCHEDULES).put(
        subjects.schedule_key(engine.tenant, record.name), record.model_dump_json().encode()
    )


async def put_progress(engine: Engine, progress: ScheduleProgress) -> None:
    key = subjects.schedule_part_key(engine.tenant, "nightly", "progress")
    await Bucket(engine.bus, subjects.SCHEDULES).put(key, progress.model_dump_json().encode())


async def call(gateway: Running, method: str, path: str, **options: Any) -> dict[str, Any]:
    answer = await gateway.client.request(method, f"/v1/schedules/nightly/{path}", **options)
    assert answer.is_success, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_state_tells_the_next_tick_and_what_became_of_others(
    gateway: Running, engine: Engine
) -> None:
    await define(engine, selector="stable")
    fresh = await call(gateway, "GET", "state")
    assert (fresh["target"], fresh["paused"], fresh["fired"]) == ("echo@stable", False, 0)
    assert datetime.fromisoformat(fresh["next_tick"]) > datetime.now(UTC)

    tick = datetime(2026, 5, 1, 7, tzinfo=UTC)
    error = ErrorInfo(code="unknown_name", message="echo is not published")
    await put_progress(
        engine,
        ScheduleProgress(
            timing="t",
            handled_until=tick,
            last_tick=tick,
            last_run_id="R",
            fired=3,
            left_out=2,
            failure=ScheduleFailure(tick=tick, error=error),
        ),
    )
    state = await call(gateway, "GET", "state")
    assert (state["last_tick"], state["last_run_id"]) == ("2026-05-01T07:00:00Z", "R")
    assert (state["fired"], state["left_out"]) == (3, 2)
    assert state["failure"]["error"]["code"] == "unknown_name"


async def test_pause_and_resume_are_told_to_the_engines(gateway: Running, engine: Engine) -> None:
    await define(engine)
    paused = await call(gateway, "POST", "pause", json={"reason": "month's end"})
    assert (paused["paused"], paused["paused_by"]) == (True, "operator")
    assert paused["reason"] == "month's end"

    key = subjects.schedule_part_key(engine.tenant, "nightly", "control")
    entry = await Bucket(engine.bus, subjects.SCHEDULES).get(key)
    assert entry is not None
    assert SCHEDULE_CONTROL.validate_json(entry.value).paused

    resumed = await call(gateway, "POST", "resume")
    assert (resumed["paused"], resumed["reason"]) == (False, "")
    assert resumed["changed_at"] > paused["changed_at"]
    assert await call(gateway, "POST", "resume") == resumed, "it goes on already"


async def test_pause_of_the_document_is_lifted_by_the_document_alone(
    gateway: Running, engine: Engine
) -> None:
    await define(engine, paused=True)
    assert (await call(gateway, "GET", "state"))["paused_by"] == "document"
    answer = await gateway.client.post("/v1/schedules/nightly/resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "paused_by_document")


async def test_ticks_to_come_are_shown_on_both_clocks(gateway: Running, engine: Engine) -> None:
    await define(engine)
    ticks = await call(gateway, "GET", "ticks", params={"next": 2, "after": AFTER})
    assert [(one["tick"], one["scheduled_at"]) for one in ticks["items"]] == [
        ("2026-10-25T08:00:00Z", "2026-10-25T09:00:00+01:00"),
        ("2026-10-26T08:00:00Z", "2026-10-26T09:00:00+01:00"),
    ]
    assert len((await call(gateway, "GET", "ticks"))["items"]) == 5


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "first"),
    [
        ("1 * * * 0", "America/St_Johns", "2010-11-06T00:00:00Z", "2010-11-07T03:31:00Z"),
        ("0 * * * SAT", "America/Nuuk", "2024-03-30T00:00:00Z", "2024-03-30T02:00:00Z"),
        ("0 * * * *", "Pacific/Apia", "2011-12-30T09:30:00Z", "2011-12-30T10:00:00Z"),
    ],
)
async def test_gateway_serves_ticks_at_a_gap_at_midnight(
    gateway: Running, engine: Engine, cron: str, timezone: str, after: str, first: str
) -> None:
    await define(engine, cron=cron, timezone=timezone)
    ticks = await call(gateway, "GET", "ticks", params={"next": 100, "after": after})
    assert (len(ticks["items"]), ticks["items"][0]["tick"]) == (100, first)
    assert (await gateway.client.get("/health")).status_code == 200


async def test_trigger_starts_a_run_now_once_per_key(gateway: Running, engine: Engine) -> None:
    await define(engine, paused=True)
    headers = {"Idempotency-Key": "by-hand"}

    first = await gateway.client.post("/v1/schedules/nightly/trigger", headers=headers)
    again = await gateway.client.post("/v1/schedules/nightly/trigger", headers=headers)

    assert first.status_code == 202, first.text
    run_id = first.json()["run_id"]
    assert first.headers["location"] == f"/v1/runs/{run_id}"
    assert again.json()["run_id"] == run_id
    assert again.headers["idempotent-replayed"] == "true"
    fact = (await engine.log(run_id))[0].fact
    assert isinstance(fact, RunInvoked)
    assert (fact.trigger, fact.priority) == (Trigger.SCHEDULE, 4)
    assert fact.tags == {"team": "ops", "schedule": "nightly"}
    assert isinstance(fact.input, dict)
    assert str(fact.input["at"]).endswith("Z")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "nobody/state", 404),
        ("POST", "nobody/pause", 404),
        ("POST", "nobody/trigger", 404),
        ("GET", "nobody/ticks", 404),
        ("GET", "nightly/ticks?next=0", 422),
        ("GET", "nightly/ticks?after=9999-12-31T23:59:59Z", 422),
        ("GET", "nightly/ticks?after=noon", 422),
        ("GET", "n%20b/state", 422),
    ],
)
async def test_bad_request_about_a_schedule_is_answered_by_a_problem(
    gateway: Running, engine: Engine, method: str, path: str, status: int
) -> None:
    await define(engine)
    answer = await gateway.client.request(method, f"/v1/schedules/{path}")
    assert answer.status_code == status, answer.text
    assert answer.json()["code"]
    assert answer.headers["content-type"] == "application/problem+json"
