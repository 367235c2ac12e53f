"""Facts: the recorded events of a run, one message each, once only.

All facts form one union with the tag ``type``. Readers ignore fields that they do not know;
changes are additive, anything else is a new type. The coordinates of a fact (tenant, run, step,
attempt, decision) are in its subject, not in its body.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field

from penstock.contracts.envelope import MAX_FACT_DEPTH, YEARS, require_time, search, within
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.json import Json
from penstock.contracts.structs import (
    Instant,
    MalformedError,
    PositiveCount,
    PositiveSeconds,
    WireStruct,
    encode,
    tag_of,
)
from penstock.contracts.usage import MAX_USED, Reservation, RunLimits, Usage


class DefinitionKind(StrEnum):
    """What a run executes."""

    AGENT = "agent"
    WORKFLOW = "workflow"
    NETWORK = "network"


class StepKind(StrEnum):
    """Who executes a step; also the first token of its queue."""

    AGENT = "agent"
    TOOL = "tool"
    RUN = "run"
    """Done by the engine itself: a child run, a message to another run. No runner takes it."""


class Trigger(StrEnum):
    """What asked for a run."""

    HTTP = "http"
    WEBHOOK = "webhook"
    SCHEDULE = "schedule"
    CLI = "cli"
    SUBJECT = "subject"
    RUN = "run"
    FORK = "fork"


class RunStatus(StrEnum):
    """Where a run is; the last three are final."""

    CREATED = "created"
    RUNNING = "running"
    WAITING = "waiting"
    """No step is at work: the run waits for a signal, an answer, a time or a concurrency slot."""
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more can happen to the run."""
        return self in (RunStatus.DONE, RunStatus.FAILED, RunStatus.CANCELLED)


class Record(BaseModel):
    """Base of everything on the wire: frozen, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class ToolCall(WireStruct):
    """A model's wish to call a tool."""

    id: str
    name: str
    arguments: dict[str, Json] = {}


class ChatMessage(WireStruct):
    """One message of a conversation, in the shape that chat models share."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class ParentRef(WireStruct):
    """The step of another run that a run is the work of."""

    run_id: str
    shard: int
    step_id: str
    attempt: int
    root_run_id: str
    depth: PositiveCount
    """1 for the child of a run that has no parent."""


class ForkedFrom(WireStruct):
    """The run, and the place in its log, from which a fork continues."""

    run_id: str
    at_seq: int
    mode: Literal["fork", "retry", "replay"] = "fork"


class ImportedFrom(WireStruct):
    """The bundle from which a run was imported."""

    run_id: str
    """Id of the run in the installation that exported it."""
    tenant: str
    hash: str
    """The last hash of the bundle."""
    signed: bool = False
    """Whether the bundle had a valid signature by the key of the importing installation."""
    imported_by: str | None = None


class SeededStep(WireStruct):
    """The recorded outcome of a step, taken over from another run."""

    step_id: str
    kind: StepKind
    queue: str
    attempt: int
    node_id: str
    name: str
    output: Json = None
    status: Literal["succeeded", "failed"] = "succeeded"
    error: ErrorInfo | None = None
    started_at: Instant
    ended_at: Instant
    overridden: bool = False


class PendingRequest(WireStruct):
    """What an open node record asks of the world outside: an answer, a tool's result, an event."""

    name: str = ""
    """The tool of a call, the name of an awaited event."""
    arguments: Json = None
    """The exact arguments of the call."""
    digest: str = ""
    """SHA-256 of name and arguments; an answer must name it."""
    role: str | None = None
    """Who may answer."""
    message: str = ""
    correlation: str | None = None
    """The key by which an event finds the run."""
    node_id: str = ""


RecordKind = Literal[
    "agent",
    "tool",
    "transform",
    "branch",
    "parallel",
    "map",
    "loop",
    "wait",
    "approval",
    "client_tool",
    "resolution",
    "workflow",
    "send",
    "end",
    "phase",
]


class NodeRecord(WireStruct):
    """What the engine decided about one node of a plan, in one of its instances.

    ``record_id`` is the instance id (``{node}`` or ``{node}-x{i}``); with ``-a`` behind it for the
    approval of a call, with ``-r`` for the resolution of an unknown outcome; ``-main`` and the like
    for phases of the run. A later node record replaces an open one.
    """

    record_id: str
    kind: RecordKind
    status: Literal["open", "succeeded", "failed", "skipped"]
    output: Json = None
    error: ErrorInfo | None = None
    choice: str | None = None
    """The case that a branch takes."""
    count: int | None = None
    """Items of a map; iterations begun of a loop."""
    due_at: Instant | None = None
    """When time alone settles it."""
    request: PendingRequest | None = None
    """A request to a user or client outside Penstock."""


class SeededSignal(WireStruct):
    """A signal taken over from another run."""

    signal_id: str
    name: str
    payload: Json = None


class Seed(WireStruct):
    """Outcomes that a run takes over from another one when it begins."""

    steps: tuple[SeededStep, ...] = ()
    node_records: tuple[NodeRecord, ...] = ()
    signals: tuple[SeededSignal, ...] = ()
    spent: Usage = Usage()
    """What the source had cost; shown, not charged."""


class Fact(WireStruct):
    """Base of all facts."""

    occurred_at: Instant
    """When it happened, by its publisher's clock (UTC)."""

    def __post_init__(self) -> None:
        """Refuse a time that has no form in another zone.

        Raises:
            ValueError: It is at an edge of the calendar.
        """
        if self.occurred_at.year not in YEARS:
            require_time(self.occurred_at)


class RunInvoked(Fact, tag="run.invoked"):
    """A run is asked for."""

    name: str
    kind: DefinitionKind
    version: int
    plan_digest: str
    input: Json = None
    session_id: str | None = None
    history: tuple[ChatMessage, ...] = ()
    """The session's messages before this run, oldest first."""
    limits: RunLimits = RunLimits()
    trigger: Trigger = Trigger.HTTP
    request_digest: str | None = None
    """SHA-256 of the request body: another body under the same key is a conflict."""
    requested_by: str | None = None
    tags: dict[str, str] = {}
    parent: ParentRef | None = None
    seed: Seed | None = None
    forked_from: ForkedFrom | None = None
    imported: ImportedFrom | None = None
    """Set where the run, or one that it continues, was imported."""
    priority: Annotated[int, Meta(ge=-100, le=100), Field(ge=-100, le=100)] = 0
    """Higher goes first where runs queue for the same runners."""


class StepResult(Fact, tag="step.result"):
    """A runner's outcome of one attempt at a step."""

    kind: StepKind
    name: str
    """Agent or tool that ran."""
    status: Literal["succeeded", "failed", "unknown"]
    """``unknown``: an attempt that must not be repeated was lost; a user must decide."""
    output: Json = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    model: str | None = None
    runner_id: str = ""
    started_at: Instant
    deltas: int = 0
    """How many pieces of text the attempt emitted."""

    def __post_init__(self) -> None:
        """Refuse times that have no form in another zone, and a usage that no step can have.

        Raises:
            ValueError: A time is at an edge of the calendar, or `usage` exceeds ``MAX_USED``.
        """
        if self.occurred_at.year not in YEARS or self.started_at.year not in YEARS:
            require_time(self.occurred_at)
            require_time(self.started_at)
        if self.usage is not None and max(msgspec.structs.astuple(self.usage)) > MAX_USED:
            raise ValueError(f"`usage` is more than {MAX_USED}")


SignalKind = Literal[
    "event", "message", "approval", "tool_result", "resolution", "pause", "resume", "admitted"
]
"""What a signal is: news for the run, the answer to an open node record, or control of the run."""


class SignalReceived(Fact, tag="run.signalled"):
    """Something from outside reached a run."""

    name: str
    payload: Json = None
    kind: SignalKind = "event"
    target: str = ""
    """The node record that it answers, where it answers one."""
    sent_by: str | None = None
    from_run: str | None = None
    """The run that sent it, where a run did."""


class CancelRequested(Fact, tag="run.cancel_requested"):
    """A request to stop the run."""

    reason: str = ""
    requested_by: str | None = None


class BlockedCall(WireStruct):
    """A tool call that the plan does not allow; the model gets the reason, nothing runs."""

    step_id: str
    tool: str
    reason: str


class Wait(WireStruct):
    """A step waits for its next attempt."""

    timer_id: str
    step_id: str
    next_attempt: int
    due_at: Instant


class Decision(WireStruct):
    """Stands in the first message of a decision.

    ``cause_seq`` is the stream sequence of the input that led to it (0: time alone). ``manifest``
    lists the suffixes of all its other messages, so that any engine can publish a missing one.
    """

    cause_seq: int
    manifest: tuple[str, ...] = ()
    blocked: tuple[BlockedCall, ...] = ()
    node_records: tuple[NodeRecord, ...] = ()
    waits: tuple[Wait, ...] = ()
    """Steps that wait for their next attempt."""
    stops: tuple[str, ...] = ()
    """Steps whose outcome has no effect any more."""
    reserves: dict[str, Reservation] = {}
    """What the steps of the manifest have reserved, those that have."""
    work: int = 0
    """Work of the run's expressions so far, in units; 0: no more than in earlier decisions."""


class SecretRef(WireStruct):
    """A secret by its name; only the runner knows the value."""

    secret: str


class StepScheduled(Fact, tag="step.scheduled"):
    """Decision *n* schedules one attempt at a step."""

    decision: Decision | None = None
    node_id: str
    name: str
    """Agent or tool to run."""
    input: Json = None
    """For a tool its arguments, for an agent ``{"messages": [...]}``."""
    config: Json = None
    """What the runner must know beyond the input: an agent's model, an HTTP tool's request."""
    expires_at: Instant
    """A runner must not start it after this, and stops it then."""
    secrets: dict[str, tuple[str | SecretRef, ...]] = {}
    """Where the runner fills secrets in: JSON pointer into ``{"input": ..., "config": ...}`` to
    the pieces of the string there."""
    reserve: Reservation | None = None
    at_most_once: bool = False
    """A lost attempt is reported as ``unknown`` instead of being made again."""
    heartbeat_seconds: PositiveSeconds | None = None
    """The runner fails the attempt if its handler shows no progress for so long."""


class StateChanged(Fact, tag="run.state"):
    """Decision *n* schedules nothing, but the run's state is another."""

    decision: Decision


class RunEnded(Fact, tag="run.ended"):
    """Decision *n* ends the run."""

    decision: Decision
    status: RunStatus
    """Final: done, failed or cancelled."""
    output: Json = None
    error: ErrorInfo | None = None
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        """Refuse a status that is not final, and a time at an edge of the calendar.

        Raises:
            ValueError: The run would still be open, or the time has no form in another zone.
        """
        if self.occurred_at.year not in YEARS:
            require_time(self.occurred_at)
        if not self.status.final:
            raise ValueError(f"`status` of an ended run is {self.status.value!r}, not a final one")


RunFact = (
    RunInvoked
    | StepResult
    | SignalReceived
    | CancelRequested
    | StepScheduled
    | StateChanged
    | RunEnded
)

_READER: Final[msgspec.json.Decoder[RunFact]] = msgspec.json.Decoder(RunFact)


def read_fact(body: bytes | str) -> RunFact:
    """Read a fact from JSON.

    Raises:
        MalformedError: It is no fact, or outside of the envelope; the message names the path.
    """
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    try:
        fact = _READER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(str(error)) from error
    if not within(body, MAX_FACT_DEPTH):
        search(msgspec.json.decode(body), MAX_FACT_DEPTH)
    return fact


def fact_bytes(fact: RunFact) -> bytes:
    """Return a fact as JSON.

    Raises:
        MalformedError: It is outside of the envelope; the message names the path.
    """
    body = encode(fact)
    if not within(body, MAX_FACT_DEPTH):
        search(msgspec.json.decode(body), MAX_FACT_DEPTH)
    return body


def fact_type(fact: RunFact) -> str:
    """Return the ``type`` of a fact in its JSON."""
    return tag_of(type(fact)) or ""
