"""What clients are told: facts and deltas as the events of a run.

One fact may give several events; the last of them alone carries the stream sequence as its id,
so that a client that resumes after an id has seen all that belongs to it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import AwareDatetime, TypeAdapter

from penstock.contracts.facts import (
    CancelRequested,
    DeltaBatch,
    Record,
    RunEnded,
    RunInvoked,
    RunStatus,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
)
from penstock.contracts.json import Json
from penstock.contracts.state import Entry


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
    POLICY_DECISION = "policy_decision"
    STEP_WAITING = "step_waiting"
    SIGNAL_RECEIVED = "signal_received"
    RUN_CANCEL_REQUESTED = "run_cancel_requested"
    RUN_DONE = "run_done"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"


FINAL_EVENTS: Final = frozenset({EventType.RUN_DONE, EventType.RUN_FAILED, EventType.RUN_CANCELLED})

_STARTED: Final = {
    StepKind.AGENT: EventType.AGENT_INVOKE_STARTED,
    StepKind.TOOL: EventType.TOOL_CALL_STARTED,
}
_DONE: Final = {
    StepKind.AGENT: EventType.AGENT_INVOKE_DONE,
    StepKind.TOOL: EventType.TOOL_CALL_DONE,
}
_FAILED: Final = {
    StepKind.AGENT: EventType.AGENT_INVOKE_FAILED,
    StepKind.TOOL: EventType.TOOL_CALL_FAILED,
}
_ENDED: Final = {
    RunStatus.DONE: EventType.RUN_DONE,
    RunStatus.FAILED: EventType.RUN_FAILED,
    RunStatus.CANCELLED: EventType.RUN_CANCELLED,
}


class ClientEvent(Record):
    """One event of a run.

    ``id`` is the stream sequence of the fact behind it, absent on deltas and on all but the last
    event of a fact. ``data`` depends on ``type``.
    """

    id: int | None = None
    type: EventType
    run_id: str
    at: AwareDatetime | None = None
    step_id: str | None = None
    attempt: int | None = None
    data: dict[str, Json] = {}


CLIENT_EVENT: Final[TypeAdapter[ClientEvent]] = TypeAdapter(ClientEvent)


def events_of(entry: Entry) -> tuple[ClientEvent, ...]:  # noqa: C901 - one case a fact
    """Return the events that a fact means to a client, in order; the last one has the id."""
    fact, subject = entry.fact, entry.subject
    run_id, at = subject.run_id, fact.occurred_at
    match fact:
        case RunInvoked():
            return (
                ClientEvent(
                    type=EventType.RUN_STARTED,
                    run_id=run_id,
                    at=at,
                    data={
                        "name": fact.name,
                        "kind": fact.kind.value,
                        "version": fact.version,
                        "session_id": fact.session_id,
                        "trigger": fact.trigger.value,
                    },
                ),
                ClientEvent(
                    id=entry.seq,
                    type=EventType.USER_INPUT,
                    run_id=run_id,
                    at=at,
                    data={"input": fact.input},
                ),
            )
        case StepScheduled():
            blocked = fact.decision.blocked if fact.decision is not None else ()
            return (
                *(
                    ClientEvent(
                        type=EventType.POLICY_DECISION,
                        run_id=run_id,
                        at=at,
                        step_id=call.step_id,
                        data={"tool": call.tool, "decision": "blocked", "reason": call.reason},
                    )
                    for call in blocked
                ),
                ClientEvent(
                    id=entry.seq,
                    type=_STARTED[StepKind(subject.kind)],
                    run_id=run_id,
                    at=at,
                    step_id=subject.step_id,
                    attempt=subject.attempt,
                    data={
                        "node_id": fact.node_id,
                        "name": fact.name,
                        **({"arguments": fact.input} if subject.kind == StepKind.TOOL else {}),
                    },
                ),
            )
        case StepResult():
            failed = fact.status == "failed"
            data: dict[str, Json] = {"name": fact.name, "runner_id": fact.runner_id}
            if fact.error is not None:
                data["error"] = fact.error.model_dump(mode="json")
            if not failed:
                data["output"] = fact.output
            if fact.usage is not None:
                data["usage"] = fact.usage.model_dump(mode="json")
            return (
                ClientEvent(
                    id=entry.seq,
                    type=(_FAILED if failed else _DONE)[fact.kind],
                    run_id=run_id,
                    at=at,
                    step_id=subject.step_id,
                    attempt=subject.attempt,
                    data=data,
                ),
            )
        case StateChanged():
            waits = fact.waits
            return tuple(
                ClientEvent(
                    id=entry.seq if index == len(waits) - 1 else None,
                    type=EventType.STEP_WAITING,
                    run_id=run_id,
                    at=at,
                    step_id=wait.step_id,
                    attempt=wait.next_attempt,
                    data={"due_at": wait.due_at.isoformat()},
                )
                for index, wait in enumerate(waits)
            )
        case SignalReceived():
            return (
                ClientEvent(
                    id=entry.seq,
                    type=EventType.SIGNAL_RECEIVED,
                    run_id=run_id,
                    at=at,
                    data={"name": fact.name, "payload": fact.payload},
                ),
            )
        case CancelRequested():
            return (
                ClientEvent(
                    id=entry.seq,
                    type=EventType.RUN_CANCEL_REQUESTED,
                    run_id=run_id,
                    at=at,
                    data={"reason": fact.reason},
                ),
            )
        case RunEnded():
            ended: dict[str, Json] = {
                "status": fact.status.value,
                "usage": fact.usage.model_dump(mode="json"),
            }
            if fact.status is RunStatus.DONE:
                ended["output"] = fact.output
            if fact.error is not None:
                ended["error"] = fact.error.model_dump(mode="json")
            return (
                ClientEvent(
                    id=entry.seq, type=_ENDED[fact.status], run_id=run_id, at=at, data=ended
                ),
            )


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
