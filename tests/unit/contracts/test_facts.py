"""Facts: told apart by type, frozen, in UTC-aware time."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from penstock.contracts.actions import ACTION, Respond, UseTools
from penstock.contracts.facts import (
    CancelRequested,
    RunEnded,
    RunInvoked,
    RunStatus,
    fact_bytes,
    read_fact,
)
from penstock.contracts.structs import MalformedError, convert, plain
from penstock.contracts.usage import RunLimits, Usage
from tests.support.simulation import START, make_invoked, make_plan, tool_node

PLAN = make_plan(tool_node("a"))


def test_fact_written_and_read_is_the_same() -> None:
    invoked = make_invoked(PLAN, tags={"größe": "ü"}, input=[1, {"x": None}])

    assert read_fact(fact_bytes(invoked)) == invoked


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"[]", b'{"type":"claim"}', b"\xff"])
def test_fact_of_another_form_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedError):
        read_fact(body)


def test_fact_without_a_time_zone_is_refused() -> None:
    body = json.loads(fact_bytes(CancelRequested(occurred_at=START)))
    body["occurred_at"] = "2026-01-01T00:00:00"

    with pytest.raises(MalformedError):
        read_fact(json.dumps(body))


def test_fact_keeps_microseconds() -> None:
    moment = datetime(2026, 1, 1, 12, 30, 59, 123456, tzinfo=UTC)

    body = fact_bytes(CancelRequested(occurred_at=moment))

    assert b"2026-01-01T12:30:59.123456Z" in body
    assert read_fact(body).occurred_at == moment


def test_fact_is_frozen() -> None:
    with pytest.raises(AttributeError):
        setattr(make_invoked(PLAN), "name", "other")  # noqa: B010 - mypy knows it is read-only


def test_run_ended_cannot_end_as_running() -> None:
    with pytest.raises(MalformedError):
        convert(RunEnded, {"occurred_at": START, "decision": {"cause_seq": 1}, "status": "running"})


@pytest.mark.parametrize("limits", [{"timeout_seconds": 0}, {"max_turns": 0}])
def test_run_limits_of_nothing_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(MalformedError):
        convert(RunLimits, limits)


def test_run_invoked_has_no_limits_of_its_own() -> None:
    assert convert(RunInvoked, plain(make_invoked(PLAN))).limits == RunLimits()


def test_run_status_knows_which_are_final() -> None:
    assert {status for status in RunStatus if status.final} == {"done", "failed", "cancelled"}


def test_usage_plus_adds_up_and_remembers_an_unknown_price() -> None:
    one = Usage(input_tokens=1, output_tokens=2, cost_usd=0.5, model_calls=1)
    other = Usage(input_tokens=10, unknown_price=True, model_calls=1)

    assert one.plus(other) == Usage(
        input_tokens=11, output_tokens=2, cost_usd=0.5, unknown_price=True, model_calls=2
    )
    assert one.plus(Usage()) == one


def test_action_is_told_by_its_name() -> None:
    respond = ACTION.validate_python({"action": "respond", "text": "hi"})
    use = ACTION.validate_python({"action": "use_tools", "calls": [{"id": "1", "name": "add"}]})

    assert isinstance(respond, Respond)
    assert isinstance(use, UseTools)
    assert use.calls[0].arguments == {}


@pytest.mark.parametrize("action", [{}, {"action": "fly"}, {"action": "use_tools", "calls": []}])
def test_action_of_another_form_is_refused(action: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ACTION.validate_python(action)
