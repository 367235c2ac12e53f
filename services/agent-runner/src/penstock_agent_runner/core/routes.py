"""Routes as models see them: a tool for each agent to whom the conversation may be handed over."""

from __future__ import annotations

import hashlib
from typing import Final

from penstock.contracts.actions import RouteToAgent
from penstock.contracts.facts import ToolCall
from penstock_agent_runner.core.turn import AgentConfig, RouteSpec, ToolSpec

PREFIX: Final = "transfer_to_"
LONGEST: Final = 64
"""Characters that providers take in the name of a tool."""


def route_tool_name(agent: str) -> str:
    """Return the name of the tool that hands over to ``agent``; a long one ends in a digest."""
    name = PREFIX + agent
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}_{hashlib.sha256(agent.encode()).hexdigest()[:8]}"


def route_tools(routes: tuple[RouteSpec, ...]) -> tuple[ToolSpec, ...]:
    """Return the tools that stand for routes."""
    return tuple(
        ToolSpec(
            name=route_tool_name(route.agent),
            description=f"Hand the conversation over to {route.agent}. {route.description}".strip(),
            parameters={
                "type": "object",
                "properties": {
                    "message": {
                        "type": "string",
                        "description": "What the other agent is to know and to do.",
                    }
                },
                "required": ["message"],
            },
        )
        for route in routes
    )


def instructions_of(config: AgentConfig) -> str:
    """Return the model's instructions, including that it must not answer itself, where so."""
    if config.can_respond:
        return config.instructions
    names = ", ".join(route_tool_name(route.agent) for route in config.routes)
    advice = (
        "You cannot answer the user yourself: every turn must end with a call of a tool. "
        f"To hand the conversation over, call one of: {names}."
    )
    return f"{config.instructions}\n\n{advice}" if config.instructions else advice


def split_route(
    config: AgentConfig, calls: tuple[ToolCall, ...], text: str
) -> tuple[tuple[ToolCall, ...], RouteToAgent | None]:
    """Separate tool calls from the request to hand over; the first such wish counts.

    A call that has the form of a route and is none of the agent's tools is taken for one: whether
    there is such an agent is for the engine to say.
    """
    if not config.routes:
        return calls, None
    agents = {route_tool_name(route.agent): route.agent for route in config.routes}
    equipped = {tool.name for tool in config.tools}
    others: list[ToolCall] = []
    found: RouteToAgent | None = None
    for call in calls:
        agent = agents.get(call.name)
        if agent is None and call.name.startswith(PREFIX) and call.name not in equipped:
            agent = call.name.removeprefix(PREFIX)
        if not agent:
            others.append(call)
        elif found is None:
            message = call.arguments.get("message")
            found = RouteToAgent(
                agent=agent, message=message if isinstance(message, str) else "", text=text
            )
    return tuple(others), found
