"""Checks of documents in the context of all others: every fault at once, each with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.json_schema import schema_faults
from penstock.contracts.models import model_faults, parameter_faults
from penstock_registry.core.catalog import Catalog
from penstock_registry.core.documents import (
    AgentDocument,
    AgentSpec,
    Document,
    HmacSpec,
    NetworkDocument,
    ScheduleDocument,
    ToolDocument,
    WebhookDocument,
    WorkflowDocument,
)
from penstock_registry.core.expression_scope import RUN_ROOTS, ExpressionScope, template_faults
from penstock_registry.core.faults import choice_faults, known_faults, repeated_faults
from penstock_registry.core.networks import network_faults
from penstock_registry.core.places import at
from penstock_registry.core.reading import Parsed
from penstock_registry.core.requests import form_faults
from penstock_registry.core.schedules import schedule_faults
from penstock_registry.core.workflows import workflow_faults

SCRIPTED: Final = "scripted/"
_SOURCE: Final = ExpressionScope.of("input", "run", "session", "secrets")
_SCRIPT: Final = ExpressionScope.of("input", "tools")
_WEBHOOK: Final = ExpressionScope.of("headers", "payload")


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
        found.extend(faults_of(one.document, catalog, one.path))
    return found


def faults_of(document: Document, catalog: Catalog, path: str) -> Iterator[ErrorDetail]:
    """Yield every fault of one document among those that it may name."""
    spec_path = at(path, "spec")
    match document:
        case ToolDocument():
            yield from _tool_faults(document, spec_path)
        case AgentDocument():
            yield from _name_taken(document, catalog, path)
            yield from _agent_faults(document.spec, catalog, spec_path)
        case WorkflowDocument():
            yield from _name_taken(document, catalog, path)
            yield from workflow_faults(document, catalog, spec_path)
        case NetworkDocument():
            yield from _name_taken(document, catalog, path)
            yield from network_faults(document, catalog, spec_path)
            for index, member in enumerate(document.spec.agents):
                if member.spec is not None:
                    place = f"{spec_path}.agents[{index}].spec"
                    yield from _agent_faults(member.spec, catalog, place)
        case WebhookDocument():
            yield from _webhook_faults(document, catalog, spec_path)
        case ScheduleDocument():
            yield from schedule_faults(document.spec, catalog.runnables(), spec_path)


def _name_taken(document: Document, catalog: Catalog, path: str) -> Iterator[ErrorDetail]:
    name = document.metadata.name
    others: Mapping[str, Mapping[str, Document]] = {
        "Agent": catalog.agents,
        "Workflow": catalog.workflows,
        "Network": catalog.networks,
    }
    for kind, named in others.items():
        if kind != document.kind and name in named:
            message = f"{name!r} is the name of {kind.lower()} already; both are started by name"
            yield finding(at(path, "metadata.name"), message)


def _tool_faults(document: ToolDocument, path: str) -> Iterator[ErrorDetail]:
    spec = document.spec
    yield from choice_faults(spec, path)
    parameters_path = at(path, "parameters")
    broken = list(schema_faults(spec.parameters, parameters_path))
    yield from broken
    if spec.parameters.get("type") != "object":
        yield finding(at(parameters_path, "type"), f"got {spec.parameters.get('type')!r}", "object")
    properties = spec.parameters.get("properties", {})
    known = properties if isinstance(properties, dict) else {}
    for name, source in spec.sources.items():
        source_path = at(path, f"sources.{name}")
        if not broken:
            yield from known_faults(name, known, "parameter", source_path)
        if source.source != "agent" and source.value is None:
            yield finding(at(source_path, "value"), "is missing")
        yield from template_faults(source.value, at(source_path, "value"), _SOURCE)
    if spec.http is not None:
        request = ExpressionScope.of("arguments", arguments=known)
        answer = request.plus("body", "headers", "status")
        yield from form_faults(spec.http, at(path, "http"), request, answer)
    if spec.approval is not None:
        call = ExpressionScope.of("arguments", "input", "run", "session", arguments=known)
        yield from template_faults(spec.approval.message, at(path, "approval.message"), call)
        if spec.policy != "require_approval":
            message = f"no approval is requested with policy {spec.policy!r}"
            yield finding(at(path, "approval"), message, "policy: require_approval")
    if spec.client is not None:
        for field in ("at_most_once", "heartbeat_seconds"):
            if field in spec.model_fields_set:
                message = "no runner executes a client's tool"
                yield finding(at(path, field), message)


def _agent_faults(spec: AgentSpec, catalog: Catalog, path: str) -> Iterator[ErrorDetail]:
    yield from choice_faults(spec, path)
    if spec.script is not None:
        script_path = at(path, "script")
        if spec.model is None or not spec.model.startswith(SCRIPTED):
            yield finding(script_path, "only a scripted model has turns", f"model: {SCRIPTED}NAME")
        script = spec.script.model_dump(mode="json", exclude_unset=True)
        yield from template_faults(script, script_path, _SCRIPT)
    if spec.model is not None and not spec.model.startswith(SCRIPTED):
        yield from model_faults(spec.model, at(path, "model"))
        yield from parameter_faults(spec.model, spec.parameters, at(path, "parameters"))
    # The steps are those of whichever workflow the agent is run in, if any.
    yield from template_faults(
        spec.instructions, at(path, "instructions"), ExpressionScope(RUN_ROOTS)
    )
    tools_path = at(path, "tools")
    yield from repeated_faults(spec.tools, tools_path)
    for index, name in enumerate(spec.tools):
        yield from known_faults(
            name, catalog.names(catalog.tools), "tool", f"{tools_path}[{index}]"
        )


def _webhook_faults(
    document: WebhookDocument, catalog: Catalog, path: str
) -> Iterator[ErrorDetail]:
    spec = document.spec
    targets = catalog.runnables()
    yield from known_faults(spec.target, targets, "agent, network or workflow", at(path, "target"))
    yield from repeated_faults(spec.secrets, at(path, "secrets"))
    yield from template_faults(spec.input, at(path, "input"), _WEBHOOK)
    if (spec.scheme == "hmac") != (spec.hmac is not None):
        message = "describes the signature of the scheme hmac, and of no other"
        yield finding(at(path, "hmac"), message, "{header: NAME}, with scheme: hmac")
    if spec.verify_token is not None and spec.scheme != "meta":
        message = f"senders of the scheme {spec.scheme} show no token"
        yield finding(at(path, "verify_token"), message, "scheme: meta")
    if spec.hmac is not None:
        yield from _hmac_faults(spec.hmac, at(path, "hmac"))


def _hmac_faults(form: HmacSpec, path: str) -> Iterator[ErrorDetail]:
    for part, header in (("id", form.id_header), ("timestamp", form.timestamp_header)):
        count = form.signed.count(f"{{{part}}}")
        if count > 1:
            yield finding(at(path, "signed"), f"contains {{{part}}} twice")
        if count and header is None:
            message = f"is missing: {{{part}}} is signed"
            yield finding(at(path, f"{part}_header"), message, "name of a header")
    if form.timestamp_header is not None and "{timestamp}" not in form.signed:
        message = "is not signed, so it proves nothing"
        yield finding(at(path, "timestamp_header"), message, "{timestamp} in signed")
