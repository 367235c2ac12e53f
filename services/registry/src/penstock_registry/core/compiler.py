"""The compiler: documents that fit together become what the data path reads.

Pure: it is given every document that may be named, and gives plans, tools and webhooks, or every
fault at once. The same documents always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from penstock.contracts.errors import ErrorDetail, RejectedError, finding
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.ids import content_digest
from penstock.contracts.json_schema import has_defaults
from penstock.contracts.plan import (
    AgentNode,
    ChildSpec,
    CompiledAgent,
    ConcurrencySpec,
    Plan,
    PublishedVersion,
)
from penstock.contracts.runners import HmacForm, WebhookRecord
from penstock.contracts.usage import RunLimits
from penstock_registry.core.blocks import every_step, timeout_of
from penstock_registry.core.catalog import Catalog, children_of
from penstock_registry.core.checks import faults_of
from penstock_registry.core.compiled import compiled_agent, compiled_tool, member_agent, tools_of
from penstock_registry.core.documents import (
    AgentDocument,
    Document,
    NetworkDocument,
    ScheduleDocument,
    ToolDocument,
    WebhookDocument,
    WorkflowDocument,
    kind_of,
)
from penstock_registry.core.nodes import RUN_INPUT, Builder
from penstock_registry.core.places import at, invalid_document
from penstock_registry.core.schedules import schedule_record
from penstock_registry.core.steps import ChildStep

AGENT_NODE: Final = "agent"
"""Id of the one node of an agent's own plan."""
NETWORK_NODE: Final = "network"
"""Id of the one node of a network's plan."""
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
        agents={name: compiled_agent(name, document.spec)},
        tools=tools_of(document.spec.tools, catalog),
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
        schema = version.input_schema
        return ChildSpec(
            name=child.name,
            kind=version.kind,
            version=version.version,
            plan_digest=version.plan_digest,
            limits=RunLimits(**child.limits.model_dump()),
            input_defaults=schema if schema is not None and has_defaults(schema) else None,
        )

    builder = Builder(names, pin)
    nodes = builder.nodes(spec.steps)
    on_error = builder.nodes(spec.on_error)
    after = builder.nodes(spec.finally_)
    return Plan(
        name=document.metadata.name,
        kind=DefinitionKind.WORKFLOW,
        nodes=nodes,
        agents={name: compiled_agent(name, catalog.agents[name].spec) for name in agents},
        tools=dict(sorted({**tools_of(names, catalog), **builder.tools}.items())),
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
                input_schema=(
                    target.spec.input
                    if isinstance(target, WorkflowDocument | NetworkDocument)
                    else None
                ),
            )
    return found


def network_plan(document: NetworkDocument, catalog: Catalog) -> Plan:
    """Return the plan of a network: one conversation that begins with its entry."""
    spec = document.spec
    agents: dict[str, CompiledAgent] = {}
    names: set[str] = set()
    for member in spec.agents:
        agents[member.name] = made = member_agent(member, catalog)
        names.update(name for name in made.tools if name not in made.overrides)
    limits = spec.limits.limits()
    policy = spec.policy
    return Plan(
        name=document.metadata.name,
        kind=DefinitionKind.NETWORK,
        nodes=(AgentNode(id=NETWORK_NODE, ref=spec.entry, input=RUN_INPUT),),
        agents=dict(sorted(agents.items())),
        tools=tools_of(names, catalog),
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


def webhook_record(document: WebhookDocument) -> WebhookRecord:
    """Return what the gateway needs to know of a webhook."""
    spec = document.spec
    return WebhookRecord(
        name=document.metadata.name,
        target=spec.target,
        secrets=spec.secrets,
        input=spec.input,
        tolerance_seconds=spec.tolerance_seconds,
        scheme=spec.scheme,
        hmac=None if spec.hmac is None else HmacForm(**spec.hmac.model_dump()),
        verify_token=spec.verify_token,
    )
