"""Faults: errors that any part of a document can have, worded once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, finding
from penstock_registry.core.places import at, show_location

MAX_INPUT_SCHEMA_BYTES: Final = 64 * 1024
"""It stands beside the version in force, in the memory of every gateway."""


def one_of(names: Sequence[str], given: Iterable[str], path: str) -> Iterator[ErrorDetail]:
    """Yield a fault unless exactly one of some fields is given."""
    found = list(given)
    if len(found) != 1:
        message = f"has {' and '.join(found)}" if found else "has none of these"
        yield finding(path, message, f"exactly one of {', '.join(names)}")


def known_faults(name: str, names: Iterable[str], kind: str, path: str) -> Iterator[ErrorDetail]:
    """Yield a fault unless a name is known."""
    known = sorted(names)
    if name not in known:
        allowed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        yield finding(path, f"there is no {kind} {name!r}", allowed or f"no {kind} yet")


def repeated_faults(names: Iterable[str], path: str) -> Iterator[ErrorDetail]:
    """Yield a fault for each name that is named again."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield finding(f"{path}[{index}]", f"{name!r} is named twice")
        seen.add(name)


def input_faults(schema: Mapping[str, JsonValue], path: str) -> Iterator[ErrorDetail]:
    """Yield the errors of the schema of an input, which every process that starts runs has."""
    size = len(json.dumps(schema))
    if size > MAX_INPUT_SCHEMA_BYTES:
        yield finding(path, f"has {size} bytes", f"<= {MAX_INPUT_SCHEMA_BYTES} bytes")
    yield from schema_faults(schema, path)
    yield from _reference_faults(dict(schema), path)


def _reference_faults(schema: JsonValue, path: str) -> Iterator[ErrorDetail]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str) and not value.startswith("#"):
                message = f"refers to {value!r}, which is not in it"[:300]
                yield finding(at(path, key), message, "#/...")
            else:
                yield from _reference_faults(value, at(path, key))
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _reference_faults(value, f"{path}[{index}]")


def schema_faults(schema: Mapping[str, JsonValue], path: str) -> Iterator[ErrorDetail]:
    """Yield what keeps a JSON object from being JSON Schema (2020-12)."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - heavy, and not all need it

    checker = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    for error in sorted(checker.iter_errors(schema), key=lambda error: list(map(str, error.path))):
        allowed = None
        if error.validator == "enum":
            allowed = ", ".join(map(str, error.validator_value))
        elif error.validator == "type":
            allowed = str(error.validator_value)
        elif error.validator == "anyOf":
            types = [part.get("$ref", "") for part in error.validator_value]
            if any(ref.endswith("simpleTypes") for ref in types):
                allowed = "array, boolean, integer, null, number, object, string"
        yield finding(
            at(path, show_location(error.absolute_path)),
            f"not JSON Schema: {error.message[:200]}",
            allowed,
        )
