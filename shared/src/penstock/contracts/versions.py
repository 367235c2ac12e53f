"""Versions: which one a run gets where some of the runs go to another, and what input it takes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from penstock.contracts.errors import RejectedError
from penstock.contracts.json import Json, JsonObject
from penstock.contracts.json_schema import value_faults, with_defaults
from penstock.contracts.plan import Plan, PublishedVersion
from penstock.contracts.schema_defaults import UnusableSchemaError


def routed(version: PublishedVersion, run_id: str) -> PublishedVersion:
    """Return the version that a run gets: the canary for its share of the runs.

    The id decides, so a repeated start of the same run names the same version.
    """
    canary = version.canary
    if canary is None or zlib.crc32(f"canary:{run_id}".encode()) % 100 >= canary.weight:
        return version
    return version.model_copy(
        update={
            "version": canary.version,
            "plan_digest": canary.plan_digest,
            "input_schema": canary.input_schema,
            "canary": None,
        }
    )


def accepted_input(version: PublishedVersion | Plan, given: Json) -> Json:
    """Return a run's input with the defaults of its version or plan, once it fits its schema.

    The first call imports what it needs, which takes a moment.

    Raises:
        RejectedError: ``invalid_input`` with the place of each fault, ``invalid_schema``.
    """
    if version.input_schema is None:
        return given
    filled = filled_input(version.name, version.input_schema, given)
    check_against(version.name, version.input_schema, filled)
    return filled


def filled_input(name: str, schema: JsonObject, given: Json) -> Json:
    """Return an input with the defaults of its schema.

    Raises:
        RejectedError: ``invalid_schema``: the defaults have no end.
    """
    try:
        return with_defaults(schema, given)
    except UnusableSchemaError as error:
        raise _invalid_schema(name, error) from error


def check_against(name: str, schema: Mapping[str, Json], given: Json) -> None:
    """Check an input against a JSON Schema.

    Args:
        name: Whose schema it is, for the error.
        schema: JSON Schema, 2020-12.
        given: The input.

    Raises:
        RejectedError: ``invalid_input`` with the place of each fault, ``invalid_schema``.
    """
    try:
        found = value_faults(dict(schema), given, "input")
    except UnusableSchemaError as error:
        raise _invalid_schema(name, error) from error
    if found:
        first = found[0]
        raise RejectedError("invalid_input", f"{first.path}: {first.message}", details=tuple(found))


def _invalid_schema(name: str, error: UnusableSchemaError) -> RejectedError:
    return RejectedError("invalid_schema", f"the input schema of {name}: {error}")
