"""Facts: what can be said of a run, one message each, once only.

All facts form one union, told apart by ``type``. Readers ignore fields that they do not know;
changes are additive, anything else is a new type. The coordinates of a fact (tenant, run, step,
attempt, decision) are in its subject, not in its body.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.json import Json


class DefinitionKind(StrEnum):
    """What a run executes."""

    AGENT = "agent"
    WORKFLOW = "workflow"


class StepKind(StrEnum):
    """What a step needs a runner for; also the first token of its queue."""

    AGENT = "agent"
    TOOL = "tool"


class Trigger(StrEnum):
    """What asked for a run."""

    HTTP = "http"
    WEBHOOK = "webhook"
    SCHEDULE = "schedule"
    CLI = "cli"
    SUBJECT = "subject"
    RUN = "run"


class RunStatus(StrEnum):
    """Where a run is; the last three are final."""

    CREATED = "created"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more can happen to the run."""
        return self in (RunStatus.DONE, RunStatus.FAILED, RunStatus.CANCELLED)


class Record(BaseModel):
    """Base of everything on the wire: frozen, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ToolCall(Record):
    """A model's wish to call a tool."""

    id: str
    name: str
    arguments: dict[str, Json] = {}


class ChatMessage(Record):
    """One message of a conversation, in the shape that chat models share."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Usage(Record):
    """What model calls cost.

    ``cost_usd`` is the sum of the known prices; ``unknown_price`` says that at least one call
    had no known price, so that the sum is a lower bound.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unknown_price: bool = False
    model_calls: int = 0

    def plus(self, other: Usage) -> Usage:
        """Return the sum of both."""
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
            unknown_price=self.unknown_price or other.unknown_price,
            model_calls=self.model_calls + other.model_calls,
        )


class RunLimits(Record):
    """Limits of one run; what is not given comes from the plan."""

    timeout_seconds: float | None = Field(default=None, gt=0)
    max_turns: int | None = Field(default=None, ge=1)


class Fact(Record):
    """Base of all facts."""

    occurred_at: AwareDatetime
    """When it happened, by the clock of whoever states it (UTC)."""


class RunInvoked(Fact):
    """A run is asked for."""

    type: Literal["run.invoked"] = "run.invoked"
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
    """SHA-256 of the request body, to tell a repeated request from another under the same key."""
    requested_by: str | None = None
    tags: dict[str, str] = {}


class StepResult(Fact):
    """A runner's outcome of one attempt at a step."""

    type: Literal["step.result"] = "step.result"
    kind: StepKind
    name: str
    """Agent or tool that ran."""
    status: Literal["succeeded", "failed"]
    output: Json = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    model: str | None = None
    runner_id: str = ""
    started_at: AwareDatetime
    deltas: int = 0
    """How many pieces of text the attempt emitted."""


class SignalReceived(Fact):
    """Something from outside reached a run."""

    type: Literal["run.signalled"] = "run.signalled"
    name: str
    payload: Json = None


class CancelRequested(Fact):
    """Somebody wants the run to stop."""

    type: Literal["run.cancel_requested"] = "run.cancel_requested"
    reason: str = ""
    requested_by: str | None = None


class BlockedCall(Record):
    """A tool call that the plan does not allow; the model is told, nothing runs."""

    step_id: str
    tool: str
    reason: str


class Decision(Record):
    """Stands in the first message of a decision.

    ``cause_seq`` is the stream sequence of the input that led to it (0: time alone). ``manifest``
    lists the suffixes of all its other messages, so that whoever finds one missing can publish it.
    """

    cause_seq: int
    manifest: tuple[str, ...] = ()
    blocked: tuple[BlockedCall, ...] = ()


class StepScheduled(Fact):
    """Decision *n* schedules one attempt at a step."""

    type: Literal["step.scheduled"] = "step.scheduled"
    decision: Decision | None = None
    node_id: str
    name: str
    """Agent or tool to run."""
    input: Json = None
    """For a tool its arguments, for an agent ``{"messages": [...]}``."""
    config: Json = None
    """What the runner must know beyond the input: an agent's model, an HTTP tool's request."""
    expires_at: AwareDatetime
    """A runner must not start it after this, and stops it then."""


class Wait(Record):
    """A step waits for its next attempt."""

    timer_id: str
    step_id: str
    next_attempt: int
    due_at: AwareDatetime


class StateChanged(Fact):
    """Decision *n* schedules nothing, but something is now being waited for."""

    type: Literal["run.state"] = "run.state"
    decision: Decision
    waits: tuple[Wait, ...] = ()


class RunEnded(Fact):
    """Decision *n* ends the run."""

    type: Literal["run.ended"] = "run.ended"
    decision: Decision
    status: Literal[RunStatus.DONE, RunStatus.FAILED, RunStatus.CANCELLED]
    output: Json = None
    error: ErrorInfo | None = None
    usage: Usage = Usage()


RunFact = (
    RunInvoked
    | StepResult
    | SignalReceived
    | CancelRequested
    | StepScheduled
    | StateChanged
    | RunEnded
)

FACT: Final[TypeAdapter[RunFact]] = TypeAdapter(Annotated[RunFact, Field(discriminator="type")])
"""Reads and writes any fact."""

read_fact: Final = FACT.validator.validate_json
"""Read a fact from JSON; raises ``ValueError`` if it is none."""


def fact_bytes(fact: RunFact) -> bytes:
    """Return a fact as JSON: what ``FACT.dump_json`` gives, without its detours."""
    return fact.__pydantic_serializer__.to_json(fact)


class Claim(Record):
    """Stands in a message whose body was too large; the body is an object named by its digest."""

    type: Literal["claim"] = "claim"
    sha256: str
    size_bytes: int
    media_type: str = "application/json"


class TimerDue(Record):
    """A timer has come due. It only wakes the run up: the log says what is to be done."""

    type: Literal["timer.due"] = "timer.due"
    due_at: AwareDatetime


class DeltaBatch(Record):
    """Pieces of text that a step emitted, in order, sent together.

    ``first`` is the index of the first piece among all of the attempt (from 0).
    """

    type: Literal["delta"] = "delta"
    first: int
    texts: tuple[str, ...]


class DeadLetter(Record):
    """A message that was given up on, with the reason."""

    type: Literal["dead"] = "dead"
    stream: str
    stream_seq: int
    subject: str
    consumer: str
    deliveries: int
    error: ErrorInfo
    body: str
    """The first 64 KiB of the message's body as text (undecodable bytes replaced)."""
    occurred_at: AwareDatetime


class LogEntry(Record):
    """A fact with its place in the log, as exports, pages and the archive carry it."""

    seq: int
    subject: str
    fact: RunFact = Field(discriminator="type")
