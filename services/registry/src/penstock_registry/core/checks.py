"""Checks: what is wrong with documents among others, every fault at once, each with its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.templates import references
from penstock_registry.core.catalog import Catalog, needs_of
from penstock_registry.core.documents import (
    AgentDocument,
    Document,
    HttpSpec,
    ToolDocument,
    WebhookDocument,
    WorkflowDocument,
)
from penstock_registry.core.places import at, show_location
from penstock_registry.core.reading import Parsed

SCRIPTED: Final = "scripted/"
_RUN_ROOTS: Final = ("input", "run", "session", "steps")
_TOOL_ROOTS: Final = ("input", "run", "session")
_SCRIPT_ROOTS: Final = ("input", "tools")
_REQUEST_ROOTS: Final = ("arguments",)
_RESPONSE_ROOTS: Final = ("arguments", "body", "headers", "status")
_WEBHOOK_ROOTS: Final = ("headers", "payload")


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
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - heavy, and only tools need it

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
    needs = needs_of(document)
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
