"""The compiler: documents that fit together become what the data path reads.

Pure: it is given every document that may be named, and gives plans, tools and webhooks, or every
fault at once. The same documents always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from msgspec import structs
from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError, finding
from penstock.contracts.facts import DefinitionKind, Reservation, RunLimits
from penstock.contracts.ids import content_digest
from penstock.contracts.plan import (
    AgentNode,
    ApprovalPolicy,
    ChildSpec,
    CompiledAgent,
    CompiledTool,
    ConcurrencySpec,
    Plan,
    Price,
    PublishedVersion,
    ToolParameter,
)
from penstock.contracts.runners import WebhookRecord
from penstock_registry.core.blocks import every_step, timeout_of
from penstock_registry.core.catalog import Catalog, children_of
from penstock_registry.core.checks import faults_of
from penstock_registry.core.documents import (
    AgentDocument,
    AgentSpec,
    Document,
    EquippedTool,
    MemberSpec,
    NetworkDocument,
    ScheduleDocument,
    ToolDocument,
    WebhookDocument,
    WorkflowDocument,
    kind_of,
    show_endpoint,
)
from penstock_registry.core.networks import agent_of
from penstock_registry.core.nodes import RUN_INPUT, Builder
from penstock_registry.core.places import at, invalid_document
from penstock_registry.core.schedules import schedule_record
from penstock_registry.core.steps import ChildStep

AGENT_NODE: Final = "agent"
"""Id of the one node of an agent's own plan."""
NETWORK_NODE: Final = "network"
"""Id of the one node of a network's plan."""
CLIENT_QUEUE: Final = "client"
"""Stands where a queue must, in tools that no runner serves."""
MAX_PLAN_BYTES: Final = 900_000
"""Plans travel as one message; the server's default limit is 1 MiB, headers included."""

Selected = tuple[str, int | str | None]
"""A definition's name, and its version or alias; ``None``: the published version."""
Pins = Mapping[Selected, PublishedVersion]
"""The exact versions of what workflows run as children."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a document compiles to: the bytes that are published, and their digest."""

    body: bytes
    digest: str


def compile_document(
    document: Document, catalog: Catalog, *, path: str = "", pins: Pins | None = None
) -> Artifact:
    """Compile one document against all that it may name.

    Args:
        document: What to compile.
        catalog: Every document that it may name.
        path: Prefix of all places in errors.
        pins: Exact versions of what it runs as children; where not given they are compiled from
            the catalog, each as version 1.

    Raises:
        RejectedError: ``invalid_document`` with every fault; ``plan_too_large``.
    """
    faults = list(faults_of(document, catalog, path))
    if pins is not None and isinstance(document, WorkflowDocument):
        faults += _unpinned(document, catalog, pins, path)
    if faults:
        raise invalid_document(faults)
    body = _body(document, catalog, pins)
    if len(body) > MAX_PLAN_BYTES:
        raise RejectedError(
            "plan_too_large",
            f"{document.metadata.name} compiles to {len(body)} bytes",
            details=(finding(path, "too large", f"<= {MAX_PLAN_BYTES} bytes"),),
        )
    return Artifact(body, content_digest(body))


def _unpinned(
    document: WorkflowDocument, catalog: Catalog, pins: Pins, path: str
) -> Iterator[ErrorDetail]:
    for place, step in every_step(document.spec, at(path, "spec")):
        child = step.workflow
        if child is None or (child.name, child.version) in pins:
            continue
        if child.name not in catalog.runnables() or child.name in catalog.unreadable:
            continue
        field = "name" if child.version is None else "version"
        what = "is not published" if child.version is None else f"has no {child.version!r}"
        yield finding(
            f"{place}.workflow.{field}", f"{child.name!r} {what}", "a published version or alias"
        )


def _body(document: Document, catalog: Catalog, pins: Pins | None) -> bytes:
    match document:
        case ToolDocument():
            return compiled_tool(document).model_dump_json().encode()
        case AgentDocument():
            return agent_plan(document, catalog).to_bytes()
        case WorkflowDocument():
            return workflow_plan(document, catalog, pins).to_bytes()
        case NetworkDocument():
            return network_plan(document, catalog).to_bytes()
        case WebhookDocument():
            return webhook_record(document).model_dump_json().encode()
        case ScheduleDocument():
            record = schedule_record(document.metadata.name, document.spec)
            return record.model_dump_json(exclude_defaults=True).encode()


def agent_plan(document: AgentDocument, catalog: Catalog) -> Plan:
    """Return the plan of an agent that is run by itself."""
    name = document.metadata.name
    return Plan(
        name=name,
        kind=DefinitionKind.AGENT,
        nodes=(AgentNode(id=AGENT_NODE, ref=name, input=RUN_INPUT),),
        agents={name: _agent(name, document.spec)},
        tools=_tools(document.spec.tools, catalog),
    )


def workflow_plan(document: WorkflowDocument, catalog: Catalog, pins: Pins | None = None) -> Plan:
    """Return the plan of a workflow."""
    spec = document.spec
    works = [
        work for _, step in every_step(spec) for work in (step, step.compensate) if work is not None
    ]
    agents = sorted({work.agent for work in works if work.agent is not None})
    names = {work.tool for work in works if work.tool is not None}
    for name in agents:
        names.update(catalog.agents[name].spec.tools)
    exact = pins if pins is not None else _compiled_children(document, catalog)

    def pin(child: ChildStep) -> ChildSpec:
        version = exact[child.name, child.version]
        return ChildSpec(
            name=child.name,
            kind=version.kind,
            version=version.version,
            plan_digest=version.plan_digest,
            limits=RunLimits(**child.limits.model_dump()),
        )

    builder = Builder(names, pin)
    nodes = builder.nodes(spec.steps)
    on_error = builder.nodes(spec.on_error)
    after = builder.nodes(spec.finally_)
    return Plan(
        name=document.metadata.name,
        kind=DefinitionKind.WORKFLOW,
        nodes=nodes,
        agents={name: _agent(name, catalog.agents[name].spec) for name in agents},
        tools=dict(sorted({**_tools(names, catalog), **builder.tools}.items())),
        output=spec.output,
        timeout_seconds=timeout_of(spec),
        limits=spec.limits.limits(),
        concurrency=(
            ConcurrencySpec(**spec.concurrency.model_dump())
            if spec.concurrency is not None
            else None
        ),
        correlation=spec.correlation,
        on_error=on_error,
        finally_=after,
        input_schema=spec.input,
    )


def _compiled_children(
    document: WorkflowDocument, catalog: Catalog
) -> dict[Selected, PublishedVersion]:
    found: dict[Selected, PublishedVersion] = {}
    for child in children_of(document.spec):
        target = catalog.runnable(child.name)
        if target is not None:
            found[child.name, child.version] = PublishedVersion(
                name=child.name,
                kind=DefinitionKind(kind_of(target).value),
                version=1,
                plan_digest=compile_document(target, catalog).digest,
            )
    return found


def network_plan(document: NetworkDocument, catalog: Catalog) -> Plan:
    """Return the plan of a network: one conversation that begins with its entry."""
    spec = document.spec
    agents: dict[str, CompiledAgent] = {}
    names: set[str] = set()
    for member in spec.agents:
        agents[member.name] = made = _member(member, catalog)
        names.update(name for name in made.tools if name not in made.overrides)
    limits = spec.limits.limits()
    policy = spec.policy
    return Plan(
        name=document.metadata.name,
        kind=DefinitionKind.NETWORK,
        nodes=(AgentNode(id=NETWORK_NODE, ref=spec.entry, input=RUN_INPUT),),
        agents=dict(sorted(agents.items())),
        tools=_tools(names, catalog),
        timeout_seconds=spec.timeout_seconds,
        input_schema=spec.input,
        limits=structs.replace(
            limits,
            max_steps=_least(limits.max_steps, policy.max_steps),
            max_turns=_least(limits.max_turns, policy.max_turns),
        ),
    )


def _least(one: int | None, other: int | None) -> int | None:
    given = [bound for bound in (one, other) if bound is not None]
    return min(given) if given else None


def _member(member: MemberSpec, catalog: Catalog) -> CompiledAgent:
    description, spec = agent_of(member, catalog)
    made = _agent(member.name, spec, description)
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


def _agent(name: str, spec: AgentSpec, description: str = "") -> CompiledAgent:
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
