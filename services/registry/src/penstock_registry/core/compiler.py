"""The compiler: documents that fit together become what the data path reads.

Pure: it is given every document that may be named, and gives plans, tools and webhooks, or every
fault at once. The same documents always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.ids import content_digest
from penstock.contracts.plan import CompiledAgent, CompiledTool, Node, Plan, ToolParameter
from penstock.contracts.runners import WebhookRecord
from penstock_registry.core.catalog import Catalog, needs_of
from penstock_registry.core.checks import faults_of
from penstock_registry.core.documents import (
    AgentDocument,
    Document,
    ToolDocument,
    WebhookDocument,
    WorkflowDocument,
    show_endpoint,
)
from penstock_registry.core.places import invalid_document

AGENT_NODE: Final = "agent"
"""Id of the one node of an agent's own plan."""
MAX_PLAN_BYTES: Final = 900_000
"""Plans travel as one message; the server's default limit is 1 MiB, headers included."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a document compiles to: the bytes that are published, and their digest."""

    body: bytes
    digest: str


def compile_document(document: Document, catalog: Catalog, *, path: str = "") -> Artifact:
    """Compile one document against all that it may name.

    Args:
        document: What to compile.
        catalog: Every document that it may name.
        path: Prefix of all places in errors.

    Raises:
        RejectedError: ``invalid_document`` with every fault; ``plan_too_large``.
    """
    faults = list(faults_of(document, catalog, path))
    if faults:
        raise invalid_document(faults)
    body = _body(document, catalog)
    if len(body) > MAX_PLAN_BYTES:
        raise RejectedError(
            "plan_too_large",
            f"{document.metadata.name} compiles to {len(body)} bytes",
            details=(
                ErrorDetail(path=path, message="too large", allowed=f"<= {MAX_PLAN_BYTES} bytes"),
            ),
        )
    return Artifact(body, content_digest(body))


def _body(document: Document, catalog: Catalog) -> bytes:
    match document:
        case ToolDocument():
            return _tool(document).model_dump_json().encode()
        case AgentDocument():
            return agent_plan(document, catalog).to_bytes()
        case WorkflowDocument():
            return workflow_plan(document, catalog).to_bytes()
        case WebhookDocument():
            return webhook_record(document).model_dump_json().encode()


def agent_plan(document: AgentDocument, catalog: Catalog) -> Plan:
    """Return the plan of an agent that is run by itself."""
    name = document.metadata.name
    return Plan(
        name=name,
        kind=DefinitionKind.AGENT,
        nodes=(Node(id=AGENT_NODE, kind="agent", ref=name, input="{{ input }}"),),
        agents={name: _agent(document)},
        tools=_tools(document.spec.tools, catalog),
    )


def workflow_plan(document: WorkflowDocument, catalog: Catalog) -> Plan:
    """Return the plan of a workflow."""
    spec = document.spec
    agents = sorted({step.agent for step in spec.steps if step.agent is not None})
    tools = {step.tool for step in spec.steps if step.tool is not None}
    for name in agents:
        tools.update(catalog.agents[name].spec.tools)
    needs = needs_of(document)
    return Plan(
        name=document.metadata.name,
        kind=DefinitionKind.WORKFLOW,
        nodes=tuple(
            Node(
                id=step.id,
                kind="agent" if step.agent is not None else "tool",
                ref=step.agent or step.tool or "",
                needs=needs[index],
                input="{{ input }}" if step.input is None and step.agent else step.input,
                retry=step.retry.policy() if step.retry is not None else None,
                timeout_seconds=step.timeout_seconds,
            )
            for index, step in enumerate(spec.steps)
        ),
        agents={name: _agent(catalog.agents[name]) for name in agents},
        tools=_tools(tools, catalog),
        output=spec.output,
        timeout_seconds=spec.timeout_seconds,
    )


def webhook_record(document: WebhookDocument) -> WebhookRecord:
    """Return what the gateway needs to know of a webhook."""
    spec = document.spec
    return WebhookRecord(
        name=document.metadata.name,
        target=spec.target,
        secrets=spec.secrets,
        input=spec.input,
        tolerance_seconds=spec.tolerance_seconds,
    )


def _tools(names: Iterable[str], catalog: Catalog) -> dict[str, CompiledTool]:
    return {name: _tool(catalog.tools[name]) for name in sorted(set(names))}


def _tool(document: ToolDocument) -> CompiledTool:
    spec = document.spec
    config: JsonValue = None
    if spec.http is not None:
        queue = spec.http.queue
        request = spec.http.model_dump(mode="json", by_alias=True, exclude={"queue"})
        config = {"http": request, "parameters": spec.parameters}
    elif spec.runner is not None:
        queue = spec.runner.queue
    else:
        queue = spec.builtin.queue if spec.builtin is not None else ""
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
    )


def _agent(document: AgentDocument) -> CompiledAgent:
    spec = document.spec
    name = document.metadata.name
    return CompiledAgent(
        name=name,
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
    )
