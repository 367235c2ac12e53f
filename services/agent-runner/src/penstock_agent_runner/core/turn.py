"""One turn of an agent: what it is asked with, and what it answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from penstock.contracts.actions import Action, Respond, RouteToAgent, UseTools
from penstock.contracts.errors import RejectedError, TransientError, finding
from penstock.contracts.facts import ChatMessage, ToolCall
from penstock.contracts.json import Json, JsonObject
from penstock.contracts.usage import Usage

SCRIPTED: Final = "scripted/"


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ToolSpec(_Read):
    """A tool as it is described to a model."""

    name: str
    description: str = ""
    parameters: JsonObject = {"type": "object", "properties": {}}


class RouteSpec(_Read):
    """Another agent of the network, to whom the conversation may be handed over."""

    agent: str
    description: str = ""


class AgentConfig(_Read):
    """The config of an ``agent`` step."""

    model: str = ""
    instructions: str = ""
    parameters: JsonObject = {}
    stream: bool = True
    script: Json = None
    endpoint: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    session_id: str | None = None
    routes: tuple[RouteSpec, ...] = ()
    can_respond: bool = True
    """Whether its answer may end the conversation, or it has to hand it over."""
    turn: int | None = None
    """Which turn this is, of all agents that share the conversation, from 1."""
    own_turn: int | None = None
    """Which turn of this agent it is, from 1."""


class TurnInput(_Read):
    """The input of an ``agent`` step."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a model answered."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    model: str | None = None
    output: Json = None
    route: RouteToAgent | None = None
    """To whom the conversation is handed over."""

    def action(self) -> Action:
        """Return the answer as the step's output; who calls tools hands over only afterwards."""
        if self.route is not None and not self.calls:
            return self.route
        if self.calls:
            return UseTools(text=self.text, calls=self.calls)
        return Respond(text=self.text, output=self.output)


_CONFIG: Final = TypeAdapter(AgentConfig)


def read_config(config: Json) -> AgentConfig:
    """Read a step's config.

    Raises:
        RejectedError: ``invalid_agent``.
    """
    try:
        read = _CONFIG.validate_python(config)
    except ValidationError as error:
        details = tuple(
            finding(".".join(map(str, found["loc"])), found["msg"])
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise RejectedError(
            "invalid_agent", f"the agent's config: {details[0].message}", details=details
        ) from error
    if not read.model and read.endpoint is None:
        raise RejectedError("invalid_agent", "the agent has neither a model nor an endpoint")
    return read


def last_user_index(messages: tuple[ChatMessage, ...]) -> int:
    """Return the index of the last message of the user; -1 if there is none."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return index
    return -1


def chat_messages(instructions: str, messages: tuple[ChatMessage, ...]) -> list[Json]:
    """Return the conversation in the shape of OpenAI's chat completions."""
    found: list[Json] = []
    if instructions:
        found.append({"role": "system", "content": instructions})
    for message in messages:
        entry: JsonObject = {"role": message.role, "content": message.content}
        if message.tool_calls:
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": json.dumps(call.arguments, ensure_ascii=False),
                    },
                }
                for call in message.tool_calls
            ]
            entry["content"] = message.content or None
        if message.tool_call_id is not None:
            entry["tool_call_id"] = message.tool_call_id
        found.append(entry)
    return found


def chat_tools(tools: tuple[ToolSpec, ...]) -> list[Json]:
    """Return the tools in the shape of OpenAI's chat completions."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in tools
    ]


class CallCollector:
    """Puts tool calls together from the pieces in which a stream brings them."""

    def __init__(self) -> None:
        self._parts: dict[int, list[str]] = {}
        self._ids: dict[int, str] = {}
        self._names: dict[int, str] = {}

    def add(
        self, index: int, *, call_id: str | None, name: str | None, arguments: str | None
    ) -> None:
        """Add one piece of the call at ``index``."""
        parts = self._parts.setdefault(index, [])
        if call_id:
            self._ids[index] = call_id
        if name:
            self._names[index] = self._names.get(index, "") + name
        if arguments:
            parts.append(arguments)

    def calls(self) -> tuple[ToolCall, ...]:
        """Return the complete calls, in order.

        Raises:
            TransientError: ``invalid_tool_call``: the model wrote no valid call; it may next time.
        """
        return tuple(self._call(index) for index in sorted(self._parts))

    def _call(self, index: int) -> ToolCall:
        name = self._names.get(index, "")
        text = "".join(self._parts[index]).strip()
        try:
            arguments = json.loads(text) if text else {}
        except ValueError as error:
            raise TransientError(
                "invalid_tool_call", f"the model's arguments for {name!r} are no JSON: {error}"
            ) from error
        if not name or not isinstance(arguments, dict):
            raise TransientError(
                "invalid_tool_call", f"the model's call of {name!r} has no object of arguments"
            )
        return ToolCall(id=self._ids.get(index) or f"call_{index}", name=name, arguments=arguments)

    def raw(self) -> str:
        """Return all arguments as written, to count their tokens."""
        return "".join("".join(parts) for parts in self._parts.values())
