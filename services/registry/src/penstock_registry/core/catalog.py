"""The catalog: the documents of a tenant that may name one another, and who names whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from penstock.contracts.rpc import DocumentKind
from penstock_registry.core.documents import (
    AgentDocument,
    Document,
    ToolDocument,
    WebhookDocument,
    WorkflowDocument,
    kind_of,
)

PUBLISHING_ORDER: Final = (
    DocumentKind.TOOL,
    DocumentKind.AGENT,
    DocumentKind.WORKFLOW,
    DocumentKind.WEBHOOK,
)
"""Those that are named come before those that name them."""

Key = tuple[DocumentKind, str]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All documents of one tenant that may name one another."""

    agents: Mapping[str, AgentDocument] = field(default_factory=dict)
    tools: Mapping[str, ToolDocument] = field(default_factory=dict)
    workflows: Mapping[str, WorkflowDocument] = field(default_factory=dict)
    webhooks: Mapping[str, WebhookDocument] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()
    """Names of documents that are there but cannot be read; naming them is no fault."""

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Catalog:
        """Sort documents by kind; of two with the same name the later one counts."""
        agents: dict[str, AgentDocument] = {}
        tools: dict[str, ToolDocument] = {}
        workflows: dict[str, WorkflowDocument] = {}
        webhooks: dict[str, WebhookDocument] = {}
        for document in documents:
            match document:
                case AgentDocument():
                    agents[document.metadata.name] = document
                case ToolDocument():
                    tools[document.metadata.name] = document
                case WorkflowDocument():
                    workflows[document.metadata.name] = document
                case WebhookDocument():
                    webhooks[document.metadata.name] = document
        return cls(agents, tools, workflows, webhooks)

    def names(self, kind: Literal["agents", "tools", "workflows"]) -> set[str]:
        """Return the names that a document may use for a kind."""
        known = {"agents": self.agents, "tools": self.tools, "workflows": self.workflows}[kind]
        return {*known, *self.unreadable}

    def documents(self) -> Iterator[Document]:
        """Yield all documents, those that are named before those that name them."""
        yield from self.tools.values()
        yield from self.agents.values()
        yield from self.workflows.values()
        yield from self.webhooks.values()

    def plus(self, documents: Iterable[Document]) -> Catalog:
        """Return a catalog in which ``documents`` replace their namesakes."""
        return Catalog.of([*self.documents(), *documents])


def key_of(document: Document) -> Key:
    """Return kind and name."""
    return kind_of(document), document.metadata.name


def uses(document: Document) -> set[Key]:
    """Return the definitions that a document names."""
    match document:
        case ToolDocument():
            return set()
        case AgentDocument():
            return {(DocumentKind.TOOL, name) for name in document.spec.tools}
        case WorkflowDocument():
            steps = document.spec.steps
            return {(DocumentKind.AGENT, step.agent) for step in steps if step.agent} | {
                (DocumentKind.TOOL, step.tool) for step in steps if step.tool
            }
        case WebhookDocument():
            target = document.spec.target
            return {(DocumentKind.AGENT, target), (DocumentKind.WORKFLOW, target)}


def dependants(catalog: Catalog, changed: Iterable[Key]) -> list[Document]:
    """Return what must be compiled anew when ``changed`` are, in the order of publishing.

    Webhooks only point at a name, so nothing of theirs changes.
    """
    touched = set(changed)
    found: list[Document] = []
    for document in catalog.documents():
        if isinstance(document, WebhookDocument) or key_of(document) in touched:
            continue
        if uses(document) & touched:
            touched.add(key_of(document))
            found.append(document)
    return found


def needs_of(document: WorkflowDocument) -> list[tuple[str, ...]]:
    """Return for each step, in order, the ids of those that it waits for."""
    steps = document.spec.steps
    return [
        tuple(dict.fromkeys(step.depends_on))
        if step.depends_on is not None
        else ((steps[index - 1].id,) if index else ())
        for index, step in enumerate(steps)
    ]
