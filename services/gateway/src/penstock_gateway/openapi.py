"""The OpenAPI document: what FastAPI does not see of raw routes, and what it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Final, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, JsonValue

from penstock.runs.replies import Problem
from penstock_gateway.core.problems import MEDIA_TYPE

OpenApi = dict[str, Any]
"""A part of an OpenAPI document, in the form that FastAPI takes: nested to any depth."""

OLDER: Final = "older paths"
_JSON: Final = "application/json"
_NO_NUL: Final = "^[^\\u0000]*$"
_COMPONENTS: Final = "#/components/schemas/"
_PROBLEM: Final = {"$ref": "#/components/responses/Problem"}
_PUBLIC: Final = ("/health", "/hooks/", "/webhooks/generic")
"""Paths that need no API key; deliveries of webhooks are signed instead."""
DONE_BEFORE: Final[dict[int | str, OpenApi]] = {200: {"description": "It was so already"}}
"""Further answer of an operation that answers 201 or 202, with the same body."""
NOT_MODIFIED: Final[OpenApi] = {"description": "The client has the answer already"}

_TAGS: Final = {
    "runs": "Start, read, follow, control and repeat runs",
    "signals": "Events and messages for runs",
    "approvals": "Questions of runs to people",
    "tool calls": "Tools that the caller of a run executes, and lost attempts",
    "sessions": "Conversations",
    "definitions": "Documents of any kind at once",
    "agents": "Definitions of agents",
    "tools": "Definitions of tools",
    "workflows": "Definitions of workflows",
    "networks": "Definitions of networks",
    "webhooks": "Definitions of webhooks, and their deliveries",
    "schedules": "Definitions of schedules, and their ticks",
    "dead letters": "Messages that were given up",
    "runners": "Processes that execute steps",
    "reports": "Cost, profiles and the state of the archive",
    "usage": "Tokens and cost by model",
    "keys": "API keys",
    "tenants": "Data of tenants",
    "health": "Health of the gateway",
    OLDER: "Paths of other systems, with the effect of those above",
}


def json_body(
    model: type[BaseModel], *, example: JsonValue = None, required: bool = True
) -> OpenApi:
    """Return the OpenAPI description of a JSON body; ``document`` names its schemas."""
    content: OpenApi = {"schema": schema_of(model)}
    if example is not None:
        content["example"] = example
    return {"required": required, "content": {_JSON: content}}


def schema_of(
    model: type[BaseModel], mode: Literal["validation", "serialization"] = "validation"
) -> OpenApi:
    """Return the schema of a model with the schemas that it refers to in ``$defs``."""
    return model.model_json_schema(ref_template=_COMPONENTS + "{model}", mode=mode)


def parameter(
    place: Literal["path", "query", "header"],
    name: str,
    description: str,
    kind: str = "string",
    **bounds: int | str,
) -> OpenApi:
    """Return the OpenAPI description of a parameter; ``bounds`` belong to its schema."""
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"type": kind, **bounds},
    }


IF_NONE_MATCH: Final = parameter(
    "header", "If-None-Match", "The `ETag` of an earlier answer; 304 if it is still the same."
)


class Api(FastAPI):
    """An application whose OpenAPI document is complete."""

    def openapi(self) -> OpenApi:
        """Return the document, made at the first call.

        FastAPI's is completed by security, errors, tags and the schemas of raw routes.
        """
        if self.openapi_schema is None:
            self.openapi_schema = _completed(
                get_openapi(
                    title=self.title,
                    version=self.version,
                    summary=self.summary,
                    description="Agents and workflows whose runs survive crashes: every run is "
                    "folded from an append-only log. Errors are problem documents (RFC 9457).",
                    license_info={"name": "Apache 2.0", "identifier": "Apache-2.0"},
                    contact={"name": "The developers of Penstock"},
                    servers=[{"url": "/", "description": "This gateway"}],
                    tags=[
                        {"name": name, "description": about + "."} for name, about in _TAGS.items()
                    ],
                    routes=self.routes,
                )
            )
        return self.openapi_schema


def _completed(document: OpenApi) -> OpenApi:
    components = document["components"]
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key."}
    }
    components["responses"] = {
        "Problem": {
            "description": "A problem document (RFC 9457).",
            "content": {
                MEDIA_TYPE: {
                    "schema": schema_of(Problem, "serialization"),
                    "example": {
                        "type": "urn:penstock:problem:unknown_name",
                        "title": "Not Found",
                        "status": 404,
                        "detail": "no agent, workflow or network has the name 'greter'",
                        "code": "unknown_name",
                        "errors": [{"path": "name", "message": "unknown", "allowed": "greeter"}],
                    },
                }
            },
        }
    }
    document["security"] = [{"key": []}]
    _hoist(components["responses"]["Problem"], components["schemas"])
    for path, method, operation in _operations(document):
        _complete_operation(path, method, operation)
        for part in (operation.get("requestBody", {}), *operation["responses"].values()):
            _hoist(part, components["schemas"])
    _shorten_ids(document)
    return document


def _operations(document: OpenApi) -> Iterator[tuple[str, str, OpenApi]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _complete_operation(path: str, method: str, operation: OpenApi) -> None:
    if OLDER in operation["tags"]:
        operation["tags"] = [OLDER]
    if path.startswith(_PUBLIC):
        operation["security"] = []
    for one in operation.get("parameters", ()):
        if one["in"] != "header":
            _require_text(one["schema"])
    responses = operation["responses"]
    if "200" in responses and "content" not in responses["200"]:
        content = next((one["content"] for one in responses.values() if "content" in one), None)
        if content is not None:
            responses["200"]["content"] = deepcopy(content)
    for status in _refusals(path, method):
        responses.setdefault(str(status), _PROBLEM)
    responses["default"] = _PROBLEM
    operation["responses"] = dict(sorted(responses.items()))


def _require_text(schema: OpenApi) -> None:
    """Describe that a parameter holds no U+0000, which no request may have in its URL."""
    for form in (schema, *schema.get("anyOf", ())):
        if form.get("type") == "string" and not form.keys() & {
            "const",
            "enum",
            "format",
            "pattern",
        }:
            form["pattern"] = _NO_NUL


def _refusals(path: str, method: str) -> set[int]:
    """Return the statuses of errors that an operation answers with."""
    statuses = {400, 422, 429, 500, 503}
    if path == "/health":
        return {400}
    if path.startswith(_PUBLIC):
        statuses.add(401)
    else:
        statuses |= {401, 403}
    if "{" in path or method != "get":
        statuses.add(404)
    if method != "get":
        statuses |= {409, 413, 415, 507}
    if path.startswith("/v1/approvals/") and method == "post":
        statuses.add(410)
    return statuses


def _hoist(part: OpenApi, schemas: OpenApi) -> None:
    """Move the schemas of a body into the components, and name its usual form first."""
    content: OpenApi = part.get("content", {})
    if _JSON in content:
        part["content"] = content = {_JSON: content.pop(_JSON), **content}
    for form in content.values():
        schema = form.get("schema", {})
        for name, one in schema.pop("$defs", {}).items():
            schemas.setdefault(name, one)
        if "title" in schema and "properties" in schema:
            schemas.setdefault(schema["title"], schema)
            form["schema"] = {"$ref": _COMPONENTS + schema["title"]}


def _shorten_ids(document: OpenApi) -> None:
    """Name operations as the functions behind them; older paths put their first part before."""
    operations = list(_operations(document))
    for path, method, operation in operations:
        ending = "".join(c if c.isalnum() else "_" for c in path) + f"_{method}"
        operation["operationId"] = operation["operationId"].removesuffix(ending)
    used = Counter(operation["operationId"] for _, _, operation in operations)
    for path, _, operation in operations:
        if used[operation["operationId"]] > 1 and operation["tags"] == [OLDER]:
            first = path.removeprefix("/v1").split("/")[1]
            operation["operationId"] = f"{first}_{operation['operationId']}"
