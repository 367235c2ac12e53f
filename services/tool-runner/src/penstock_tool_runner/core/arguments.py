"""Checks a call's arguments against a tool's JSON Schema (2020-12), before anything runs."""

from __future__ import annotations

from penstock.contracts.errors import RejectedError
from penstock.contracts.json import Json
from penstock.contracts.json_schema import value_faults
from penstock.contracts.schema_defaults import UnusableSchemaError


def check_arguments(schema: Json, arguments: Json) -> None:
    """Check arguments; a schema that is ``None`` allows everything.

    Raises:
        RejectedError: ``invalid_arguments`` with all paths, or ``invalid_schema``.
    """
    if schema is None:
        return
    try:
        found = value_faults(schema, arguments)
    except UnusableSchemaError as error:
        raise RejectedError("invalid_schema", f"the tool's schema: {error}") from error
    if found:
        first = found[0]
        where = f"{first.path}: " if first.path else ""
        raise RejectedError("invalid_arguments", f"{where}{first.message}", details=tuple(found))
