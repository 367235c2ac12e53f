"""What clients send, checked strictly: unknown fields are refused with their path."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
)

from penstock.contracts.ids import Token

Tag = Annotated[str, StringConstraints(max_length=200)]


class Input(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Input):
    """Limits of one run; what is not given comes from the definition."""

    timeout_seconds: float | None = Field(default=None, gt=0, le=31_536_000)
    max_turns: int | None = Field(default=None, ge=1, le=1000)


class ExecuteDefinition(Input):
    """Start a run of the definition that the path names."""

    input: JsonValue = None
    session_id: Token | None = None
    """Runs of one session share a conversation."""
    limits: Limits = Limits()
    tags: dict[Tag, Tag] = Field(default_factory=dict, max_length=32)


class StartRun(ExecuteDefinition):
    """Start a run of a published agent or workflow."""

    name: Token


class Invoke(Input):
    """The older form of starting a run: ``POST /invoke``."""

    name: Token
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

    reason: Annotated[str, StringConstraints(max_length=1000)] = ""


START_RUN: Final[TypeAdapter[StartRun]] = TypeAdapter(StartRun)
EXECUTE_DEFINITION: Final[TypeAdapter[ExecuteDefinition]] = TypeAdapter(ExecuteDefinition)
INVOKE: Final[TypeAdapter[Invoke]] = TypeAdapter(Invoke)
INTERNAL_INVOKE: Final[TypeAdapter[InternalInvoke]] = TypeAdapter(InternalInvoke)
GENERIC_WEBHOOK: Final[TypeAdapter[GenericWebhook]] = TypeAdapter(GenericWebhook)
CANCEL_RUN: Final[TypeAdapter[CancelRun]] = TypeAdapter(CancelRun)
