"""What an agent's turn ends with: the output of an ``agent`` step."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from penstock.contracts.facts import Record, ToolCall
from penstock.contracts.json import Json


class Respond(Record):
    """The agent is done."""

    action: Literal["respond"] = "respond"
    text: str = ""
    output: Json = None
    """Structured output, where the agent has one beside its text."""


class UseTools(Record):
    """The agent wants tools called, all of them, before its next turn."""

    action: Literal["use_tools"] = "use_tools"
    text: str = ""
    calls: tuple[ToolCall, ...] = Field(min_length=1)


class RouteToAgent(Record):
    """The agent hands the conversation over to another one of its network."""

    action: Literal["route_to_agent"] = "route_to_agent"
    agent: str
    message: str = ""
    """Text of the message to the other agent."""
    text: str = ""


Action = Respond | UseTools | RouteToAgent

ACTION: Final[TypeAdapter[Action]] = TypeAdapter(Annotated[Action, Field(discriminator="action")])
"""Reads and writes any action."""
