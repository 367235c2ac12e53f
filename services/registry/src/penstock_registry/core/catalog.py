"""The catalog: the documents of a tenant that may name one another, and who names whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from penstock.contracts.rpc import DocumentKind
from penstock_registry.core.blocks import every_step
from penstock_registry.core.documents import (
    AgentDocument,
    Document,
    NetworkDocument,
    Runnable,
    ScheduleDocument,
    ToolDocument,
    WebhookDocument,
    WorkflowDocument,
    WorkflowSpec,
    kind_of,
)
from penstock_registry.core.steps import ChildStep

PUBLISHING_ORDER: Final = (
    DocumentKind.TOOL,
    DocumentKind.AGENT,
    DocumentKind.NETWORK,
    DocumentKind.WORKFLOW,
    DocumentKind.WEBHOOK,
    DocumentKind.SCHEDULE,
)
"""Those that are named come before those that name them; workflows among themselves as well."""
RUNNABLE: Final = (DocumentKind.AGENT, DocumentKind.NETWORK, DocumentKind.WORKFLOW)
"""Kinds that are started by name."""

Key = tuple[DocumentKind, str]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All documents of one tenant that may name one another."""

    agents: Mapping[str, AgentDocument] = field(default_factory=dict)
    tools: Mapping[str, ToolDocument] = field(default_factory=dict)
    workflows: Mapping[str, WorkflowDocument] = field(default_factory=dict)
    networks: Mapping[str, NetworkDocument] = field(default_factory=dict)
    webhooks: Mapping[str, WebhookDocument] = field(default_factory=dict)
    schedules: Mapping[str, ScheduleDocument] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()
    """Names of documents that are there but cannot be read; naming them is no fault."""

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Catalog:
        """Sort documents by kind; of two with the same name the later one counts."""
        agents: dict[str, AgentDocument] = {}
        tools: dict[str, ToolDocument] = {}
        workflows: dict[str, WorkflowDocument] = {}
        networks: dict[str, NetworkDocument] = {}
        webhooks: dict[str, WebhookDocument] = {}
        schedules: dict[str, ScheduleDocument] = {}
        for document in documents:
            match document:
                case AgentDocument():
                    agents[document.metadata.name] = document
                case ToolDocument():
                    tools[document.metadata.name] = document
                case WorkflowDocument():
                    workflows[document.metadata.name] = document
                case NetworkDocument():
                    networks[document.metadata.name] = document
                case WebhookDocument():
                    webhooks[document.metadata.name] = document
                case ScheduleDocument():
                    schedules[document.metadata.name] = document
        return cls(agents, tools, workflows, networks, webhooks, schedules)

    def names(self, *named: Mapping[str, Document]) -> frozenset[str]:
        """Return the names of documents, those included that cannot be read."""
        return self.unreadable.union(*named)

    def runnables(self) -> frozenset[str]:
        """Return the names of everything that can be started."""
        return self.names(self.agents, self.workflows, self.networks)

    def runnable(self, name: str) -> Runnable | None:
        """Return the definition that a name starts."""
        return self.workflows.get(name) or self.networks.get(name) or self.agents.get(name)

    def documents(self) -> Iterator[Document]:
        """Yield all documents, those that are named before those that name them."""
        yield from self.tools.values()
        yield from self.agents.values()
        yield from self.networks.values()
        yield from in_order(self.workflows.values())
        yield from self.webhooks.values()
        yield from self.schedules.values()

    def plus(self, documents: Iterable[Document]) -> Catalog:
        """Return a catalog in which ``documents`` replace their namesakes."""
        return Catalog.of([*self.documents(), *documents])

    def calls_back(self, name: str, child: str) -> tuple[str, ...] | None:
        """Return the workflows between ``child`` and one that runs ``name`` again.

        ``None`` if nothing below ``child`` runs ``name``; empty if it is ``name`` itself.
        """
        if child == name:
            return ()
        waiting: list[tuple[str, ...]] = [(child,)]
        seen = {child}
        while waiting:
            way = waiting.pop()
            document = self.workflows.get(way[-1])
            for step in children_of(document.spec) if document is not None else ():
                if step.name == name:
                    return way
                if step.version is None and step.name not in seen:
                    seen.add(step.name)
                    waiting.append((*way, step.name))
        return None


def in_order(workflows: Iterable[WorkflowDocument]) -> list[WorkflowDocument]:
    """Sort workflows so that those that are run come before those that run them."""
    by_name = {document.metadata.name: document for document in workflows}
    found: dict[str, WorkflowDocument] = {}
    begun: set[str] = set()
    for first in by_name:
        waiting = [first]
        while waiting:
            name = waiting[-1]
            begun.add(name)
            below = [
                step.name
                for step in children_of(by_name[name].spec)
                if step.name in by_name and step.name not in begun
            ]
            if below:
                waiting.extend(below)
                continue
            waiting.pop()
            found.setdefault(name, by_name[name])
    return list(found.values())


def publishing_order(documents: Iterable[Document]) -> list[Document]:
    """Sort documents so that those that are named come before those that name them."""
    given = list(documents)
    workflows = in_order(one for one in given if isinstance(one, WorkflowDocument))
    rank = {one.metadata.name: number for number, one in enumerate(workflows)}
    return sorted(
        given,
        key=lambda one: (
            PUBLISHING_ORDER.index(kind_of(one)),
            rank[one.metadata.name] if isinstance(one, WorkflowDocument) else 0,
        ),
    )


def key_of(document: Document) -> Key:
    """Return kind and name."""
    return kind_of(document), document.metadata.name


def children_of(spec: WorkflowSpec) -> Iterator[ChildStep]:
    """Yield the steps of a workflow that run other definitions."""
    for _, step in every_step(spec):
        if step.workflow is not None:
            yield step.workflow


def uses(document: Document) -> set[Key]:
    """Return the definitions that a document names."""
    match document:
        case ToolDocument():
            return set()
        case AgentDocument():
            return {(DocumentKind.TOOL, name) for name in document.spec.tools}
        case WorkflowDocument():
            return _workflow_uses(document.spec)
        case NetworkDocument():
            return _network_uses(document)
        case WebhookDocument():
            return {(kind, document.spec.target) for kind in RUNNABLE}
        case ScheduleDocument():
            return {(kind, document.spec.target_name) for kind in RUNNABLE}


def _workflow_uses(spec: WorkflowSpec) -> set[Key]:
    found: set[Key] = set()
    for _, step in every_step(spec):
        for work in (step, step.compensate):
            if work is not None and work.agent is not None:
                found.add((DocumentKind.AGENT, work.agent))
            if work is not None and work.tool is not None:
                found.add((DocumentKind.TOOL, work.tool))
        if step.workflow is not None:
            found |= {(kind, step.workflow.name) for kind in RUNNABLE}
    return found


def _network_uses(document: NetworkDocument) -> set[Key]:
    found: set[Key] = set()
    for member in document.spec.agents:
        if member.spec is None:
            found.add((DocumentKind.AGENT, member.agent or member.name))
        elif member.tools is None:
            found |= {(DocumentKind.TOOL, name) for name in member.spec.tools}
        found |= {(DocumentKind.TOOL, one.tool or one.name) for one in member.tools or ()}
    return found


def dependants(catalog: Catalog, changed: Iterable[Key]) -> list[Document]:
    """Return what must be compiled anew when ``changed`` are, in the order of publishing.

    Webhooks and schedules only point at a name, so nothing of theirs changes.
    """
    touched = set(changed)
    given = set(touched)
    found: list[Document] = []
    for document in catalog.documents():
        if isinstance(document, WebhookDocument | ScheduleDocument) or key_of(document) in given:
            continue
        if uses(document) & touched:
            touched.add(key_of(document))
            found.append(document)
    return found
