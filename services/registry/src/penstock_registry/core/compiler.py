"""The compiler: documents that fit together become what the data path reads.

Pure: it is given every document that may be named, and gives plans, tools and webhooks, or every
fault at once. The same documents always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from jsonschema import Draft202012Validator
from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.ids import content_digest
from penstock.contracts.plan import CompiledAgent, CompiledTool, Node, Plan, ToolParameter
from penstock.contracts.rpc import DocumentKind
from penstock.contracts.runners import WebhookRecord
from penstock.contracts.templates import references
from penstock_registry.core.documents import (
    AgentDocument,
    Document,
    HttpSpec,
    Parsed,
    ToolDocument,
    WebhookDocument,
    WorkflowDocument,
    at,
    invalid_document,
    kind_of,
    show_endpoint,
    show_location,
)

AGENT_NODE: Final = "agent"
"""Id of the one node of an agent's own plan."""
SCRIPTED: Final = "scripted/"
MAX_PLAN_BYTES: Final = 900_000
"""Plans travel as one message; the server's default limit is 1 MiB, headers included."""

_RUN_ROOTS: Final = ("input", "run", "session", "steps")
_TOOL_ROOTS: Final = ("input", "run", "session")
_SCRIPT_ROOTS: Final = ("input", "tools")
_REQUEST_ROOTS: Final = ("arguments",)
_RESPONSE_ROOTS: Final = ("arguments", "body", "headers", "status")
_WEBHOOK_ROOTS: Final = ("headers", "payload")

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


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a document compiles to: the bytes that are published, and their digest."""

    body: bytes
    digest: str


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


def compile_document(document: Document, catalog: Catalog, *, path: str = "") -> Artifact:
    """Compile one document against all that it may name.

    Args:
        document: What to compile.
        catalog: Every document that it may name.
        path: Prefix of all places in errors.

    Raises:
        RejectedError: ``invalid_document`` with every fault; ``plan_too_large``.
    """
    faults = list(_faults(document, catalog, path))
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


def all_faults(parsed: Parsed, others: Catalog) -> list[ErrorDetail]:
    """Return every fault of some documents of which not all could be read.

    Args:
        parsed: The documents.
        others: What else they may name.
    """
    catalog = replace(
        others.plus(one.document for one in parsed.placed), unreadable=parsed.unreadable
    )
    found = list(parsed.faults)
    for one in parsed.placed:
        found.extend(_faults(one.document, catalog, one.path))
    return found


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
    needs = _needs(document)
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


def _needs(document: WorkflowDocument) -> list[tuple[str, ...]]:
    steps = document.spec.steps
    return [
        tuple(dict.fromkeys(step.depends_on))
        if step.depends_on is not None
        else ((steps[index - 1].id,) if index else ())
        for index, step in enumerate(steps)
    ]


# Faults


def _faults(document: Document, catalog: Catalog, path: str) -> Iterator[ErrorDetail]:
    spec_path = at(path, "spec")
    match document:
        case ToolDocument():
            yield from _tool_faults(document, spec_path)
        case AgentDocument():
            yield from _name_taken(document, catalog.workflows, "workflow", path)
            yield from _agent_faults(document, catalog, spec_path)
        case WorkflowDocument():
            yield from _name_taken(document, catalog.agents, "agent", path)
            yield from _workflow_faults(document, catalog, spec_path)
        case WebhookDocument():
            yield from _webhook_faults(document, catalog, spec_path)


def _name_taken(
    document: Document, others: Mapping[str, Document], kind: str, path: str
) -> Iterator[ErrorDetail]:
    name = document.metadata.name
    if name in others:
        message = f"{name!r} is the name of {kind} already; both are started by name"
        yield ErrorDetail(path=at(path, "metadata.name"), message=message)


def _one_of(given: Mapping[str, object], path: str) -> Iterator[ErrorDetail]:
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        message = f"has {' and '.join(found)}" if found else "has none of these"
        yield ErrorDetail(path=path, message=message, allowed=f"exactly one of {', '.join(given)}")


def _known(name: str, names: Iterable[str], kind: str, path: str) -> Iterator[ErrorDetail]:
    known = sorted(names)
    if name not in known:
        allowed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        yield ErrorDetail(
            path=path, message=f"there is no {kind} {name!r}", allowed=allowed or f"no {kind} yet"
        )


def _repeated(names: Iterable[str], path: str) -> Iterator[ErrorDetail]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield ErrorDetail(path=f"{path}[{index}]", message=f"{name!r} is named twice")
        seen.add(name)


def _tool_faults(document: ToolDocument, path: str) -> Iterator[ErrorDetail]:
    spec = document.spec
    yield from _one_of({"builtin": spec.builtin, "http": spec.http, "runner": spec.runner}, path)
    parameters_path = at(path, "parameters")
    schema_faults = list(_schema_faults(spec.parameters, parameters_path))
    yield from schema_faults
    if spec.parameters.get("type") != "object":
        yield ErrorDetail(
            path=at(parameters_path, "type"),
            message=f"got {spec.parameters.get('type')!r}",
            allowed="object",
        )
    properties = spec.parameters.get("properties", {})
    known = properties if isinstance(properties, dict) else {}
    for name, source in spec.sources.items():
        source_path = at(path, f"sources.{name}")
        if not schema_faults:
            yield from _known(name, known, "parameter", source_path)
        if source.source != "agent" and source.value is None:
            yield ErrorDetail(path=at(source_path, "value"), message="is missing")
        yield from _template_faults(source.value, at(source_path, "value"), _TOOL_ROOTS)
    if spec.http is not None:
        yield from _http_faults(spec.http, known, at(path, "http"))


def _http_faults(spec: HttpSpec, parameters: Iterable[str], path: str) -> Iterator[ErrorDetail]:
    if spec.body is not None and spec.json_body is not None:
        message = "has body and json"
        yield ErrorDetail(path=path, message=message, allowed="one of body, json")
    headers = {name: text for name, text in spec.headers.items() if isinstance(text, str)}
    places: list[tuple[str, JsonValue, tuple[str, ...]]] = [
        ("url", spec.url, _REQUEST_ROOTS),
        ("headers", dict(headers), _REQUEST_ROOTS),
        ("query", spec.query, _REQUEST_ROOTS),
        ("json", spec.json_body, _REQUEST_ROOTS),
        ("body", spec.body, _REQUEST_ROOTS),
        ("response", spec.response, _RESPONSE_ROOTS),
    ]
    for name, template, roots in places:
        yield from _template_faults(
            template, at(path, name), roots, members={"arguments": ("parameter", parameters)}
        )


def _schema_faults(schema: Mapping[str, JsonValue], path: str) -> Iterator[ErrorDetail]:
    checker = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    for error in sorted(checker.iter_errors(schema), key=lambda error: list(map(str, error.path))):
        allowed = None
        if error.validator == "enum":
            allowed = ", ".join(map(str, error.validator_value))
        elif error.validator == "type":
            allowed = str(error.validator_value)
        elif error.validator == "anyOf":
            types = [part.get("$ref", "") for part in error.validator_value]
            if any(ref.endswith("simpleTypes") for ref in types):
                allowed = "array, boolean, integer, null, number, object, string"
        yield ErrorDetail(
            path=at(path, show_location(error.absolute_path)),
            message=f"not JSON Schema: {error.message[:200]}",
            allowed=allowed,
        )


def _agent_faults(document: AgentDocument, catalog: Catalog, path: str) -> Iterator[ErrorDetail]:
    spec = document.spec
    yield from _one_of({"model": spec.model, "endpoint": spec.endpoint}, path)
    if spec.script is not None:
        script_path = at(path, "script")
        if spec.model is None or not spec.model.startswith(SCRIPTED):
            yield ErrorDetail(
                path=script_path,
                message="only a scripted model has turns",
                allowed=f"model: {SCRIPTED}NAME",
            )
        script = spec.script.model_dump(mode="json", exclude_unset=True)
        yield from _template_faults(script, script_path, _SCRIPT_ROOTS)
    # The steps are those of whichever workflow the agent is run in, if any.
    yield from _template_faults(spec.instructions, at(path, "instructions"), _RUN_ROOTS)
    tools_path = at(path, "tools")
    yield from _repeated(spec.tools, tools_path)
    for index, name in enumerate(spec.tools):
        yield from _known(name, catalog.names("tools"), "tool", f"{tools_path}[{index}]")


def _workflow_faults(
    document: WorkflowDocument, catalog: Catalog, path: str
) -> Iterator[ErrorDetail]:
    spec = document.spec
    steps_path = at(path, "steps")
    seen: dict[str, str] = {}
    for index, step in enumerate(spec.steps):
        place = f"{steps_path}[{index}]"
        if (twin := seen.get(step.id.lower())) is not None:
            message = f"{step.id!r} repeats {twin!r}; ids are compared ignoring case"
            yield ErrorDetail(path=f"{place}.id", message=message)
        seen.setdefault(step.id.lower(), step.id)
        yield from _one_of({"agent": step.agent, "tool": step.tool}, place)
        if step.agent is not None:
            yield from _known(step.agent, catalog.names("agents"), "agent", f"{place}.agent")
        if step.tool is not None:
            yield from _known(step.tool, catalog.names("tools"), "tool", f"{place}.tool")
            tool = catalog.tools.get(step.tool)
            if tool is not None:
                yield from _argument_faults(step.input, tool, f"{place}.input")
    yield from _order_faults(document, path)


def _argument_faults(given: JsonValue, tool: ToolDocument, path: str) -> Iterator[ErrorDetail]:
    """Check which arguments a step gives, as far as that can be seen before it runs."""
    parameters = tool.spec.parameters
    if isinstance(given, str) and "{{" in given:
        return
    if given is not None and not isinstance(given, dict):
        yield ErrorDetail(path=path, message=f"got {given!r}"[:200], allowed="an object")
        return
    properties = parameters.get("properties")
    known = list(properties) if isinstance(properties, dict) else []
    names = list(given or ())
    if parameters.get("additionalProperties") is False:
        for name in names:
            yield from _known(name, known, "parameter", at(path, name))
    required = parameters.get("required")
    provided = {name for name, source in tool.spec.sources.items() if source.source != "agent"}
    for needed in required if isinstance(required, list) else []:
        if needed not in names and needed not in provided:
            yield ErrorDetail(path=at(path, str(needed)), message="is missing")


def _order_faults(document: WorkflowDocument, path: str) -> Iterator[ErrorDetail]:
    """Check what the order of the steps decides: who waits for whom, who may read whom."""
    spec = document.spec
    steps_path = at(path, "steps")
    ids = [step.id for step in spec.steps]
    needs = _needs(document)
    for index, step in enumerate(spec.steps):
        for position, needed in enumerate(step.depends_on or ()):
            place = f"{steps_path}[{index}].depends_on[{position}]"
            yield from _known(needed, ids, "step", place)
    above = _ancestors(dict(zip(ids, needs, strict=True)))
    for index, step in enumerate(spec.steps):
        place = f"{steps_path}[{index}]"
        if step.id in above[step.id]:
            circle = sorted(other for other in above[step.id] if step.id in above.get(other, ()))
            message = f"waits for itself, by way of {', '.join(circle)}"
            yield ErrorDetail(path=f"{place}.depends_on", message=message)
            continue
        yield from _template_faults(
            step.input,
            f"{place}.input",
            _RUN_ROOTS,
            members={"steps": ("step", above[step.id])},
            later=ids,
        )
    yield from _template_faults(
        spec.output, at(path, "output"), _RUN_ROOTS, members={"steps": ("step", ids)}
    )


def _ancestors(needs: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Return for each step all those that are done before it starts (itself, in a circle)."""
    found: dict[str, set[str]] = {}
    for step_id in needs:
        seen: set[str] = set()
        waiting = [needed for needed in needs[step_id] if needed in needs]
        while waiting:
            needed = waiting.pop()
            if needed not in seen:
                seen.add(needed)
                waiting.extend(other for other in needs[needed] if other in needs)
        found[step_id] = seen
    return found


def _webhook_faults(
    document: WebhookDocument, catalog: Catalog, path: str
) -> Iterator[ErrorDetail]:
    spec = document.spec
    targets = catalog.names("agents") | catalog.names("workflows")
    yield from _known(spec.target, targets, "agent or workflow", at(path, "target"))
    yield from _repeated(spec.secrets, at(path, "secrets"))
    yield from _template_faults(spec.input, at(path, "input"), _WEBHOOK_ROOTS)


def _template_faults(
    template: JsonValue,
    path: str,
    roots: tuple[str, ...],
    *,
    members: Mapping[str, tuple[str, Iterable[str]]] | None = None,
    later: Iterable[str] = (),
) -> Iterator[ErrorDetail]:
    """Check every ``{{ path }}`` of a template.

    Args:
        template: Any JSON value.
        path: Where it stands.
        roots: What a path may begin with.
        members: For some roots what their members are called, and which there are.
        later: Steps that there are, but that need not be done by then.
    """
    try:
        found = list(references(template, path))
    except RejectedError as error:
        yield from error.details
        return
    for place, parts in found:
        root = str(parts[0])
        if root not in roots:
            yield ErrorDetail(
                path=place, message=f"there is no {root!r} here", allowed=", ".join(roots)
            )
            continue
        kind, known = (members or {}).get(root, ("", ()))
        member = str(parts[1]) if len(parts) > 1 else None
        if not kind or member is None or member in known:
            continue
        if member in later:
            message = f"{kind} {member!r} need not be done by then; name it in depends_on"
        else:
            message = f"there is no {kind} {member!r}"
        allowed = ", ".join(sorted(known)) or f"no {kind}"
        yield ErrorDetail(path=place, message=message, allowed=allowed)
