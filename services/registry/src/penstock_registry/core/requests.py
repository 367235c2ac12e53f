"""Requests: an ``http`` step becomes a tool that only that step calls.

The engine renders everything that depends on the run into the call's arguments, so that the log
and approvers show the values sent; the tool's request puts the arguments in their places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.json import JsonObject
from penstock.contracts.plan import CompiledTool
from penstock.expressions.templates import split
from penstock_registry.core.documents import HttpSpec
from penstock_registry.core.expression_scope import ExpressionScope, template_faults
from penstock_registry.core.parts import SecretHeader
from penstock_registry.core.places import at
from penstock_registry.core.steps import HttpForm, HttpRequest

QUEUE_SECONDS: Final = 30.0
"""Time that a request may wait for a runner, beside the time for its answer."""

_ANSWER: Final = ExpressionScope.of("status", "headers", "body")
_SECRET: Final = re.compile(r"([^{}]*)\{\{\s*secrets\.([A-Za-z][A-Za-z0-9_]*)\s*\}\}")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


class Call(NamedTuple):
    """A tool that sends a request, and the template of the arguments that it is called with."""

    tool: CompiledTool
    arguments: JsonObject


def request_faults(
    request: HttpRequest, path: str, scope: ExpressionScope
) -> Iterator[ErrorDetail]:
    """Yield the errors of a request.

    Args:
        request: The request.
        path: Where it stands.
        scope: What its templates see.
    """
    for field, names in (("headers", request.headers), ("query", request.query)):
        for name in names:
            if not _NAME.fullmatch(name):
                allowed = "letters, digits, '_' and '-'"
                yield finding(at(path, field), f"got {name!r}"[:200], allowed)
    yield from form_faults(request, path, scope, _ANSWER)


def form_faults(
    form: HttpForm, path: str, scope: ExpressionScope, answer: ExpressionScope
) -> Iterator[ErrorDetail]:
    """Yield the errors of a request's form.

    Args:
        form: The form.
        path: Where it stands.
        scope: What its templates see.
        answer: What the template of its output sees.
    """
    if form.body is not None and form.json_body is not None:
        yield finding(path, "has body and json", "one of body, json")
    headers = {name: text for name, text in form.headers.items() if isinstance(text, str)}
    templates: JsonObject = {
        "url": form.url,
        "headers": dict(headers),
        "query": form.query,
        "json": form.json_body,
        "body": form.body,
    }
    for name, template in templates.items():
        yield from template_faults(template, at(path, name), scope)
    yield from template_faults(form.response, at(path, "response"), answer)


def call_of(name: str, description: str, request: HttpRequest) -> Call:
    """Compile a request.

    Args:
        name: Name of the tool.
        description: What it is for.
        request: What it sends.
    """
    moved = _Arguments({})
    http = HttpSpec.model_validate(
        {
            **request.model_dump(by_alias=True, exclude={"queue", "at_most_once"}),
            "url": moved.url(request.url),
            "headers": moved.headers(request.headers),
            "query": moved.members("query", request.query),
            "json": moved.whole("json", request.json_body),
            "body": moved.whole("body", request.body),
        }
    )
    schema: JsonObject = {"type": "object", "properties": {key: {} for key in moved.templates}}
    body = http.model_dump(mode="json", by_alias=True, exclude={"queue"})
    tool = CompiledTool(
        name=name,
        description=description,
        queue=request.queue,
        parameters=schema,
        config={"http": body, "parameters": schema},
        timeout_seconds=request.timeout_seconds + QUEUE_SECONDS,
        at_most_once=request.at_most_once,
    )
    return Call(tool, moved.templates)


_FIELDS: Final = frozenset({"url", "headers", "query", "json", "body"})


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Moves templates over the run out of a request, each to an argument of the call."""

    templates: JsonObject

    def url(self, text: str) -> str:
        parts = split(text)
        if len(parts) == 1 and parts[0][1]:
            return str(self.whole("url", text))
        url = ""
        names: dict[str, str] = {}
        for part, template in parts:
            if not template:
                url += part
                continue
            if part not in names:
                names[part] = _argument_name(part, names.values())
                self.templates[names[part]] = f"{{{{ {part} }}}}"
            url += f"{{{{ arguments.{names[part]} }}}}"
        return url

    def headers(self, headers: Mapping[str, str | SecretHeader]) -> JsonObject:
        """Return the headers; one that ends in a secret is filled in by the tool-runner alone."""
        fixed: JsonObject = {}
        plain: dict[str, str] = {}
        for name, value in headers.items():
            if isinstance(value, SecretHeader):
                fixed[name] = value.model_dump(mode="json")
            elif (found := _SECRET.fullmatch(value)) is not None:
                fixed[name] = {"secret": found[2], "prefix": found[1]}
            else:
                plain[name] = value
        return {**self.members("headers", plain), **fixed}

    def members(self, field: str, given: Mapping[str, JsonValue]) -> JsonObject:
        moved = {name: value for name, value in given.items() if _templated(value)}
        if moved:
            self.templates[field] = moved
        references = {name: f'{{{{ arguments.{field}["{name}"] }}}}' for name in moved}
        return {**given, **references}

    def whole(self, field: str, value: JsonValue) -> JsonValue:
        if not _templated(value):
            return value
        self.templates[field] = value
        return f"{{{{ arguments.{field} }}}}"


def _argument_name(expression: str, others: Iterable[str]) -> str:
    """Return a readable name for an argument, such as ``input_city``."""
    used = {*others, *_FIELDS}
    stem = "_".join(re.findall(r"[A-Za-z0-9]+", expression))[:40] or "part"
    stem = stem if stem[0].isalpha() else f"part_{stem}"
    name, number = stem, 1
    while name in used:
        number += 1
        name = f"{stem}_{number}"
    return name


def _templated(value: JsonValue) -> bool:
    if isinstance(value, str):
        return "{{" in value
    if isinstance(value, dict):
        return any(_templated(one) for one in value.values())
    return isinstance(value, list) and any(_templated(one) for one in value)
