"""What runs ask, as clients see it: status, decisions, expiry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import Mark, ParkedRequest, SignalReceived
from penstock_gateway.core.marks import approval_view, call_view, decision_view, unknown_view

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
REQUEST = ParkedRequest(name="pay", arguments={"amount": 3}, digest="d", role="boss", message="?")


def mark(**fields: Any) -> Mark:
    return Mark.model_validate(
        {"mark_id": "p-a", "kind": "approval", "status": "open", "request": REQUEST, **fields}
    )


def answer(payload: Any) -> SignalReceived:
    return SignalReceived(occurred_at=NOW, name="pay", payload=payload, sent_by="key-1")


@pytest.mark.parametrize(
    ("asked", "said", "ended", "status"),
    [
        (mark(), None, False, "open"),
        (mark(due_at=NOW + timedelta(seconds=1)), None, False, "open"),
        (mark(due_at=NOW), None, False, "expired"),
        (mark(), None, True, "closed"),
        (mark(), {"decision": "approve"}, False, "approved"),
        (mark(due_at=NOW), {"decision": "reject"}, True, "rejected"),
        (mark(), {"decision": "maybe"}, False, "open"),
        (mark(), "yes", False, "open"),
        (mark(status="succeeded"), None, False, "closed"),
        (mark(status="succeeded", output={"expired": True}), None, False, "expired"),
        (
            mark(status="failed", error=ErrorInfo(code="approval_expired", message="")),
            None,
            True,
            "expired",
        ),
    ],
)
def test_status_of_an_approval_follows_from_answer_time_and_run(
    asked: Mark, said: Any, ended: bool, status: str
) -> None:
    given = None if said is None else answer(said)
    view = approval_view("R", "shop", asked, NOW, now=NOW, answer=given, run_ended=ended)
    assert view.status == status


def test_approval_of_a_call_names_its_tool_and_that_of_a_step_none() -> None:
    call = approval_view("R", "shop", mark(), NOW, now=NOW)
    step = approval_view("R", "shop", mark(mark_id="p"), NOW, now=NOW)
    assert (call.step_id, call.tool, call.arguments) == ("p", "pay", {"amount": 3})
    assert (step.step_id, step.tool, step.message) == ("p", None, "?")


def test_decision_is_by_who_it_says_or_by_its_sender() -> None:
    named = decision_view(answer({"decision": "reject", "by": "ada", "reason": "no"}))
    nameless = decision_view(answer({"decision": "approve", "reason": 3}))
    assert named is not None
    assert nameless is not None
    assert (named.decision, named.by, named.reason) == ("reject", "ada", "no")
    assert (nameless.decision, nameless.by, nameless.reason) == ("approve", "key-1", "")


def test_calls_and_lost_attempts_say_what_they_ask() -> None:
    call = call_view(mark(mark_id="a-1-0", kind="client_tool"), NOW)
    lost = unknown_view(mark(mark_id="p-r", kind="resolution", request=None), NOW)
    assert (call.step_id, call.tool, call.digest) == ("a-1-0", "pay", "d")
    assert (lost.step_id, lost.mark_id, lost.tool) == ("p", "p-r", "")
