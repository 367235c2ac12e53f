"""An HTTP tool's request: what its definition says, rendered over the arguments of one call.

Values that go into a URL are percent-encoded, so that an argument can neither add a path segment
nor a query nor change the host, unless the whole URL is one argument.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.json import Json, JsonObject
from penstock.expressions.templates import render

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
DEFAULT_MAX_RESPONSE_BYTES: Final = 1024 * 1024
SECRET_NAME: Final = r"^[A-Za-z0-9_]{1,64}$"

_SAFE: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEADER_NAME: Final = re.compile(r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
_WHOLE: Final = re.compile(r"\s*\{\{[^{}]*\}\}\s*")


class Secret(BaseModel):
    """A header's value by reference: only the runner ever sees the secret itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: str = Field(pattern=SECRET_NAME)
    """``NAME`` of the variable ``PENSTOCK_SECRET_NAME`` in the runner's environment."""
    prefix: str = ""
    """Put before it, such as ``Bearer`` with a space."""


class HttpTool(BaseModel):
    """The ``http`` part of a tool's definition. Strings are templates over ``arguments``."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str
    headers: dict[str, str | Secret] = {}
    query: JsonObject = {}
    json_body: Json = Field(default=None, alias="json")
    body: str | None = None
    """A body of text, instead of ``json``."""
    response: Json = "{{ body }}"
    """Template of the output over ``status``, ``headers``, ``body`` and ``arguments``."""
    timeout_seconds: float = Field(default=DEFAULT_TIMEOUT_SECONDS, gt=0)
    max_response_bytes: int = Field(default=DEFAULT_MAX_RESPONSE_BYTES, ge=1, le=64 * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Request:
    """The request to send."""

    method: str
    url: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    secrets: dict[str, Secret]
    json_body: Json
    text: str | None


def read_tool(config: Json) -> tuple[HttpTool, Json]:
    """Return an HTTP tool's request and the schema of its arguments from a step's config.

    Raises:
        RejectedError: ``invalid_tool``.
    """
    if not isinstance(config, dict) or "http" not in config:
        raise RejectedError("invalid_tool", "the step's config has no 'http'")
    try:
        tool = HttpTool.model_validate(config["http"])
    except ValidationError as error:
        details = tuple(
            finding(".".join(("http", *map(str, found["loc"]))), found["msg"])
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise RejectedError(
            "invalid_tool", f"{details[0].path}: {details[0].message}", details=details
        ) from error
    return tool, config.get("parameters")


def build_request(tool: HttpTool, arguments: Mapping[str, Json]) -> Request:
    """Render a request.

    Raises:
        RejectedError: ``template_unresolved``, ``invalid_arguments`` or ``invalid_tool``.
    """
    scope: JsonObject = {"arguments": dict(arguments)}
    headers: dict[str, str] = {}
    secrets: dict[str, Secret] = {}
    for name, value in tool.headers.items():
        if not _HEADER_NAME.match(name):
            raise RejectedError("invalid_tool", f"http.headers: {name!r} is no header name")
        if isinstance(value, Secret):
            secrets[name] = value
        else:
            headers[name] = _header_value(name, _text(render(value, scope)))
    return Request(
        method=tool.method,
        url=_render_url(tool.url, scope),
        query=tuple(_query(tool.query, scope)),
        headers=headers,
        secrets=secrets,
        json_body=render(tool.json_body, scope),
        text=None if tool.body is None else _text(render(tool.body, scope)),
    )


def _header_value(name: str, value: str) -> str:
    if any(character in value for character in "\r\n\0"):
        raise RejectedError("invalid_arguments", f"header {name!r} would hold a line break")
    return value


def _render_url(template: str, scope: Mapping[str, Json]) -> str:
    if _WHOLE.fullmatch(template):
        return _text(render(template.strip(), scope))
    return _text(render(template, {"arguments": _quoted(scope["arguments"])}))


def _quoted(value: Json) -> Json:
    if isinstance(value, str):
        if value in (".", ".."):
            raise RejectedError("invalid_arguments", "'.' and '..' have no place in a URL")
        return _quote(value)
    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    return value


@lru_cache(maxsize=1024)
def _quote(text: str) -> str:
    return "".join(
        chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in text.encode("utf-8", "replace")
    )


def _query(query: Mapping[str, Json], scope: Mapping[str, Json]) -> list[tuple[str, str]]:
    """Return the query's pairs: a list gives several, ``null`` none."""
    pairs: list[tuple[str, str]] = []
    for name, template in query.items():
        value = render(template, scope)
        items = value if isinstance(value, list) else [value]
        pairs.extend((name, _text(item)) for item in items if item is not None)
    return pairs


def _text(value: Json) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def map_response(
    tool: HttpTool,
    arguments: Mapping[str, Json],
    *,
    status: int,
    headers: Mapping[str, str],
    body: Json,
) -> Json:
    """Return the tool's output.

    Raises:
        RejectedError: ``template_unresolved``: the response is not of the expected shape.
    """
    return render(
        tool.response,
        {
            "arguments": dict(arguments),
            "status": status,
            "headers": dict(headers),
            "body": body,
        },
    )
