"""What runs ask, as clients see it."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from penstock.contracts.facts import NodeRecord, PendingRequest, SignalReceived
from penstock.contracts.ids import RecordId
from penstock.runs.replies import (
    ApprovalStatus,
    ApprovalView,
    CallView,
    DecisionView,
    UnknownView,
)

_NOTHING_ASKED: Final = PendingRequest()
_EXPIRED: Final = frozenset({"approval_expired", "client_tool_timeout"})


def expired(node_record: NodeRecord, now: datetime) -> bool:
    """Return whether the time to answer is over, even if the engine has not recorded it yet."""
    if node_record.status == "open":
        return node_record.due_at is not None and node_record.due_at <= now
    if node_record.error is not None:
        return node_record.error.code in _EXPIRED
    # An approval step that continues without an answer has ``expired`` in its output.
    return isinstance(node_record.output, dict) and node_record.output.get("expired") is True


def decision_view(fact: SignalReceived) -> DecisionView | None:
    """Return what an answer to an approval says; ``None`` if it is none."""
    answer = fact.payload if isinstance(fact.payload, dict) else {}
    decision = answer.get("decision")
    if decision != "approve" and decision != "reject":
        return None
    by, reason = answer.get("by"), answer.get("reason")
    return DecisionView(
        decision="approve" if decision == "approve" else "reject",
        by=by if isinstance(by, str) else fact.sent_by,
        reason=reason if isinstance(reason, str) else "",
        at=fact.occurred_at,
    )


def approval_view(
    run_id: str,
    run_name: str,
    node_record: NodeRecord,
    asked_at: datetime,
    *,
    now: datetime,
    answer: SignalReceived | None = None,
    run_ended: bool = False,
) -> ApprovalView:
    """Return an approval as clients see it.

    Args:
        run_id: The run that asks.
        run_name: The definition that runs.
        node_record: What it asks, in its latest form.
        asked_at: When the node record was made.
        now: Decides whether the request has expired.
        answer: The answer, if there is one.
        run_ended: Whether the run has ended.
    """
    request = node_record.request or _NOTHING_ASKED
    decided = decision_view(answer) if answer is not None else None
    step_id = RecordId.parse(node_record.record_id).step_id
    return ApprovalView(
        run_id=run_id,
        record_id=node_record.record_id,
        step_id=step_id,
        run_name=run_name,
        status=_status(node_record, decided, now, run_ended=run_ended),
        tool=request.name or None if step_id != node_record.record_id else None,
        arguments=request.arguments,
        digest=request.digest,
        role=request.role,
        message=request.message,
        asked_at=asked_at,
        expires_at=node_record.due_at,
        decided=decided,
    )


def _status(
    node_record: NodeRecord, decided: DecisionView | None, now: datetime, *, run_ended: bool
) -> ApprovalStatus:
    if decided is not None:
        return "approved" if decided.decision == "approve" else "rejected"
    if expired(node_record, now):
        return "expired"
    return "open" if node_record.status == "open" and not run_ended else "closed"


def call_view(node_record: NodeRecord, asked_at: datetime) -> CallView:
    """Return a call of a client tool as clients see it."""
    request = node_record.request or _NOTHING_ASKED
    return CallView(
        step_id=node_record.record_id,
        tool=request.name,
        arguments=request.arguments,
        digest=request.digest,
        asked_at=asked_at,
        expires_at=node_record.due_at,
    )


def unknown_view(node_record: NodeRecord, asked_at: datetime) -> UnknownView:
    """Return a step with an unknown outcome as clients see it."""
    request = node_record.request or _NOTHING_ASKED
    return UnknownView(
        step_id=RecordId.parse(node_record.record_id).step_id,
        record_id=node_record.record_id,
        tool=request.name,
        arguments=request.arguments,
        digest=request.digest,
        message=request.message,
        role=request.role,
        asked_at=asked_at,
        expires_at=node_record.due_at,
    )
