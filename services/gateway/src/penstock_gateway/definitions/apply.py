"""``POST /v1/apply``: documents of any kind, stored all or none."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from pydantic import JsonValue, ValidationError

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.rpc import Applied, ApplyDocuments
from penstock.texts import TextError, decode_text, read_json
from penstock_gateway.context import Admin, GatewayParts
from penstock_gateway.core.requests import Input
from penstock_gateway.openapi import OpenApi
from penstock_gateway.raw import refused, require_envelope, require_type


class ApplyBody(Input):
    """Documents to store, all or none."""

    documents: tuple[JsonValue, ...]
    publish: bool = True


application: Final = APIRouter(tags=["definitions"])

_TEXTS: Final = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain")
_APPLY_BODY: Final[OpenApi] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"type": "object", "description": "`documents` and `publish`"},
                        {"type": "object", "description": "One document"},
                        {"type": "array", "items": {"type": "object"}},
                    ]
                }
            },
            "application/yaml": {"schema": {"description": "Documents, separated by `---`"}},
        },
    }
}


@application.post("/v1/apply", openapi_extra=_APPLY_BODY)
async def apply(
    gateway: GatewayParts,
    caller: Admin,
    request: Request,
    publish: Annotated[bool | None, Query()] = None,
) -> Applied:
    """Store documents (YAML or JSON), all or none, and bring them into force."""
    content_type = request.headers.get("content-type")
    require_type(None if content_type is None else content_type.encode("latin-1"), *_TEXTS)
    parsed = _documents((content_type or "").lower(), await request.body())
    apply_request = ApplyDocuments(
        tenant=caller.tenant,
        documents=parsed.documents,
        publish=parsed.publish if publish is None else publish,
    )
    applied = await gateway.registry.ask("apply", apply_request, Applied)
    for result in applied.results:
        await gateway.registry.refresh(caller.tenant, result.kind, result.name)
    return applied


def _documents(content_type: str, body: bytes) -> ApplyBody:
    """Read the documents to apply: an envelope, one document, several, or YAML."""
    try:
        text = decode_text(body)
    except TextError as error:
        code = "malformed_json" if "json" in content_type else "malformed_yaml"
        raise RejectedError(
            code, "the body is not text in UTF-8", details=(finding("", str(error), "UTF-8"),)
        ) from error
    if not text.strip():
        raise RejectedError(
            "invalid_request",
            "the body holds no document",
            details=(finding("body", "is empty", "documents as YAML or JSON"),),
        )
    is_json = "json" in content_type or (
        "yaml" not in content_type and text.lstrip().startswith(("{", "["))
    )
    if not is_json:
        return ApplyBody(documents=(text,))
    require_envelope(text.encode())
    try:
        parsed: JsonValue = read_json(text)
    except TextError as error:
        raise RejectedError(
            "malformed_json", "the body is not JSON", details=(finding("", str(error)),)
        ) from error
    if isinstance(parsed, list):
        return ApplyBody(documents=tuple(parsed))
    if isinstance(parsed, dict) and "apiVersion" in parsed:
        return ApplyBody(documents=(parsed,))
    try:
        return ApplyBody.model_validate(parsed)
    except ValidationError as error:
        raise refused(error) from error
