"""Checks a call's arguments against a tool's JSON Schema (2020-12), before anything runs."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.json import Json

MAX_DETAILS: Final = 20


def check_arguments(schema: Json, arguments: Json) -> None:
    """Check arguments; a schema that is ``None`` allows everything.

    Raises:
        RejectedError: ``invalid_arguments`` with all paths, or ``invalid_schema``.
    """
    if schema is None:
        return
    validator = _compiled(json.dumps(schema, sort_keys=True))
    try:
        found = sorted(validator.iter_errors(arguments), key=lambda error: error.json_path)
    except Unresolvable as error:
        raise RejectedError(
            "invalid_schema", f"the tool's schema refers to {error.ref!r}, which is not in it"
        ) from error
    if found:
        details = tuple(
            finding(error.json_path.removeprefix("$").lstrip("."), error.message)
            for error in found[:MAX_DETAILS]
        )
        first = details[0]
        where = f"{first.path}: " if first.path else ""
        raise RejectedError("invalid_arguments", f"{where}{first.message}", details=details)


@lru_cache(maxsize=1024)
def _compiled(schema: str) -> Draft202012Validator:
    parsed = json.loads(schema)
    try:
        Draft202012Validator.check_schema(parsed)
    except SchemaError as error:
        raise RejectedError(
            "invalid_schema",
            f"the tool's schema is invalid: {error.message}",
            details=(finding(error.json_path, error.message),),
        ) from error
    # An empty registry: a reference to elsewhere is refused, never fetched.
    return Draft202012Validator(parsed, registry=Registry())
