"""How the fact that schedules a step is made: the same state gives the same bytes."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from pydantic import JsonValue

from penstock.contracts import subjects
from penstock.contracts.actions import UseTools
from penstock.contracts.errors import ErrorDetail, InvariantError, RejectedError
from penstock.contracts.facts import ChatMessage, ToolCall
from penstock.contracts.ids import call_step_id, turn_step_id
from penstock.contracts.plan import CompiledAgent, CompiledTool, Node, Plan
from penstock.contracts.state import RunState
from penstock.contracts.templates import render
from penstock_orchestrator.core import nodes
from penstock_orchestrator.core.decisions import Planned
from penstock_orchestrator.core.scope import scope_of


def tool_node(plan: Plan, state: RunState, node: Node, attempt: int, now: datetime) -> Planned:
    """Schedule a tool node.

    Raises:
        RejectedError: Its input template cannot be rendered, or gives no object.
    """
    given = render(node.input, scope_of(plan, state)) if node.input is not None else {}
    if not isinstance(given, dict):
        raise RejectedError(
            "invalid_input",
            f"the input of step {node.id} must be an object",
            details=(ErrorDetail(path=f"{node.id}.input", message=f"got {given!r}"[:200]),),
        )
    tool = plan.tools[node.ref]
    return _tool_step(plan, state, node, tool, node.id, given, attempt, now)


def tool_call(
    plan: Plan,
    state: RunState,
    node: Node,
    step_id: str,
    call: ToolCall,
    attempt: int,
    now: datetime,
) -> Planned:
    """Schedule a tool call that an agent's turn asked for; the tool must be equipped."""
    tool = plan.tools[call.name]
    return _tool_step(plan, state, node, tool, step_id, call.arguments, attempt, now)


def _tool_step(
    plan: Plan,
    state: RunState,
    node: Node,
    tool: CompiledTool,
    step_id: str,
    given: dict[str, JsonValue],
    attempt: int,
    now: datetime,
) -> Planned:
    own = node.timeout_seconds if node.kind == "tool" else None
    return Planned(
        suffix=subjects.step_suffix("tool", tool.queue, step_id, attempt),
        node_id=node.id,
        name=tool.name,
        input=_arguments(plan, state, tool, given) if tool.sources else given,
        config=tool.config,
        at=now,
        expires_at=now + timedelta(seconds=own or tool.timeout_seconds),
    )


def _arguments(
    plan: Plan, state: RunState, tool: CompiledTool, given: dict[str, JsonValue]
) -> dict[str, JsonValue]:
    """Apply the parameters' sources: system values win, defaults fill in."""
    arguments = dict(given)
    scope = scope_of(plan, state)
    for name, parameter in tool.sources.items():
        if parameter.source == "system" or (
            parameter.source == "default" and name not in arguments
        ):
            arguments[name] = render(parameter.value, scope)
    return arguments


def agent_turn(
    plan: Plan, state: RunState, node: Node, turn: int, attempt: int, now: datetime
) -> Planned:
    """Schedule a turn of an agent node.

    Raises:
        RejectedError: A template cannot be rendered.
    """
    agent = plan.agents[node.ref]
    scope = scope_of(plan, state)
    messages = _messages(plan, state, node, turn, render(node.input, scope))
    timeout = node.timeout_seconds or agent.timeout_seconds
    return Planned(
        suffix=subjects.step_suffix("agent", agent.queue, turn_step_id(node.id, turn), attempt),
        node_id=node.id,
        name=agent.name,
        input={"messages": [message.model_dump(mode="json") for message in messages]},
        config={
            "model": agent.model,
            "instructions": render(agent.instructions, scope),
            "parameters": agent.parameters,
            "stream": agent.stream,
            "script": agent.script,
            "endpoint": agent.endpoint,
            "tools": [_shown(plan.tools[name]) for name in agent.tools],
            "session_id": state.invoked.session_id if state.invoked is not None else None,
            "turn": turn,
        },
        at=now,
        expires_at=now + timedelta(seconds=timeout),
    )


def _shown(tool: CompiledTool) -> dict[str, JsonValue]:
    """Return a tool as the model sees it: without the parameters that the system provides."""
    hidden = {name for name, source in tool.sources.items() if source.source == "system"}
    optional = hidden | {
        name for name, source in tool.sources.items() if source.source == "default"
    }
    schema = dict(tool.parameters)
    properties = schema.get("properties")
    if hidden and isinstance(properties, dict):
        schema["properties"] = {
            name: value for name, value in properties.items() if name not in hidden
        }
    required = schema.get("required")
    if optional and isinstance(required, list):
        schema["required"] = [name for name in required if name not in optional]
    return {"name": tool.name, "description": tool.description, "parameters": schema}


def user_text(value: JsonValue) -> str:
    """Return a run's or node's input as the text of a user message."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for key in ("message", "text", "content"):
            text = value.get(key)
            if isinstance(text, str) and len(value) == 1:
                return text
    return json.dumps(value, ensure_ascii=False)


def _messages(
    plan: Plan, state: RunState, node: Node, turn: int, given: JsonValue
) -> list[ChatMessage]:
    """Rebuild the conversation before ``turn`` from the log."""
    messages: list[ChatMessage] = []
    if state.invoked is not None and plan.kind == "agent":
        messages += state.invoked.history
    messages.append(ChatMessage(role="user", content=user_text(given)))
    agent = plan.agents[node.ref]
    for past in range(1, turn):
        action = nodes.action_of(state.steps[turn_step_id(node.id, past)])
        if not isinstance(action, UseTools):
            raise InvariantError("turn_after_end", f"agent {node.id} went on after its answer")
        messages.append(ChatMessage(role="assistant", content=action.text, tool_calls=action.calls))
        for index, call in enumerate(action.calls):
            messages.append(
                ChatMessage(
                    role="tool",
                    tool_call_id=call.id,
                    content=_call_content(state, agent, call, call_step_id(node.id, past, index)),
                )
            )
    return messages


def _call_content(state: RunState, agent: CompiledAgent, call: ToolCall, step_id: str) -> str:
    step = state.steps.get(step_id)
    if step is None:
        return json.dumps({"error": blocked_reason(agent, call)})
    if step.error is not None:
        return json.dumps({"error": f"{step.error.code}: {step.error.message}"})
    if isinstance(step.output, str):
        return step.output
    return json.dumps(step.output, ensure_ascii=False)


def blocked_reason(agent: CompiledAgent, call: ToolCall) -> str:
    """Say why a call is not allowed."""
    allowed = ", ".join(agent.tools) or "none"
    return f"tool {call.name!r} is not equipped; allowed: {allowed}"
