"""What runs ask, as clients see it: status, decisions, expiry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import NodeRecord, PendingRequest, SignalReceived
from penstock.contracts.structs import convert
from penstock_gateway.core.node_records import approval_view, call_view, decision_view, unknown_view

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
REQUEST = PendingRequest(name="pay", arguments={"amount": 3}, digest="d", role="boss", message="?")


def node_record(**fields: Any) -> NodeRecord:
    return convert(
        NodeRecord,
        {"record_id": "p-a", "kind": "approval", "status": "open", "request": REQUEST, **fields},
    )


def answer(payload: Any) -> SignalReceived:
    return SignalReceived(occurred_at=NOW, name="pay", payload=payload, sent_by="key-1")


@pytest.mark.parametrize(
    ("asked", "said", "ended", "status"),
    [
        (node_record(), None, False, "open"),
        (node_record(due_at=NOW + timedelta(seconds=1)), None, False, "open"),
        (node_record(due_at=NOW), None, False, "expired"),
        (node_record(), None, True, "closed"),
        (node_record(), {"decision": "approve"}, False, "approved"),
        (node_record(due_at=NOW), {"decision": "reject"}, True, "rejected"),
        (node_record(), {"decision": "maybe"}, False, "open"),
        (node_record(), "yes", False, "open"),
        (node_record(status="succeeded"), None, False, "closed"),
        (node_record(status="succeeded", output={"expired": True}), None, False, "expired"),
        (
            node_record(status="failed", error=ErrorInfo(code="approval_expired", message="")),
            None,
            True,
            "expired",
        ),
    ],
)
def test_status_of_an_approval_follows_from_answer_time_and_run(
    asked: NodeRecord, said: Any, ended: bool, status: str
) -> None:
    given = None if said is None else answer(said)
    view = approval_view("R", "shop", asked, NOW, now=NOW, answer=given, run_ended=ended)
    assert view.status == status


def test_approval_of_a_call_names_its_tool_and_that_of_a_step_none() -> None:
    call = approval_view("R", "shop", node_record(), NOW, now=NOW)
    step = approval_view("R", "shop", node_record(record_id="p"), NOW, now=NOW)
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
    call = call_view(node_record(record_id="a-1-0", kind="client_tool"), NOW)
    lost = unknown_view(node_record(record_id="p-r", kind="resolution", request=None), NOW)
    assert (call.step_id, call.tool, call.digest) == ("a-1-0", "pay", "d")
    assert (lost.step_id, lost.record_id, lost.tool) == ("p", "p-r", "")
