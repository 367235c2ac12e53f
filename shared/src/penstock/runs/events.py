"""Events of a run for clients, made from facts and deltas.

One fact may give several events; the last of them alone carries the stream sequence as its id,
so that a client that resumes after an id has seen all that belongs to it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import AwareDatetime, TypeAdapter

from penstock.contracts.facts import (
    CancelRequested,
    Decision,
    NodeRecord,
    Record,
    RunEnded,
    RunInvoked,
    RunStatus,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    Wait,
)
from penstock.contracts.ids import RecordId, child_run_id
from penstock.contracts.json import Json
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.structs import plain
from penstock.runs.state import Entry


class EventType(StrEnum):
    """Every type of event that a client can see."""

    RUN_STARTED = "run_started"
    USER_INPUT = "user_input"
    AGENT_INVOKE_STARTED = "agent_invoke_started"
    AGENT_STREAM_DELTA = "agent_stream_delta"
    AGENT_INVOKE_DONE = "agent_invoke_done"
    AGENT_INVOKE_FAILED = "agent_invoke_failed"
    TOOL_CALL_STARTED = "tool_call_started"
    TOOL_CALL_DONE = "tool_call_done"
    TOOL_CALL_FAILED = "tool_call_failed"
    TOOL_CALL_UNKNOWN = "tool_call_unknown"
    TOOL_CALL_CREATED = "tool_call_created"
    TOOL_RESULT_RECEIVED = "tool_result_received"
    APPROVAL_CREATED = "approval_created"
    APPROVAL_DECISION = "approval_decision"
    APPROVAL_EXPIRED = "approval_expired"
    RESOLUTION_CREATED = "resolution_created"
    RESOLUTION_DECISION = "resolution_decision"
    WAIT_STARTED = "wait_started"
    WAIT_ENDED = "wait_ended"
    BRANCH_TAKEN = "branch_taken"
    MAP_STARTED = "map_started"
    NODE_DONE = "node_done"
    NODE_FAILED = "node_failed"
    NODE_SKIPPED = "node_skipped"
    PHASE_ENDED = "phase_ended"
    CHILD_RUN_STARTED = "child_run_started"
    CHILD_RUN_DONE = "child_run_done"
    CHILD_RUN_FAILED = "child_run_failed"
    MESSAGE_SENT = "message_sent"
    MESSAGE_DELIVERED = "message_delivered"
    MESSAGE_FAILED = "message_failed"
    POLICY_DECISION = "policy_decision"
    STEP_WAITING = "step_waiting"
    QUEUE_UNSERVED = "queue_unserved"
    SIGNAL_RECEIVED = "signal_received"
    RUN_ADMITTED = "run_admitted"
    RUN_PAUSED = "run_paused"
    RUN_RESUMED = "run_resumed"
    RUN_CANCEL_REQUESTED = "run_cancel_requested"
    RUN_DONE = "run_done"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"


FINAL_EVENTS: Final = frozenset({EventType.RUN_DONE, EventType.RUN_FAILED, EventType.RUN_CANCELLED})

_STARTED: Final = {
    StepKind.AGENT: EventType.AGENT_INVOKE_STARTED,
    StepKind.TOOL: EventType.TOOL_CALL_STARTED,
    StepKind.RUN: EventType.CHILD_RUN_STARTED,
}
_DONE: Final = {
    StepKind.AGENT: EventType.AGENT_INVOKE_DONE,
    StepKind.TOOL: EventType.TOOL_CALL_DONE,
    StepKind.RUN: EventType.CHILD_RUN_DONE,
}
_FAILED: Final = {
    StepKind.AGENT: EventType.AGENT_INVOKE_FAILED,
    StepKind.TOOL: EventType.TOOL_CALL_FAILED,
    StepKind.RUN: EventType.CHILD_RUN_FAILED,
}
SEND_QUEUE: Final = "send"
"""Queue of the steps that send a message to another run."""
_ANSWERS: Final = {
    "approval": EventType.APPROVAL_DECISION,
    "tool_result": EventType.TOOL_RESULT_RECEIVED,
    "resolution": EventType.RESOLUTION_DECISION,
    "pause": EventType.RUN_PAUSED,
    "resume": EventType.RUN_RESUMED,
    "admitted": EventType.RUN_ADMITTED,
}
_OPENED: Final = {
    "approval": EventType.APPROVAL_CREATED,
    "client_tool": EventType.TOOL_CALL_CREATED,
    "resolution": EventType.RESOLUTION_CREATED,
    "wait": EventType.WAIT_STARTED,
    "map": EventType.MAP_STARTED,
}
_ENDED: Final = {
    RunStatus.DONE: EventType.RUN_DONE,
    RunStatus.FAILED: EventType.RUN_FAILED,
    RunStatus.CANCELLED: EventType.RUN_CANCELLED,
}


class ClientEvent(Record):
    """One event of a run.

    ``id`` is the stream sequence of the fact behind it, absent on deltas, ``queue_unserved`` and on
    all but the last event of a fact. ``data`` depends on ``type``.
    """

    id: int | None = None
    type: EventType
    run_id: str
    at: AwareDatetime | None = None
    step_id: str | None = None
    attempt: int | None = None
    data: dict[str, Json] = {}


class EventPage(Record):
    """A page of a run's events. ``last_id`` is the id of the last fact that was read."""

    items: tuple[ClientEvent, ...]
    next_cursor: str | None = None
    last_id: int


CLIENT_EVENT: Final[TypeAdapter[ClientEvent]] = TypeAdapter(ClientEvent)


def events_of(entry: Entry) -> tuple[ClientEvent, ...]:
    """Return the events that a fact means to a client, in order; the last one has the id."""
    events = _events(entry)
    if not events:
        return ()
    *others, last = events
    return (*others, last.model_copy(update={"id": entry.seq}))


def _events(entry: Entry) -> list[ClientEvent]:
    fact = entry.fact
    match fact:
        case RunInvoked():
            return _of_start(entry, fact)
        case StepScheduled():
            return [*_of_decision(entry, fact.decision), _of_step(entry, fact)]
        case StepResult():
            return [_of_result(entry, fact)]
        case StateChanged():
            return _of_decision(entry, fact.decision)
        case SignalReceived():
            return [_of_signal(entry, fact)]
        case CancelRequested():
            return [_event(entry, EventType.RUN_CANCEL_REQUESTED, {"reason": fact.reason})]
        case RunEnded():
            return [*_of_decision(entry, fact.decision), _of_end(entry, fact)]


def _event(
    entry: Entry,
    kind: EventType,
    data: dict[str, Json],
    step_id: str | None = None,
    attempt: int | None = None,
) -> ClientEvent:
    return ClientEvent(
        type=kind,
        run_id=entry.subject.run_id,
        at=entry.fact.occurred_at,
        step_id=step_id,
        attempt=attempt,
        data=data,
    )


def _of_start(entry: Entry, fact: RunInvoked) -> list[ClientEvent]:
    started: dict[str, Json] = {
        "name": fact.name,
        "kind": fact.kind.value,
        "version": fact.version,
        "session_id": fact.session_id,
        "trigger": fact.trigger.value,
    }
    if fact.parent is not None:
        started["parent_run_id"] = fact.parent.run_id
    if fact.forked_from is not None:
        started["forked_from"] = plain(fact.forked_from)
    if fact.imported is not None:
        started["imported"] = plain(fact.imported)
    return [
        _event(entry, EventType.RUN_STARTED, started),
        _event(entry, EventType.USER_INPUT, {"input": fact.input}),
    ]


def _of_decision(entry: Entry, decision: Decision | None) -> list[ClientEvent]:
    """Return what a decision says beside its steps: blocked calls, node records, waits."""
    if decision is None:
        return []
    events = [
        _event(
            entry,
            EventType.POLICY_DECISION,
            {"tool": call.tool, "decision": "blocked", "reason": call.reason},
            call.step_id,
        )
        for call in decision.blocked
    ]
    for node_record in decision.node_records:
        kind = _kind_of(node_record)
        if kind is not None:
            step_id = RecordId.parse(node_record.record_id).step_id
            events.append(_event(entry, kind, _of_record(node_record), step_id))
    return [*events, *(_waiting(entry, wait) for wait in decision.waits)]


def _kind_of(node_record: NodeRecord) -> EventType | None:
    """Return the type of the event that a node record is; ``None`` where another event shows it."""
    if node_record.status == "open":
        return _OPENED.get(node_record.kind)
    if node_record.status == "skipped":
        return EventType.NODE_SKIPPED
    failed = node_record.status == "failed"
    match node_record.kind:
        case "approval":
            return EventType.APPROVAL_EXPIRED if _expired(node_record) else None
        case "resolution":
            return None
        case "client_tool":
            return EventType.TOOL_CALL_FAILED if failed else EventType.TOOL_CALL_DONE
        case "wait":
            return EventType.WAIT_ENDED
        case "branch":
            return EventType.NODE_FAILED if failed else EventType.BRANCH_TAKEN
        case "phase":
            return EventType.PHASE_ENDED
        case _:
            return EventType.NODE_FAILED if failed else EventType.NODE_DONE


def _expired(node_record: NodeRecord) -> bool:
    if node_record.error is not None:
        return node_record.error.code == "approval_expired"
    return isinstance(node_record.output, dict) and node_record.output.get("expired") is True


def _of_record(node_record: NodeRecord) -> dict[str, Json]:
    data: dict[str, Json] = {
        "record_id": node_record.record_id,
        "kind": node_record.kind,
        "status": node_record.status,
    }
    request = node_record.request
    if request is not None:
        data["name"] = request.name
        for name in ("arguments", "digest", "role", "message", "correlation"):
            if value := getattr(request, name):
                data[name] = value
    if node_record.due_at is not None:
        data["due_at"] = node_record.due_at.isoformat()
    for name in ("choice", "count"):
        if (value := getattr(node_record, name)) is not None:
            data[name] = value
    if node_record.error is not None:
        data["error"] = plain(node_record.error)
    elif node_record.status == "succeeded":
        data["output"] = node_record.output
    return data


def _waiting(entry: Entry, wait: Wait) -> ClientEvent:
    data: dict[str, Json] = {"due_at": wait.due_at.isoformat()}
    return _event(entry, EventType.STEP_WAITING, data, wait.step_id, wait.next_attempt)


def _of_step(entry: Entry, fact: StepScheduled) -> ClientEvent:
    subject = entry.subject
    kind = _STARTED[StepKind(subject.kind)]
    data: dict[str, Json] = {"node_id": fact.node_id, "name": fact.name}
    if subject.kind == StepKind.TOOL:
        data["arguments"] = fact.input
    elif subject.kind == StepKind.RUN:
        if subject.queue == SEND_QUEUE:
            kind = EventType.MESSAGE_SENT
        else:
            data["child_run_id"] = _child(entry)
    return _event(entry, kind, data, subject.step_id, subject.attempt)


def _child(entry: Entry) -> str:
    subject = entry.subject
    return child_run_id(subject.tenant, subject.run_id, subject.step_id, subject.attempt)


def _of_result(entry: Entry, fact: StepResult) -> ClientEvent:
    data: dict[str, Json] = {"name": fact.name, "runner_id": fact.runner_id}
    if fact.error is not None:
        data["error"] = plain(fact.error)
    if fact.status == "succeeded":
        data["output"] = fact.output
    if fact.usage is not None:
        data["usage"] = plain(fact.usage)
    if fact.status == "unknown":
        kind = EventType.TOOL_CALL_UNKNOWN
    elif fact.kind is StepKind.RUN and _is_delivery(fact):
        failed = fact.status == "failed"
        kind = EventType.MESSAGE_FAILED if failed else EventType.MESSAGE_DELIVERED
    else:
        kind = (_FAILED if fact.status == "failed" else _DONE)[fact.kind]
    return _event(entry, kind, data, entry.subject.step_id, entry.subject.attempt)


def _is_delivery(fact: StepResult) -> bool:
    """Return whether an outcome is a message's; a child run's always has a cost."""
    if fact.error is not None:
        return fact.error.code == "no_recipient"
    return fact.usage is None


def _of_signal(entry: Entry, fact: SignalReceived) -> ClientEvent:
    kind = _ANSWERS.get(fact.kind)
    if kind is None:
        said: dict[str, Json] = {"name": fact.name, "payload": fact.payload}
        if fact.from_run is not None:
            said["from_run"] = fact.from_run
        return _event(entry, EventType.SIGNAL_RECEIVED, said)
    data: dict[str, Json] = {"name": fact.name} if fact.name else {}
    if fact.target:
        data["record_id"] = fact.target
    if isinstance(fact.payload, dict):
        data |= fact.payload
    if fact.sent_by is not None:
        data.setdefault("by", fact.sent_by)
    step_id = RecordId.parse(fact.target).step_id or None
    return _event(entry, kind, data, step_id)


def _of_end(entry: Entry, fact: RunEnded) -> ClientEvent:
    data: dict[str, Json] = {
        "status": fact.status.value,
        "usage": plain(fact.usage),
    }
    if fact.status is RunStatus.DONE:
        data["output"] = fact.output
    if fact.error is not None:
        data["error"] = plain(fact.error)
    return _event(entry, _ENDED[fact.status], data)


def delta_events(
    run_id: str, step_id: str, attempt: int, batch: DeltaBatch, skip: int = 0
) -> tuple[ClientEvent, ...]:
    """Return one event for each piece of text in a batch, leaving out the first ``skip``."""
    return tuple(
        ClientEvent(
            type=EventType.AGENT_STREAM_DELTA,
            run_id=run_id,
            step_id=step_id,
            attempt=attempt,
            data={"index": batch.first + offset, "text": text},
        )
        for offset, text in enumerate(batch.texts)
        if offset >= skip
    )
