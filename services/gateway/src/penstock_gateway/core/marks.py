"""What runs ask, as clients see it."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import AwareDatetime

from penstock.contracts.facts import Mark, ParkedRequest, Record, SignalReceived
from penstock.contracts.json import Json

ApprovalStatus = Literal["open", "approved", "rejected", "expired", "closed"]
"""``closed``: nobody waits for it any more, for its run has ended or went another way."""

_NOTHING_ASKED: Final = ParkedRequest()
_EXPIRED: Final = frozenset({"approval_expired", "client_tool_timeout"})


class DecisionView(Record):
    """What somebody said to an approval."""

    decision: Literal["approve", "reject"]
    by: str | None = None
    reason: str = ""
    at: AwareDatetime


class ApprovalView(Record):
    """Something that a run must not do, or not go on with, before somebody has agreed."""

    run_id: str
    mark_id: str
    step_id: str
    """The tool call, or the approval step."""
    run_name: str
    """The definition that runs."""
    status: ApprovalStatus
    tool: str | None = None
    """The tool that is to be called; absent for a step that is an approval."""
    arguments: Json = None
    """The exact arguments of the call."""
    digest: str = ""
    """SHA-256 of tool and arguments: give it back to be sure what you agree to."""
    role: str | None = None
    message: str = ""
    asked_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    decided: DecisionView | None = None


class CallView(Record):
    """A call of a client tool: the run waits for its caller to execute it."""

    step_id: str
    tool: str
    arguments: Json = None
    digest: str = ""
    asked_at: AwareDatetime
    expires_at: AwareDatetime | None = None


class UnknownView(Record):
    """A step whose attempt was lost, and that must not be made again unless somebody says so."""

    step_id: str
    mark_id: str
    tool: str
    arguments: Json = None
    digest: str = ""
    message: str = ""
    role: str | None = None
    asked_at: AwareDatetime
    expires_at: AwareDatetime | None = None


def expired(mark: Mark, now: datetime) -> bool:
    """Tell whether nobody answered in time, whether or not the engine has noticed."""
    if mark.status == "open":
        return mark.due_at is not None and mark.due_at <= now
    if mark.error is not None:
        return mark.error.code in _EXPIRED
    # An approval step that goes on without an answer says so in its output.
    return isinstance(mark.output, dict) and mark.output.get("expired") is True


def decision_view(fact: SignalReceived) -> DecisionView | None:
    """Return what an answer to an approval says; ``None`` if it is none."""
    said = fact.payload if isinstance(fact.payload, dict) else {}
    decision = said.get("decision")
    if decision != "approve" and decision != "reject":
        return None
    by, reason = said.get("by"), said.get("reason")
    return DecisionView(
        decision="approve" if decision == "approve" else "reject",
        by=by if isinstance(by, str) else fact.sent_by,
        reason=reason if isinstance(reason, str) else "",
        at=fact.occurred_at,
    )


def approval_view(
    run_id: str,
    run_name: str,
    mark: Mark,
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
        mark: What it asks, in its latest form.
        asked_at: When the mark was made.
        now: To tell what has expired.
        answer: What was answered, if anything was.
        run_ended: Whether nobody can wait any more.
    """
    request = mark.request or _NOTHING_ASKED
    decided = decision_view(answer) if answer is not None else None
    step_id = mark.mark_id.removesuffix("-a")
    return ApprovalView(
        run_id=run_id,
        mark_id=mark.mark_id,
        step_id=step_id,
        run_name=run_name,
        status=_status(mark, decided, now, run_ended=run_ended),
        tool=request.name or None if step_id != mark.mark_id else None,
        arguments=request.arguments,
        digest=request.digest,
        role=request.role,
        message=request.message,
        asked_at=asked_at,
        expires_at=mark.due_at,
        decided=decided,
    )


def _status(
    mark: Mark, decided: DecisionView | None, now: datetime, *, run_ended: bool
) -> ApprovalStatus:
    if decided is not None:
        return "approved" if decided.decision == "approve" else "rejected"
    if expired(mark, now):
        return "expired"
    return "open" if mark.status == "open" and not run_ended else "closed"


def call_view(mark: Mark, asked_at: datetime) -> CallView:
    """Return a call of a client tool as clients see it."""
    request = mark.request or _NOTHING_ASKED
    return CallView(
        step_id=mark.mark_id,
        tool=request.name,
        arguments=request.arguments,
        digest=request.digest,
        asked_at=asked_at,
        expires_at=mark.due_at,
    )


def unknown_view(mark: Mark, asked_at: datetime) -> UnknownView:
    """Return a step with an unknown outcome as clients see it."""
    request = mark.request or _NOTHING_ASKED
    return UnknownView(
        step_id=mark.mark_id.removesuffix("-r"),
        mark_id=mark.mark_id,
        tool=request.name,
        arguments=request.arguments,
        digest=request.digest,
        message=request.message,
        role=request.role,
        asked_at=asked_at,
        expires_at=mark.due_at,
    )
