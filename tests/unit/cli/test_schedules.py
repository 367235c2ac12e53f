"""``penstock schedules`` against a gateway that the test plays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from typer.testing import Result

from tests.unit.cli.conftest import AT, RUN, Handler

STATE: dict[str, Any] = {
    "name": "nightly",
    "target": "report",
    "paused": True,
    "paused_by": "operator",
    "reason": "holidays",
    "next_tick": "2099-05-01T07:00:00Z",
    "last_tick": None,
    "last_run_id": None,
    "fired": 12,
    "left_out": 1,
    "failure": {
        "tick": "2026-05-01T07:00:00Z",
        "error": {"code": "unknown_name", "message": "report is not published"},
    },
}
DEFINITION: dict[str, Any] = {
    "tenant": "default",
    "kind": "schedule",
    "name": "nightly",
    "revision": 1,
    "created_at": AT,
    "updated_at": AT,
    "published_version": 1,
    "document": {
        "spec": {"target": "report", "cron": "0 9 * * *", "timezone": "Europe/Berlin"},
    },
}
TICK = {
    "tick": "2026-05-01T07:00:00Z",
    "scheduled_at": "2026-05-01T09:00:00+02:00",
    "due_at": "2026-05-01T07:00:00Z",
}


@pytest.fixture
def schedules(
    gateway: Callable[[Handler], None], run: Callable[..., Result]
) -> Callable[..., Result]:
    """Run a command of schedules before a gateway that has one."""
    answers: dict[str, Any] = {
        "GET /v1/schedules": {"items": [DEFINITION], "next_cursor": None},
        "GET /v1/schedules/nightly": DEFINITION,
        "GET /v1/schedules/nightly/state": STATE,
        "GET /v1/schedules/nightly/runs": {"items": [RUN], "next_cursor": None},
        "GET /v1/schedules/nightly/ticks": {"items": [TICK]},
        "POST /v1/schedules/nightly/pause": STATE,
        "POST /v1/schedules/nightly/resume": STATE,
        "POST /v1/schedules/nightly/trigger": RUN,
    }

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answers[f"{request.method} {request.url.path}"])

    gateway(handle)
    return lambda *arguments: run("schedules", *arguments, env={"COLUMNS": "200"})


def test_list_shows_when_what_and_in_which_condition(schedules: Callable[..., Result]) -> None:
    shown = schedules("list")
    assert shown.exit_code == 0, shown.output
    assert "0 9 * * * Europe/Berlin" in shown.output
    assert "paused (holidays)" in shown.output
    assert json.loads(schedules("list", "--json").output)[0]["state"]["fired"] == 12


def test_show_tells_the_failure_and_the_latest_runs(schedules: Callable[..., Result]) -> None:
    shown = schedules("show", "nightly").output
    assert "12 fired, 1 left out" in shown
    assert "report is not published [unknown_name]" in shown
    assert RUN["run_id"] in shown


def test_pause_resume_and_trigger_say_what_they_did(
    schedules: Callable[..., Result], requests: list[httpx.Request]
) -> None:
    assert "is paused" in schedules("pause", "nightly", "--reason", "holidays").output
    assert json.loads(requests[-1].content) == {"reason": "holidays"}
    assert "resumes" in schedules("resume", "nightly").output
    assert RUN["run_id"] in schedules("trigger", "nightly", "--idempotency-key", "k").output
    assert requests[-1].headers["idempotency-key"] == "k"


def test_next_shows_ticks_on_both_clocks(
    schedules: Callable[..., Result], requests: list[httpx.Request]
) -> None:
    shown = schedules("next", "nightly", "--count", "3", "--after", "2026-05-01T00:00:00Z")
    assert "2026-05-01T09:00:00+02:00" in shown.output
    assert dict(requests[-1].url.params) == {"next": "3", "after": "2026-05-01T00:00:00Z"}
