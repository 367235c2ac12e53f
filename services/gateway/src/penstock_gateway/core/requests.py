"""What clients send, checked strictly: unknown fields are refused with their path."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StringConstraints,
    TypeAdapter,
)

from penstock.contracts.envelope import BoundedTime, StorableText
from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.facts import RunStatus
from penstock.contracts.ids import Token

_SELECTOR: Final = r"^[A-Za-z0-9_-]{1,64}(@[A-Za-z0-9_-]{1,64})?$"
_NAMED: Final = re.compile(_SELECTOR)

Tag = Annotated[StorableText, StringConstraints(max_length=200)]
Reason = Annotated[str, StringConstraints(max_length=1000)]
EventName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Selector = Annotated[str, StringConstraints(pattern=_SELECTOR)]
"""A name, or ``name@version`` or ``name@alias``."""


class Input(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Input):
    """Limits of one run; absent ones come from the definition."""

    timeout_seconds: float | None = Field(default=None, gt=0, le=31_536_000)
    max_turns: int | None = Field(default=None, ge=1, le=1000)
    max_steps: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_cost_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_depth: int | None = Field(default=None, ge=0, le=32)
    max_fan_out: int | None = Field(default=None, ge=1, le=10_000)


class ExecuteDefinition(Input):
    """Start a run of the definition that the path names."""

    input: JsonValue = None
    session_id: Token | None = None
    """Runs of one session share a conversation."""
    limits: Limits = Limits()
    tags: dict[Tag, Tag] = Field(default_factory=dict, max_length=32)
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher goes first where runs queue for the same runners."""


class StartRun(ExecuteDefinition):
    """Start a run of a published agent, workflow or network."""

    name: Selector


class Invoke(Input):
    """The older form of starting a run: ``POST /invoke``."""

    name: Selector
    input: JsonValue = None
    session_id: Token | None = None
    run_config: Limits = Limits()


class InputMessage(Input):
    """One message of a conversation."""

    role: Annotated[str, StringConstraints(pattern="^(user|system|assistant)$")] = "user"
    content: str


class InternalInvoke(Input):
    """The older form of starting a run in a session: ``POST /internal/invoke``."""

    session_id: Token
    agent_id: Token
    input_message: InputMessage


class GenericWebhook(Input):
    """A delivery that names what it starts: ``POST /webhooks/generic``."""

    workflow_name: Token
    inputs: JsonValue = None
    webhook_id: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    """The delivery's id, where no header has it."""


class CancelRun(Input):
    """Why a run is to stop."""

    reason: Reason = ""


class CancelRuns(Input):
    """Filters of the runs to cancel; all given filters must match."""

    status: tuple[RunStatus, ...] = ()
    """Any of these, of which none is final; none given means all that have not ended."""
    name: Token | None = None
    session_id: Token | None = None
    tag: dict[Tag, Tag] = Field(default_factory=dict, max_length=32)
    created_before: BoundedTime | None = None
    limit: int = Field(default=1000, ge=1, le=10_000)
    dry_run: StrictBool = False
    """Say only which runs would be asked."""
    reason: Reason = ""


class Control(Input):
    """Body of a request to pause or resume a run or to cancel a step: its reason."""

    reason: Reason = ""


class Signal(Input):
    """An event for one run."""

    name: EventName
    payload: JsonValue = None


class CorrelatedSignal(Signal):
    """An event for whichever runs wait for its correlation key."""

    correlation: Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class RunMessage(Signal):
    """A message for one run, or for the latest run of a session."""

    from_run: Annotated[str, StringConstraints(max_length=64)] | None = None
    """The run that sends it, where one does."""


class Verdict(Input):
    """A yes or no to an approval."""

    digest: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Of what exactly; refused if something else is asked."""
    reason: Reason = ""


class ToolFailure(Input):
    """Why a client tool failed."""

    code: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")] = "tool_failed"
    message: Annotated[str, StringConstraints(max_length=4000)] = ""


class ToolResult(Input):
    """What a client tool returned for one call."""

    step_id: Token
    status: Literal["succeeded", "failed"] = "succeeded"
    output: JsonValue = None
    error: ToolFailure | None = None


class ToolResults(Input):
    """What client tools returned."""

    results: tuple[ToolResult, ...] = Field(min_length=1, max_length=100)


class Resolution(Input):
    """Resolution of a lost attempt."""

    action: Literal["retry", "succeed", "fail"]
    output: JsonValue = None
    """Of the step, with ``succeed``."""
    digest: Annotated[str, StringConstraints(max_length=64)] | None = None
    reason: Reason = ""


def named(text: str, *, path: str) -> tuple[str, str | None]:
    """Take apart ``name`` or ``name@selector``.

    Raises:
        RejectedError: ``invalid_token``.
    """
    if not _NAMED.fullmatch(text):
        raise RejectedError(
            "invalid_token",
            f"{path} must be a name, or name@version or name@alias",
            details=(finding(path, f"got {text[:80]!r}", _SELECTOR),),
        )
    name, at, selector = text.partition("@")
    return name, selector if at else None


START_RUN: Final[TypeAdapter[StartRun]] = TypeAdapter(StartRun)
EXECUTE_DEFINITION: Final[TypeAdapter[ExecuteDefinition]] = TypeAdapter(ExecuteDefinition)
INVOKE: Final[TypeAdapter[Invoke]] = TypeAdapter(Invoke)
INTERNAL_INVOKE: Final[TypeAdapter[InternalInvoke]] = TypeAdapter(InternalInvoke)
GENERIC_WEBHOOK: Final[TypeAdapter[GenericWebhook]] = TypeAdapter(GenericWebhook)
CANCEL_RUN: Final[TypeAdapter[CancelRun]] = TypeAdapter(CancelRun)
