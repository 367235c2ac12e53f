"""Replies of the HTTP API that exist nowhere else: the gateway builds them, clients parse them.

Runs and their events are in ``views`` and ``events``; replies that the gateway passes on from the
registry or the archive are in ``penstock.contracts.rpc`` and ``penstock.contracts.archive``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime

from penstock.contracts.errors import ErrorDetail, ErrorInfo
from penstock.contracts.facts import Record
from penstock.contracts.json import Json

ApprovalStatus = Literal["open", "approved", "rejected", "expired", "closed"]
"""``closed``: the run has ended, or took a path that does not need the approval."""
Remedy = Literal["reload", "attempt", "none"]
"""Effect of requeueing a dead letter: reload the run, make a new attempt of the step, none."""


class Problem(Record):
    """A problem document (RFC 9457). ``errors`` lists every finding with its path."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    code: str = ""
    errors: tuple[ErrorDetail, ...] = ()


class DecisionView(Record):
    """The answer to an approval."""

    decision: Literal["approve", "reject"]
    by: str | None = None
    reason: str = ""
    at: AwareDatetime


class ApprovalView(Record):
    """An approval that a run requests before it continues or calls a tool."""

    run_id: str
    record_id: str
    step_id: str
    """The tool call, or the approval step."""
    run_name: str
    """The definition that runs."""
    status: ApprovalStatus
    tool: str | None = None
    """The tool to call; absent for a step that is an approval."""
    arguments: Json = None
    """The exact arguments of the call."""
    digest: str = ""
    """SHA-256 of tool and arguments; an answer with this digest applies to nothing else."""
    role: str | None = None
    message: str = ""
    asked_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    decided: DecisionView | None = None


class ApprovalPage(Record):
    """A page of approvals, the oldest request first; ``next_cursor`` is absent on the last."""

    items: tuple[ApprovalView, ...]
    next_cursor: str | None = None


class CallView(Record):
    """A pending call of a client tool: the client of the run executes it."""

    step_id: str
    tool: str
    arguments: Json = None
    digest: str = ""
    asked_at: AwareDatetime
    expires_at: AwareDatetime | None = None


class Calls(Record):
    """Pending calls of client tools of one run."""

    run_id: str
    items: tuple[CallView, ...]


class UnknownView(Record):
    """A step with a lost attempt that is not repeated without a resolution."""

    step_id: str
    record_id: str
    tool: str
    arguments: Json = None
    digest: str = ""
    message: str = ""
    role: str | None = None
    asked_at: AwareDatetime
    expires_at: AwareDatetime | None = None


class Unknowns(Record):
    """Steps of one run with an unknown outcome."""

    run_id: str
    items: tuple[UnknownView, ...]


class SentSignal(Record):
    """A signal in the log of a run; ``repeated``: an earlier request stored it."""

    run_id: str
    signal_id: str
    seq: int
    name: str
    at: AwareDatetime
    repeated: bool = False


class SentSignals(Record):
    """One signal for each run that waited for the correlation key."""

    items: tuple[SentSignal, ...]


class RunsCancelled(Record):
    """Result of a request to cancel many runs; all ids are ids of runs."""

    dry_run: bool
    matched: int
    asked: tuple[str, ...]
    """Runs with a new request to stop; in a dry run those that would get one."""
    asked_before: tuple[str, ...]
    """Runs with an earlier request to stop."""
    ended: tuple[str, ...]
    """Runs that have ended meanwhile."""
    more: bool
    """Whether the limit left some out: repeat the request."""


class RunImported(Record):
    """Result of the import of a bundle."""

    run_id: str
    facts: int
    """Facts of the bundle."""
    stored: int
    """Facts that the log did not have; 1 for a run that continues under a new id."""
    hash: str
    """The last hash of the bundle."""


class DeadLetterView(Record):
    """A message that a consumer gave up."""

    seq: int
    consumer: str
    stream: str
    stream_seq: int
    """Sequence of the message, if the stream still has it."""
    subject: str
    run_id: str
    deliveries: int
    error: ErrorInfo
    occurred_at: AwareDatetime
    remedy: Remedy
    body: str | None = None
    """Its first 64 KiB; only in the reply about a single letter."""


class DeadLetterPage(Record):
    """A page of dead letters, the oldest first; ``next_cursor`` is absent on the last."""

    items: tuple[DeadLetterView, ...]
    next_cursor: str | None = None


class RefusedLetter(Record):
    """A dead letter that could not be requeued, and the reason."""

    seq: int
    error: ErrorInfo


class DeadLettersDone(Record):
    """Result of requeueing or discarding many dead letters."""

    dry_run: bool
    done: tuple[int, ...]
    """Letters that are gone; in a dry run those that would be tried."""
    refused: tuple[RefusedLetter, ...]
    more: bool
    """Whether the limit left some out: repeat the request."""
