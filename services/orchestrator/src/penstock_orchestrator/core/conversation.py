"""The conversation of an agent node, rebuilt from the log: speakers, routes and messages."""

from __future__ import annotations

import json
from typing import Final

from pydantic import JsonValue

from penstock.contracts.actions import Action, Respond, RouteToAgent, UseTools
from penstock.contracts.facts import ChatMessage, ToolCall
from penstock.contracts.ids import approval_record_id, call_step_id, turn_step_id
from penstock.contracts.json import Json
from penstock.contracts.plan import CompiledAgent
from penstock.contracts.structs import plain
from penstock.runs.messages import user_text
from penstock.runs.state import RunState, StepState
from penstock_orchestrator.core.progress import action_of
from penstock_orchestrator.core.view import View

ROUTE: Final = "route_to_agent"


def own_turn(state: RunState, iid: str, agent: str, turn: int) -> int:
    """Return the number of an agent's turn among its own turns, from 1."""
    past = (state.steps.get(turn_step_id(iid, number)) for number in range(1, turn))
    return 1 + sum(1 for step in past if step is not None and step.name == agent)


def callers(view: View, iid: str, turn: int, entry: str) -> list[str]:
    """Return the agents that wait for the one that speaks at ``turn``, outermost first."""
    stack: list[str] = []
    for number in range(1, turn):
        step = view.state.steps[turn_step_id(iid, number)]
        action = action_of(step)
        if isinstance(action, RouteToAgent) and route_fault(view, step, action) is None:
            target = view.plan.agents[action.agent]
            if target.responds_to == "caller":
                stack.append(step.name or entry)
        elif isinstance(action, Respond) and stack and returns(view.plan.agents.get(step.name)):
            stack.pop()
    return stack


def returns(agent: CompiledAgent | None) -> bool:
    """Whether an agent's answer goes to the agent that asked it."""
    return agent is not None and agent.responds_to == "caller"


def speaker_at(view: View, iid: str, turn: int, entry: str) -> str:
    """Return the agent that speaks at ``turn``, derived from the turns before it."""
    name = entry
    for number in range(1, turn):
        step = view.state.steps[turn_step_id(iid, number)]
        speaker = view.plan.agents.get(step.name) or view.plan.agents[entry]
        name = following(view, iid, number, entry, speaker, action_of(step)) or speaker.name
    return name


def following(
    view: View, iid: str, number: int, entry: str, speaker: CompiledAgent, action: Action
) -> str | None:
    """Return the agent that speaks after a turn; ``None`` if the turn is the node's answer."""
    if isinstance(action, RouteToAgent):
        step = view.state.steps[turn_step_id(iid, number)]
        return action.agent if route_fault(view, step, action) is None else speaker.name
    if isinstance(action, UseTools) or speaker.responds_to == "nobody":
        return speaker.name
    if speaker.responds_to == "user":
        return None
    waiting = callers(view, iid, number, entry)
    return waiting[-1] if waiting else None


def route_fault(view: View, step: StepState, action: RouteToAgent) -> str | None:
    """Return why an agent may not route to another one, or ``None`` if it may."""
    agent = view.plan.agents.get(step.name)
    routes = agent.routes if agent is not None else ()
    if action.agent in routes:
        return None
    allowed = ", ".join(routes) or "none"
    return f"agent {step.name} may not route to {action.agent!r}; allowed: {allowed}"


def messages(
    view: View, iid: str, given: JsonValue, turn: int, agent: CompiledAgent, entry: str
) -> list[JsonValue]:
    """Return the conversation before ``turn`` as messages for ``agent``."""
    found: list[ChatMessage] = []
    if not iid.partition("-")[2] and view.plan.kind != "workflow":
        found += view.state.request.history
    found.append(ChatMessage(role="user", content=user_text(given)))
    for past in range(1, turn):
        step = view.state.steps[turn_step_id(iid, past)]
        action = action_of(step)
        speaker = view.plan.agents.get(step.name) or view.plan.agents[entry]
        if speaker.name == agent.name:
            found += _own(view, iid, past, step, speaker, action)
        else:
            found += _others(view, step, speaker, agent, action)
    return [plain(message) for message in found]


def _own(
    view: View, iid: str, turn: int, step: StepState, agent: CompiledAgent, action: Action
) -> list[ChatMessage]:
    if isinstance(action, UseTools):
        spoken = ChatMessage(role="assistant", content=action.text, tool_calls=action.calls)
        return [spoken] + [
            ChatMessage(
                role="tool",
                tool_call_id=call.id,
                content=_content(view, agent, call, call_step_id(iid, turn, index)),
            )
            for index, call in enumerate(action.calls)
        ]
    text = action.text
    if isinstance(action, RouteToAgent):
        fault = route_fault(view, step, action)
        text = text or action.message
        spoken = ChatMessage(role="assistant", content=text)
        if fault is None:
            return [spoken] if text else []
        return [spoken, ChatMessage(role="user", content=json.dumps({"error": fault}))]
    spoken = ChatMessage(role="assistant", content=text)
    if agent.responds_to == "nobody":
        error = {"error": "this agent may not respond; route to another agent"}
        return [spoken, ChatMessage(role="user", content=json.dumps(error))]
    return [spoken]


def _others(
    view: View, step: StepState, speaker: CompiledAgent, listener: CompiledAgent, action: Action
) -> list[ChatMessage]:
    """Return a turn of another agent as messages for the listener."""
    text = action.text
    if isinstance(action, RouteToAgent):
        if route_fault(view, step, action) is not None:
            return []
        if action.agent == listener.name and action.message:
            text = action.message
        elif action.message:
            text = f"(to {action.agent}) {action.message}"
    if not text:
        return []
    return [ChatMessage(role="user", content=f"[{speaker.name}] {text}")]


def _content(view: View, agent: CompiledAgent, call: ToolCall, step_id: str) -> str:
    """Return the outcome of a call as the content of a tool message."""
    refused = view.node_record(approval_record_id(step_id))
    if refused is not None and refused.status == "failed" and refused.error is not None:
        return _as_text({"error": f"{refused.error.code}: {refused.error.message}"})
    node_record = view.node_record(step_id)
    if node_record is not None and node_record.status != "open":
        if node_record.error is not None:
            return _as_text({"error": f"{node_record.error.code}: {node_record.error.message}"})
        return _as_text(node_record.output)
    step = view.state.steps.get(step_id)
    if step is None:
        return _as_text({"error": blocked_reason(view, agent, call)})
    if step.error is not None:
        return _as_text({"error": f"{step.error.code}: {step.error.message}"})
    return _as_text(step.output)


def _as_text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def blocked_reason(view: View, agent: CompiledAgent, call: ToolCall) -> str:
    """Return why a call is not allowed."""
    if call.name in agent.tools:
        tool = agent.overrides.get(call.name) or view.plan.tools.get(call.name)
        if tool is not None and tool.policy == "block":
            return f"tool {call.name!r} is blocked by policy"
    allowed = ", ".join(agent.tools) or "none"
    return f"tool {call.name!r} is not equipped; allowed: {allowed}"
