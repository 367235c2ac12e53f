"""Routes whose cost matters: they get the raw request and give finished bytes.

FastAPI documents them like any other route; what it does not do for them is solving dependencies,
validating parameters and serialising answers, which costs more than all of our own work.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError

from penstock.contracts.errors import RejectedError
from penstock_gateway.core.problems import findings

ModelT = TypeVar("ModelT")


class HotRoute(APIRoute):
    """A route whose endpoint is called with the request alone."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def read(adapter: TypeAdapter[ModelT], body: bytes) -> ModelT:
    """Read a JSON body.

    Raises:
        RejectedError: ``malformed_json``, or ``invalid_request`` with every finding.
    """
    try:
        return adapter.validate_json(body or b"{}")
    except ValidationError as error:
        raise refused(error) from error


def refused(error: ValidationError) -> RejectedError:
    """Return what was found wrong with a body as one of our own errors."""
    found = findings(error)
    if any(one["type"] == "json_invalid" for one in error.errors(include_url=False)):
        return RejectedError("malformed_json", "the body is not JSON", details=found)
    return RejectedError(
        "invalid_request", "the body does not have the expected form", details=found
    )


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    # Nested models are written in place: FastAPI does not know of this model.
    definitions = schema.pop("$defs", {})
    return {
        "required": required,
        "content": {"application/json": {"schema": _in_place(schema, definitions)}},
    }


def _in_place(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            name = reference.rpartition("/")[2]
            if name == "JsonValue" or name not in definitions:
                return {}
            return _in_place(definitions[name], definitions)
        return {key: _in_place(value, definitions) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_in_place(value, definitions) for value in schema]
    return schema


def parameter(
    place: Literal["path", "query", "header"], name: str, description: str, kind: str = "string"
) -> dict[str, Any]:
    """Return the OpenAPI description of a parameter."""
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"type": kind},
    }
