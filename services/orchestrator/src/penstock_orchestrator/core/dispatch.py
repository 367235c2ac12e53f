"""Dispatch: builds the steps to schedule, from templates, tools and agents."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import JsonValue

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorDetail, ErrorInfo, RejectedError
from penstock.contracts.facts import SecretRef
from penstock.contracts.ids import turn_step_id
from penstock.contracts.json import Json, JsonObject
from penstock.contracts.plan import (
    AgentNode,
    CompiledAgent,
    CompiledTool,
    Node,
    SendNode,
    ToolNode,
    WorkflowNode,
)
from penstock.contracts.structs import plain
from penstock.contracts.usage import Reservation, RunLimits
from penstock.contracts.versions import filled_input
from penstock.expressions.templates import render, render_with_secrets
from penstock.runs.engine_steps import ChildRunConfig, SendConfig, SendTarget
from penstock_orchestrator.core import conversation
from penstock_orchestrator.core.decisions import Planned
from penstock_orchestrator.core.progress import Instance
from penstock_orchestrator.core.view import View

_Secrets = dict[str, tuple[str | SecretRef, ...]]


class Call(NamedTuple):
    """A tool with the arguments of one call, and the secrets to be filled in."""

    tool: CompiledTool
    arguments: JsonObject
    secrets: _Secrets


class Prompt(NamedTuple):
    """The messages of a turn, its reservation, and the limit of its answer's tokens."""

    messages: list[JsonValue]
    reserve: Reservation | None = None
    max_tokens: int | None = None


def tool_for(view: View, agent: CompiledAgent | None, name: str) -> CompiledTool:
    """Return a tool as an agent has it."""
    if agent is not None and name in agent.overrides:
        return agent.overrides[name]
    return view.plan.tools[name]


def node_call(view: View, instance: Instance[ToolNode]) -> Call:
    """Return the call that a tool node makes.

    Raises:
        RejectedError: It cannot be rendered, or gives no object.
    """
    node = instance.node
    tool = view.plan.tools[node.ref]
    if node.input is None:
        return Call(tool, {}, {})
    scope = view.scope(node.id, instance.path)
    secrets: _Secrets = {}
    if node.mentions_secrets:
        rendered = render_with_secrets(node.input, scope)
        given, secrets = rendered.value, _under("input", rendered.secrets)
    else:
        given = render(node.input, scope)
    if not isinstance(given, dict):
        raise RejectedError(
            "invalid_input",
            f"the input of step {node.id} must be an object",
            details=(ErrorDetail(path=f"{node.id}.input", message=f"got {given!r}"[:200]),),
        )
    return Call(tool, given, secrets)


def tool_step(
    view: View,
    instance: Instance[Node],
    call: Call,
    step_id: str,
    attempt: int,
    now: datetime,
) -> Planned:
    """Schedule an attempt at a tool call."""
    node = instance.node
    tool, arguments, found = call
    own = node.timeout_seconds if isinstance(node, ToolNode) else None
    if tool.sources:
        arguments, more = with_sources(view, instance, tool, arguments)
        found = {**found, **more}
    return Planned(
        suffix=subjects.step_suffix("tool", tool.queue, step_id, attempt),
        pool=f"tool.{tool.queue}",
        step_id=step_id,
        node_id=node.id,
        name=tool.name,
        input=arguments,
        config=tool.config,
        at=now,
        expires_at=now + timedelta(seconds=own or tool.timeout_seconds),
        secrets=found,
        reserve=tool.reserve,
        at_most_once=tool.at_most_once,
        heartbeat_seconds=tool.heartbeat_seconds,
    )


def with_sources(
    view: View, instance: Instance[Node], tool: CompiledTool, given: JsonObject
) -> tuple[JsonObject, _Secrets]:
    """Apply the parameters' sources: system values win, defaults fill in."""
    arguments = dict(given)
    secrets: _Secrets = {}
    scope = view.scope(instance.node.id, instance.path)
    for name, parameter in tool.sources.items():
        if parameter.source == "system" or (
            parameter.source == "default" and name not in arguments
        ):
            rendered = render_with_secrets(parameter.value, scope)
            arguments[name] = rendered.value
            token = name.replace("~", "~0").replace("/", "~1")
            secrets.update(_under(f"input/{token}", rendered.secrets))
    return arguments, secrets


def _under(place: str, found: dict[str, tuple[str | dict[str, str], ...]]) -> _Secrets:
    return {
        f"/{place}{pointer}": tuple(
            piece if isinstance(piece, str) else SecretRef(secret=piece["secret"])
            for piece in pieces
        )
        for pointer, pieces in found.items()
    }


def agent_turn(
    view: View,
    instance: Instance[AgentNode],
    agent: CompiledAgent,
    turn: int,
    attempt: int,
    now: datetime,
    prompt: Prompt,
) -> Planned:
    """Schedule an attempt at a turn of an agent.

    Args:
        view: View of the run.
        instance: The agent node's instance that the turn belongs to.
        agent: The agent that speaks.
        turn: Number of the turn in the node's conversation, from 1.
        attempt: Number of the attempt, from 1.
        now: The time.
        prompt: Its messages and its reservation.

    Raises:
        RejectedError: A template cannot be rendered.
    """
    node = instance.node
    scope = view.scope(node.id, instance.path)
    parameters = agent.parameters
    if prompt.max_tokens is not None:
        other = "max_completion_tokens" in parameters
        name = "max_completion_tokens" if other else "max_tokens"
        parameters = {**parameters, name: prompt.max_tokens}
    config: dict[str, JsonValue] = {
        "model": agent.model,
        "instructions": render(agent.instructions, scope),
        "parameters": parameters,
        "stream": agent.stream,
        "script": agent.script,
        "endpoint": agent.endpoint,
        "tools": [_shown(tool_for(view, agent, name), name) for name in agent.tools],
        "session_id": view.state.request.session_id,
        "turn": turn,
    }
    if agent.routes:
        config["routes"] = [
            {"agent": name, "description": view.plan.agents[name].description}
            for name in agent.routes
        ]
        config["can_respond"] = agent.responds_to != "nobody"
    if view.plan.agents[node.ref].routes:
        config["own_turn"] = conversation.own_turn(view.state, instance.id, agent.name, turn)
    timeout = node.timeout_seconds or agent.timeout_seconds
    step_id = turn_step_id(instance.id, turn)
    return Planned(
        suffix=subjects.step_suffix("agent", agent.queue, step_id, attempt),
        pool=f"agent.{agent.queue}",
        step_id=step_id,
        node_id=node.id,
        name=agent.name,
        input={"messages": prompt.messages},
        config=config,
        at=now,
        expires_at=now + timedelta(seconds=timeout),
        reserve=prompt.reserve,
    )


def _shown(tool: CompiledTool, name: str) -> Json:
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
    return {"name": name, "description": tool.description, "parameters": schema}


def child_run(
    view: View,
    instance: Instance[WorkflowNode],
    attempt: int,
    now: datetime,
    expires_at: datetime,
    limits: RunLimits,
    reserve: Reservation | None,
) -> Planned:
    """Schedule a child run.

    Raises:
        RejectedError: Its input cannot be rendered, or runs nest too deep.
    """
    node = instance.node
    child, state = node.child, view.state
    depth = (state.request.parent.depth if state.request.parent is not None else 0) + 1
    if limits.max_depth is not None and limits.max_depth < 0:
        raise RejectedError(
            "too_deep",
            f"step {node.id} would start a run at depth {depth}: limits.max_depth",
        )
    child_input: Json = (
        render(node.input, view.scope(node.id, instance.path)) if node.input is not None else None
    )
    if child.input_defaults is not None:
        child_input = filled_input(child.name, child.input_defaults, child_input)
    config = ChildRunConfig(
        name=child.name,
        kind=child.kind,
        version=child.version,
        plan_digest=child.plan_digest,
        limits=limits,
        depth=depth,
    )
    step_id = instance.id
    return Planned(
        suffix=subjects.step_suffix("run", "workflow", step_id, attempt),
        pool="run.workflow",
        step_id=step_id,
        node_id=node.id,
        name=child.name,
        input=child_input,
        config=plain(config, defaults=False),
        at=now,
        expires_at=expires_at,
        reserve=reserve,
    )


def message(
    view: View, instance: Instance[SendNode], attempt: int, now: datetime, expires_at: datetime
) -> Planned:
    """Schedule a message to another run.

    Raises:
        RejectedError: A template cannot be rendered.
    """
    node = instance.node
    scope = view.scope(node.id, instance.path)
    to = SendTarget(
        run_id=render(node.run_id, scope),
        correlation=render(node.correlation, scope),
        session_id=render(node.session_id, scope),
    )
    return Planned(
        suffix=subjects.step_suffix("run", "send", instance.id, attempt),
        pool="run.send",
        step_id=instance.id,
        node_id=node.id,
        name=node.name,
        input=render(node.payload, scope),
        config=plain(SendConfig(to=to, name=node.name), defaults=False),
        at=now,
        expires_at=expires_at,
    )


def prompt_bytes(agent: CompiledAgent, messages: list[JsonValue]) -> int:
    """Return the size of what a model is asked, in bytes."""
    return len(json.dumps(messages)) + len(agent.instructions)


def step_error(step_id: str, attempt: int, error: ErrorInfo | None) -> ErrorInfo:
    """Return the error of a step that has failed permanently."""
    error = error or ErrorInfo(code="step_failed", message="the step failed")
    return ErrorInfo(
        code=error.code,
        message=f"step {step_id} failed at attempt {attempt}: {error.message}",
        family=error.family,
        details=(ErrorDetail(path=step_id, message=error.message), *error.details),
    )
