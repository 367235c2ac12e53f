"""Nodes and calls that wait for the world outside: times, events, approvals, caller's tools."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from msgspec import structs
from pydantic import JsonValue

from penstock.contracts.answers import ApprovalAnswer, ResolutionAnswer, ToolAnswer
from penstock.contracts.durations import DURATION_FORMS, MAX_DURATION_SECONDS, parse_duration
from penstock.contracts.envelope import require_time
from penstock.contracts.errors import ErrorDetail, ErrorInfo, RejectedError
from penstock.contracts.facts import NodeRecord, PendingRequest, RecordKind, SignalReceived
from penstock.contracts.ids import answer_signal_id, approval_record_id, resolution_record_id
from penstock.contracts.json import Json
from penstock.contracts.pending import call_digest
from penstock.contracts.plan import ApprovalNode, ApprovalPolicy, Node, WaitNode
from penstock.expressions.conditions import holds
from penstock.expressions.templates import render
from penstock.runs.state import StepState
from penstock_orchestrator.core import attempts
from penstock_orchestrator.core.decisions import timer_at
from penstock_orchestrator.core.dispatch import Call
from penstock_orchestrator.core.progress import Instance, Outcome
from penstock_orchestrator.core.walk import Walk


def _open(
    walk: Walk,
    instance: Instance[Node],
    record_id: str,
    kind: RecordKind,
    request: PendingRequest | None,
    due_at: datetime | None,
) -> NodeRecord:
    """Open a node record that waits for an answer or a time."""
    node_record = NodeRecord(
        record_id=record_id, kind=kind, status="open", due_at=due_at, request=request
    )
    walk.view.note(node_record)
    if due_at is not None:
        timer = timer_at(due_at)
        if timer not in walk.timers[-1:]:
            walk.timers.append(timer)
        walk.progress.later(due_at, instance)
    return node_record


def _close(
    walk: Walk, node_record: NodeRecord, output: Json, error: ErrorInfo | None, **changed: str
) -> None:
    """Close an open node record with its outcome."""
    status = "succeeded" if error is None else "failed"
    changes = {"status": status, "output": output, "error": error, "request": None, **changed}
    walk.view.note(structs.replace(node_record, **changes))


def _answer(walk: Walk, kind: str, node_record: NodeRecord) -> SignalReceived | None:
    digest = node_record.request.digest if node_record.request is not None else ""
    signal = walk.state.signals.get(answer_signal_id(kind, node_record.record_id, digest))
    return signal.fact if signal is not None else None


def _overdue(walk: Walk, instance: Instance[Node], node_record: NodeRecord) -> bool:
    if node_record.due_at is None:
        return False
    if walk.now >= node_record.due_at:
        return True
    known = walk.state.node_records.get(node_record.record_id)
    if known is not None and node_record.record_id not in walk.progress.opened:
        walk.progress.opened.add(node_record.record_id)
        walk.progress.later(node_record.due_at, instance)
    return False


# -- waits ---------------------------------------------------------------------------------------


def wait(walk: Walk, instance: Instance[WaitNode]) -> Outcome | None:
    """Advance a wait: for a time, or for a signal."""
    node = instance.node
    node_record = walk.view.node_record(instance.id)
    if node_record is None:
        node_record = _begin_wait(walk, instance)
    if node.signal is not None:
        waits = walk.progress.waits.setdefault(node.signal, {})
        taken = _matching(walk, instance)
        if taken is not None:
            signal_id, fact = taken
            waits.pop(instance.id, None)
            walk.progress.consumed.add(signal_id)
            output: Json = {"name": fact.name, "payload": fact.payload}
            _close(walk, node_record, output, None, choice=signal_id)
            return Outcome("succeeded", output)
        waits[instance.id] = instance
    if not _overdue(walk, instance, node_record):
        return None
    if node.signal is None:
        _close(walk, node_record, None, None)
        return Outcome("succeeded", None)
    walk.progress.waits[node.signal].pop(instance.id, None)
    if node.on_timeout == "continue":
        _close(walk, node_record, None, None)
        return Outcome("succeeded", None)
    error = ErrorInfo(code="wait_timeout", message=f"no signal {node.signal!r} came in time")
    return walk.fail(instance, error)


def _begin_wait(walk: Walk, instance: Instance[WaitNode]) -> NodeRecord:
    node = instance.node
    scope = walk.scope(instance)
    due_at: datetime | None = None
    request: PendingRequest | None = None
    if node.signal is not None:
        key = render(node.correlation, scope) if node.correlation is not None else None
        request = PendingRequest(
            name=node.signal,
            correlation=str(key) if key is not None else None,
            node_id=node.id,
        )
        if node.timeout_seconds is not None:
            due_at = walk.now + timedelta(seconds=node.timeout_seconds)
    elif node.until is not None:
        due_at = _moment(render(node.until, scope), node)
    else:
        due_at = walk.now + timedelta(seconds=_seconds(render(node.seconds, scope), node))
    return _open(walk, instance, instance.id, "wait", request, due_at)


def _matching(walk: Walk, instance: Instance[WaitNode]) -> tuple[str, SignalReceived] | None:
    """Return the earliest signal that fits and that no other wait has taken."""
    node = instance.node
    consumed = _consumed(walk)
    fitting = [
        (signal.seq, signal_id, signal.fact)
        for signal_id, signal in walk.state.signals.items()
        if signal.fact.name == node.signal
        and signal.fact.kind in ("event", "message")
        and signal_id not in consumed
    ]
    for _, signal_id, fact in sorted(fitting, key=lambda each: each[:2]):
        if node.match is None:
            return signal_id, fact
        received: JsonValue = {"name": fact.name, "payload": fact.payload}
        if holds(node.match, walk.scope(instance, {"signal": received})):
            return signal_id, fact
    return None


def _consumed(walk: Walk) -> set[str]:
    progress = walk.progress
    if "-signals" not in progress.opened:
        progress.opened.add("-signals")
        progress.consumed.update(
            known.node_record.choice
            for known in walk.state.node_records.values()
            if known.node_record.kind == "wait" and known.node_record.choice is not None
        )
    return progress.consumed


def _seconds(value: Json, node: Node) -> float:
    """Return the seconds of a rendered duration.

    Raises:
        RejectedError: ``invalid_duration``.
    """
    found = parse_duration(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        found = None
    if found is None or not 0 <= found <= MAX_DURATION_SECONDS:
        raise RejectedError(
            "invalid_duration",
            f"step {node.id} cannot wait for {value!r}",
            details=(
                ErrorDetail(
                    path=f"{node.id}.wait",
                    message=f"got {value!r}"[:200],
                    allowed=f"{DURATION_FORMS}; at most 366 days",
                ),
            ),
        )
    return float(found)


def _moment(value: Json, node: Node) -> datetime:
    """Read a time: RFC 3339 text, UTC where it names no offset."""
    try:
        at = require_time(datetime.fromisoformat(str(value)))
    except ValueError as error:
        raise RejectedError(
            "invalid_time",
            f"step {node.id} cannot wait until {value!r}",
            details=(
                ErrorDetail(
                    path=f"{node.id}.wait.until",
                    message=f"got {value!r}"[:200],
                    allowed="RFC 3339, such as 2026-01-31T08:00:00Z",
                ),
            ),
        ) from error
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


# -- approvals -----------------------------------------------------------------------------------


def approval(walk: Walk, instance: Instance[ApprovalNode]) -> Outcome | None:
    """Advance an approval step."""
    node = instance.node
    node_record = walk.view.node_record(instance.id)
    if node_record is None:
        scope = walk.scope(instance)
        shown = render(node.input, scope) if node.input is not None else None
        request = PendingRequest(
            name=node.id,
            arguments=shown,
            digest=call_digest(node.id, shown),
            role=node.role,
            message=str(render(node.message, scope)),
            node_id=node.id,
        )
        due_at = walk.now + timedelta(seconds=node.expires_seconds)
        node_record = _open(walk, instance, instance.id, "approval", request, due_at)
    verdict = _verdict(walk, instance, node_record)
    if verdict is None:
        return None
    output, error = verdict
    if error is None or node.on_reject == "continue":
        _close(walk, node_record, output, None)
        return Outcome("succeeded", output)
    return walk.fail(instance, error)


def gate(walk: Walk, instance: Instance[Node], step_id: str, call: Call) -> Outcome | None:
    """Hold a call back until it is approved.

    Returns:
        ``None``: the call is allowed. ``succeeded``: the approval is still open. ``failed``: the
        call is not allowed.
    """
    tool = call.tool
    if tool.policy == "block":
        error = ErrorInfo(code="tool_blocked", message=f"tool {tool.name} is blocked by policy")
        return _refused(walk, instance, error)
    if tool.policy != "require_approval":
        return None
    record_id = approval_record_id(step_id)
    node_record = walk.view.node_record(record_id)
    if node_record is None:
        node_record = _request_approval(walk, instance, record_id, call)
    if node_record.status == "succeeded":
        return None
    if node_record.status == "failed" and node_record.error is not None:
        return _refused(walk, instance, node_record.error)
    verdict = _verdict(walk, instance, node_record) if node_record.status == "open" else None
    if verdict is None:
        return Outcome("succeeded")
    output, error_ = verdict
    _close(walk, node_record, output, error_)
    return None if error_ is None else _refused(walk, instance, error_)


def _request_approval(
    walk: Walk, instance: Instance[Node], record_id: str, call: Call
) -> NodeRecord:
    """Open the approval of a call; it has failed if its message cannot be rendered."""
    tool, given, _ = call
    spec = tool.approval or ApprovalPolicy()
    try:
        message = str(render(spec.message, walk.scope(instance, {"arguments": given})))
    except RejectedError as error:
        failed = NodeRecord(
            record_id=record_id, kind="approval", status="failed", error=error.info()
        )
        walk.view.note(failed)
        return failed
    request = PendingRequest(
        name=tool.name,
        arguments=given,
        digest=call_digest(tool.name, given),
        role=spec.role,
        message=message,
        node_id=instance.node.id,
    )
    due_at = walk.now + timedelta(seconds=spec.expires_seconds)
    return _open(walk, instance, record_id, "approval", request, due_at)


def _refused(walk: Walk, instance: Instance[Node], error: ErrorInfo) -> Outcome:
    """Fail a tool node; an agent gets the error as the outcome of its call."""
    if instance.node.kind == "agent":
        return Outcome("failed", None, error)
    return walk.fail(instance, error)


def _verdict(
    walk: Walk, instance: Instance[Node], node_record: NodeRecord
) -> tuple[Json, ErrorInfo | None] | None:
    """Return the decision about an approval, or its expiry; ``None`` while it is open."""
    answer = _answer(walk, "approval", node_record)
    if answer is None:
        if not _overdue(walk, instance, node_record):
            return None
        reason = "no decision was made in time"
        return (
            {"approved": False, "reason": reason, "by": None, "expired": True},
            ErrorInfo(code="approval_expired", message=reason),
        )
    given = ApprovalAnswer.parse(answer.payload)
    approved = given.decision == "approve"
    output: Json = {
        "approved": approved,
        "reason": given.reason,
        "by": given.by or answer.sent_by,
        "expired": False,
    }
    if approved:
        return output, None
    reason = given.reason or "no reason given"
    return output, ErrorInfo(code="approval_rejected", message=f"rejected: {reason}")


# -- tools of the caller, unknown outcomes -------------------------------------------------------


def client_tool(walk: Walk, instance: Instance[Node], step_id: str, call: Call) -> Outcome | None:
    """Let the caller of the run execute a tool."""
    tool, given, _ = call
    node_record = walk.view.node_record(step_id)
    if node_record is None:
        request = PendingRequest(
            name=tool.name,
            arguments=given,
            digest=call_digest(tool.name, given),
            node_id=instance.node.id,
        )
        due_at = walk.now + timedelta(seconds=tool.timeout_seconds)
        node_record = _open(walk, instance, step_id, "client_tool", request, due_at)
    answer = _answer(walk, "tool_result", node_record)
    if answer is None:
        if not _overdue(walk, instance, node_record):
            return None
        error = ErrorInfo(code="client_tool_timeout", message="the caller sent no result in time")
    else:
        result = ToolAnswer.parse(answer.payload)
        if result.error is None:
            _close(walk, node_record, result.output, None)
            return Outcome("succeeded", result.output)
        error = ErrorInfo(code=result.error.code, message=result.error.message)
    if instance.node.kind == "agent":
        _close(walk, node_record, None, error)
        return Outcome("failed", None, error)
    return walk.fail(instance, error)


def resolution(walk: Walk, instance: Instance[Node], step: StepState) -> Outcome | None:
    """Request a decision about an attempt that was lost and must not be repeated.

    Returns:
        The step's outcome as it was decided. An agent gets the failure of its call as an error.
    """
    record_id = resolution_record_id(step.step_id)
    digest = f"attempt-{step.attempt}"
    node_record = walk.view.node_record(record_id)
    if node_record is not None and node_record.status != "open" and node_record.choice == digest:
        return _resolved(walk, instance, step, node_record)
    if node_record is not None and node_record.choice == f"{digest}-retried":
        attempts.retry(walk, instance, step, step.attempt + 1)
        return None
    if node_record is not None and node_record.status == "skipped":
        return None  # no node waits for it any more
    if node_record is None or node_record.status != "open":
        request = PendingRequest(
            name=step.name,
            digest=digest,
            node_id=instance.node.id,
            message=step.error.message if step.error is not None else "the attempt was lost",
        )
        node_record = _open(walk, instance, record_id, "resolution", request, None)
    answer = _answer(walk, "resolution", node_record)
    if answer is None:
        return None
    decided = ResolutionAnswer.parse(answer.payload)
    if decided.action == "retry":
        _close(walk, node_record, None, None, choice=f"{digest}-retried")
        attempts.retry(walk, instance, step, step.attempt + 1)
        return None
    error = None
    if decided.action != "succeed":
        reason = decided.reason or "it was decided that the lost attempt failed"
        error = ErrorInfo(code="outcome_unknown", message=reason)
    _close(walk, node_record, decided.output, error, choice=digest)
    closed = walk.view.node_record(record_id)
    return _resolved(walk, instance, step, closed) if closed is not None else None


def _resolved(
    walk: Walk, instance: Instance[Node], step: StepState, node_record: NodeRecord
) -> Outcome:
    if node_record.error is None:
        if instance.node.kind != "agent":
            return walk.done(instance, node_record.output)
        if walk.view.node_record(step.step_id) is None:
            walk.view.note(
                NodeRecord(
                    record_id=step.step_id,
                    kind="tool",
                    status="succeeded",
                    output=node_record.output,
                )
            )
        return Outcome("succeeded", node_record.output)
    if instance.node.kind != "agent":
        return walk.fail(instance, node_record.error)
    return Outcome("failed", None, node_record.error)
