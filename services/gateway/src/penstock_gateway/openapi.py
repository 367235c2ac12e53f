"""OpenAPI descriptions of what FastAPI does not see: bodies and parameters of raw routes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

OpenApi = dict[str, Any]
"""A part of an OpenAPI document, in the form that FastAPI takes: nested to any depth."""


def json_body(model: type[BaseModel], *, required: bool = True) -> OpenApi:
    """Return the OpenAPI description of a JSON body."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    # Nested models are written in place: FastAPI does not know of this model.
    definitions = schema.pop("$defs", {})
    return {
        "required": required,
        "content": {"application/json": {"schema": _in_place(schema, definitions)}},
    }


def _in_place(schema: Any, definitions: OpenApi) -> Any:
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
) -> OpenApi:
    """Return the OpenAPI description of a parameter."""
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"type": kind},
    }
