"""The scripted model: turns written down beforehand, the same every time, without a network.

Turn *i* is the agent's own turn *i* in the run; where the step does not say which that is, as many
turns are over as there are messages of the assistant since the last one of the user. After the
last turn the last one is taken again if it ends the conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from penstock.contracts.actions import RouteToAgent
from penstock.contracts.errors import (
    ErrorFamily,
    ErrorInfo,
    RejectedError,
    error_from,
    finding,
)
from penstock.contracts.facts import ChatMessage, ToolCall
from penstock.contracts.json import Json, JsonObject
from penstock.contracts.usage import Usage
from penstock.expressions.templates import render
from penstock_agent_runner.core.turn import Turn, last_user_index

_WORDS: Final = re.compile(r"\S+\s*|\s+")


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ScriptedCall(_Read):
    """A tool call; arguments are templates."""

    name: str
    arguments: JsonObject = {}
    id: str | None = None


class ScriptedRoute(_Read):
    """The conversation is handed over; the message is a template."""

    agent: str
    message: str = ""


class ScriptedError(_Read):
    """A failure instead of an answer."""

    code: str = "scripted_error"
    message: str = "the script says so"
    family: ErrorFamily = ErrorFamily.TRANSIENT
    retry_after_seconds: float | None = None
    attempts: int | None = Field(default=None, ge=1)
    """Fail only the first so many attempts; all of them if not given."""


class ScriptedTurn(_Read):
    """One turn; texts are templates over ``input`` and ``tools``."""

    text: str = ""
    deltas: tuple[str, ...] | None = None
    tool_calls: tuple[ScriptedCall, ...] = ()
    route: ScriptedRoute | None = None
    delay_seconds: float = Field(default=0.0, ge=0)
    error: ScriptedError | None = None


class Script(_Read):
    """All turns."""

    turns: tuple[ScriptedTurn, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Performance:
    """Actions of a scripted turn: wait, emit the pieces meanwhile, then answer or fail."""

    pieces: tuple[str, ...]
    delay_seconds: float
    turn: Turn
    error: ScriptedError | None


_SCRIPT: Final[TypeAdapter[Script]] = TypeAdapter(Script)
_ECHO: Final = Script(turns=(ScriptedTurn(text="{{ input }}"),))


def read_script(script: Json) -> Script:
    """Read an agent's script; without one the model repeats its input.

    Raises:
        RejectedError: ``invalid_script``.
    """
    if script is None:
        return _ECHO
    try:
        return _SCRIPT.validate_python(script)
    except ValidationError as error:
        details = tuple(
            finding(".".join(("script", *map(str, found["loc"]))), found["msg"])
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise RejectedError(
            "invalid_script", f"{details[0].path}: {details[0].message}", details=details
        ) from error


def perform(
    script: Script, model: str, messages: tuple[ChatMessage, ...], own_turn: int | None = None
) -> Performance:
    """Return what the script says to a conversation.

    Args:
        script: All turns of the agent.
        model: Its model's name.
        messages: The conversation so far.
        own_turn: Which turn of the agent is asked for, from 1; counted if not given.

    Raises:
        RejectedError: ``script_ended``, or a template that cannot be rendered.
    """
    start = last_user_index(messages)
    since = messages[start + 1 :]
    if own_turn is not None:
        number = own_turn - 1
    else:
        number = sum(message.role == "assistant" for message in since)
    turns = script.turns
    if number >= len(turns) and (turns[-1].tool_calls or turns[-1].route is not None):
        raise RejectedError("script_ended", f"the script has {len(turns)} turns, this is another")
    turn = turns[min(number, len(turns) - 1)]
    message = messages[start].content if start >= 0 else ""
    scope: JsonObject = {
        "input": _value(message),
        "tools": [_value(message.content) for message in since if message.role == "tool"],
    }
    if turn.deltas is None:
        text = _rendered(turn.text, scope)
        pieces = tuple(_WORDS.findall(text))
    else:
        pieces = tuple(_rendered(piece, scope) if "{{" in piece else piece for piece in turn.deltas)
        text = _rendered(turn.text, scope) if turn.text else "".join(pieces)
    calls = tuple(
        ToolCall(
            id=call.id or f"call_{number + 1}_{index}",
            name=call.name,
            arguments=_arguments(call.arguments, scope),
        )
        for index, call in enumerate(turn.tool_calls)
    )
    route = None
    if turn.route is not None:
        route = RouteToAgent(
            agent=turn.route.agent, message=_rendered(turn.route.message, scope), text=text
        )
    usage = Usage(
        input_tokens=sum(len(message.content.split()) for message in messages),
        output_tokens=len(pieces),
        model_calls=1,
    )
    return Performance(
        pieces=pieces,
        delay_seconds=turn.delay_seconds,
        turn=Turn(text=text, calls=calls, usage=usage, model=model, route=route),
        error=turn.error,
    )


def failure(error: ScriptedError) -> Exception:
    """Return the scripted error as an exception of its family."""
    return error_from(
        ErrorInfo(
            code=error.code,
            message=error.message,
            family=error.family,
            retry_after_seconds=error.retry_after_seconds,
        )
    )


def _rendered(template: str, scope: Mapping[str, Json]) -> str:
    value = render(template, scope)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arguments(template: JsonObject, scope: Mapping[str, Json]) -> JsonObject:
    return {key: render(value, scope) for key, value in template.items()}


def _value(content: str) -> Json:
    """Return the content of a message: objects, lists and tools' numbers as such, else text."""
    if content[:1] in ("{", "[") or content[:1].isdigit() or content[:1] == "-":
        try:
            value: Json = json.loads(content)
        except ValueError:
            return content
        return value
    return content
