"""Scripts: turns of a scripted model, which needs no provider and always answers the same."""

from __future__ import annotations

from pydantic import Field

from penstock.contracts.errors import ErrorFamily
from penstock.contracts.ids import Token
from penstock_registry.core.parts import Part, WrittenObject


class ScriptedCall(Part):
    """A tool call that a scripted turn makes."""

    name: Token
    arguments: WrittenObject = {}
    id: str | None = None


class ScriptedError(Part):
    """The error that a scripted turn fails with."""

    code: Token = "scripted_error"
    family: ErrorFamily = ErrorFamily.TRANSIENT
    message: str = "the script says so"
    retry_after_seconds: float | None = Field(default=None, ge=0)
    attempts: int | None = Field(default=None, ge=1)
    """Fail only the first so many attempts; all of them if not given."""


class ScriptedRoute(Part):
    """The agent that a scripted turn hands the conversation to."""

    agent: Token
    message: str = ""
    """Its input; the turn's text where not given."""


class ScriptedTurn(Part):
    """What a scripted model answers in one turn."""

    text: str = ""
    deltas: tuple[str, ...] | None = None
    """Pieces in which the text is streamed; by words where not given."""
    tool_calls: tuple[ScriptedCall, ...] = ()
    delay_seconds: float = Field(default=0.0, ge=0, le=3600)
    route: ScriptedRoute | None = None
    """Hands the conversation to another agent of the network."""
    error: ScriptedError | None = None


class Script(Part):
    """The turns of a scripted model, which needs no provider and always answers the same."""

    turns: tuple[ScriptedTurn, ...] = Field(min_length=1)
