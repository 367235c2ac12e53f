"""Versions: which one a run gets where some of the runs go to another, and what input it takes."""

from __future__ import annotations

import json
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.plan import PublishedVersion

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

MAX_FINDINGS: Final = 20


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


def check_input(version: PublishedVersion, given: JsonValue) -> None:
    """Check a run's input against what its definition says of it.

    The first call imports what it needs, which takes a moment.

    Raises:
        RejectedError: ``invalid_input`` with the place of each fault, ``invalid_schema``.
    """
    if version.input_schema is not None:
        check_against(version.name, version.input_schema, given)


def check_against(name: str, schema: dict[str, JsonValue], given: JsonValue) -> None:
    """Check an input against a JSON Schema.

    Args:
        name: Whose schema it is, for the error.
        schema: JSON Schema, 2020-12.
        given: The input.

    Raises:
        RejectedError: ``invalid_input`` with the place of each fault, ``invalid_schema``.
    """
    from referencing.exceptions import Unresolvable  # noqa: PLC0415 - heavy, and not all need it

    validator = _validator(json.dumps(schema, sort_keys=True))
    try:
        found = sorted(validator.iter_errors(given), key=lambda error: error.json_path)
    except Unresolvable as error:
        raise RejectedError(
            "invalid_schema",
            f"the input schema of {name} refers to {error.ref!r}, which is not in it",
        ) from error
    if found:
        details = tuple(_detail(error) for error in found[:MAX_FINDINGS])
        first = details[0]
        raise RejectedError("invalid_input", f"{first.path}: {first.message}", details=details)


@lru_cache(maxsize=256)
def _validator(schema: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - see `check_input`
    from referencing import Registry  # noqa: PLC0415 - see `check_input`

    # An empty registry: a reference to elsewhere is refused, never fetched.
    return Draft202012Validator(json.loads(schema), registry=Registry())


def _detail(error: Any) -> ErrorDetail:
    allowed = None
    if error.validator in ("enum", "type"):
        wanted = error.validator_value
        allowed = ", ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
    elif error.validator in ("minimum", "maximum", "pattern", "const", "format"):
        allowed = f"{error.validator}: {error.validator_value}"
    return ErrorDetail(
        path="input" + error.json_path.removeprefix("$"),
        message=error.message[:300],
        allowed=allowed,
    )
