"""Facts that others wrote: one that cannot be read becomes a failure of its step.

Anything on the bus can publish a result, and the log keeps the first message of a subject for
good. A run that left out a bad one would wait for it for ever.
"""

from __future__ import annotations

from datetime import UTC, datetime
from re import compile as pattern
from typing import Final

from penstock.contracts.envelope import require_time
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    CancelRequested,
    RunEnded,
    RunFact,
    RunInvoked,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    fact_type,
    read_fact,
)
from penstock.contracts.structs import MalformedError
from penstock.contracts.subjects import FactEvent, FactSubject

UNREADABLE_RESULT: Final = "unreadable_result"

_EVENT_OF: Final[dict[type[RunFact], FactEvent]] = {
    RunInvoked: "invoke",
    StepResult: "result",
    SignalReceived: "signal",
    CancelRequested: "cancel",
    StepScheduled: "step",
    StateChanged: "state",
    RunEnded: "end",
}
_OCCURRED_AT: Final = pattern(rb'"occurred_at":\s*"([0-9T:.+Z-]{1,40})"')
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REASON_CHARACTERS: Final = 500


def read_at(subject: FactSubject, body: bytes) -> RunFact:
    """Read the fact of a subject; every reader of the log gets the same one.

    A result that cannot be read is a failed one, ``unreadable_result``.

    Args:
        subject: Where it stands.
        body: The message, which is no claim.

    Raises:
        MalformedError: Of another event: it is no fact, or one that its subject does not announce.
    """
    try:
        fact = read_fact(body)
    except MalformedError as error:
        reason = str(error)
    else:
        if _EVENT_OF[type(fact)] == subject.event:
            return fact
        reason = f"a {fact_type(fact)} cannot stand there"
    if subject.event == "result":
        return _failed(subject, body, reason)
    raise MalformedError(reason)


def quarantined(fact: RunFact) -> bool:
    """Return whether a fact stands for a result that could not be read."""
    return (
        isinstance(fact, StepResult)
        and fact.error is not None
        and fact.error.code == UNREADABLE_RESULT
    )


def _failed(subject: FactSubject, body: bytes, reason: str) -> StepResult:
    at = _time_in(body)
    text = reason[:_REASON_CHARACTERS].encode("utf-8", "replace").decode()
    return StepResult(
        occurred_at=at,
        kind=StepKind.TOOL,
        name="",
        status="failed",
        error=ErrorInfo(
            code=UNREADABLE_RESULT,
            message=f"the result of step {subject.step_id} cannot be read: {text}",
        ),
        started_at=at,
    )


def _time_in(body: bytes) -> datetime:
    """Return the time that a body names, if it does: the substitute must not differ by reader."""
    found = _OCCURRED_AT.search(body)
    if found is None:
        return _EPOCH
    try:
        at = require_time(datetime.fromisoformat(found[1].decode()))
    except ValueError:
        return _EPOCH
    return at if at.tzinfo is not None else _EPOCH
