"""Agents and tools as plans carry them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pydantic import JsonValue

from penstock.contracts.plan import (
    ApprovalPolicy,
    CompiledAgent,
    CompiledTool,
    Price,
    ToolParameter,
)
from penstock.contracts.usage import Reservation
from penstock_registry.core.catalog import Catalog
from penstock_registry.core.documents import (
    AgentSpec,
    EquippedTool,
    MemberSpec,
    ToolDocument,
    show_endpoint,
)
from penstock_registry.core.networks import agent_of

CLIENT_QUEUE: Final = "client"
"""Stands where a queue must, in tools that no runner serves."""


def tools_of(names: Iterable[str], catalog: Catalog) -> dict[str, CompiledTool]:
    """Return tools as plans carry them, ordered by name."""
    return {name: compiled_tool(catalog.tools[name]) for name in sorted(set(names))}


def compiled_tool(document: ToolDocument) -> CompiledTool:
    """Return a tool as plans carry it."""
    spec = document.spec
    config: JsonValue = None
    queue = CLIENT_QUEUE
    if spec.http is not None:
        queue = spec.http.queue
        request = spec.http.model_dump(mode="json", by_alias=True, exclude={"queue"})
        config = {"http": request, "parameters": spec.parameters}
    elif spec.runner is not None:
        queue = spec.runner.queue
    elif spec.builtin is not None:
        queue = spec.builtin.queue
    approval = spec.approval
    return CompiledTool(
        name=document.metadata.name,
        description=document.metadata.description,
        queue=queue,
        parameters=spec.parameters,
        sources={
            name: ToolParameter(source=source.source, value=source.value)
            for name, source in sorted(spec.sources.items())
        },
        config=config,
        retry=spec.retry.policy(),
        timeout_seconds=spec.timeout_seconds,
        policy=spec.policy,
        approval=ApprovalPolicy(**approval.model_dump()) if approval is not None else None,
        client=spec.client is not None,
        at_most_once=spec.at_most_once,
        heartbeat_seconds=spec.heartbeat_seconds,
        reserve=Reservation(**spec.reserve.model_dump()) if spec.reserve is not None else None,
    )


def compiled_agent(name: str, spec: AgentSpec, description: str = "") -> CompiledAgent:
    """Return an agent as plans carry it."""
    price = spec.price
    return CompiledAgent(
        name=name,
        description=description,
        queue=spec.queue,
        model=spec.model or f"http/{name}",
        instructions=spec.instructions,
        tools=spec.tools,
        max_turns=spec.max_turns,
        parameters=spec.parameters,
        script=spec.script.model_dump(mode="json", exclude_unset=True) if spec.script else None,
        endpoint=show_endpoint(spec.endpoint) if spec.endpoint is not None else None,
        stream=spec.stream,
        retry=spec.retry.policy(),
        timeout_seconds=spec.timeout_seconds,
        max_tokens=spec.max_tokens,
        max_cost_usd=spec.max_cost_usd,
        price=(
            Price(input_usd=price.input_usd / 1e6, output_usd=price.output_usd / 1e6)
            if price is not None
            else None
        ),
    )


def member_agent(member: MemberSpec, catalog: Catalog) -> CompiledAgent:
    """Return an agent of a network as plans carry it."""
    description, spec = agent_of(member, catalog)
    made = compiled_agent(member.name, spec, description)
    tools, overrides = made.tools, {}
    if member.tools is not None:
        tools = tuple(one.name for one in member.tools)
        for one in member.tools:
            if one.tool is not None or one.sources or one.description is not None:
                overrides[one.name] = _equipped(one, catalog)
    return made.model_copy(
        update={
            "tools": tools,
            "overrides": overrides,
            "routes": member.routes,
            "responds_to": member.responds_to,
        }
    )


def _equipped(one: EquippedTool, catalog: Catalog) -> CompiledTool:
    """Return a tool as an agent has it; its name stays the one that runners know."""
    tool = compiled_tool(catalog.tools[one.tool or one.name])
    sources = {
        name: ToolParameter(source=source.source, value=source.value)
        for name, source in one.sources.items()
    }
    return tool.model_copy(
        update={
            "description": tool.description if one.description is None else one.description,
            "sources": dict(sorted({**tool.sources, **sources}.items())),
        }
    )
