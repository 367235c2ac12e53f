"""Faults: errors that any part of a document can have, worded once."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.json_schema import schema_faults
from penstock_registry.core.parts import Part
from penstock_registry.core.places import at

MAX_INPUT_SCHEMA_BYTES: Final = 64 * 1024
"""It stands beside the version in force, in the memory of every gateway."""


def choice_faults(part: Part, path: str) -> Iterator[ErrorDetail]:
    """Yield a fault unless a part has exactly one of its exclusive fields."""
    if len(part.chosen) != 1:
        message = f"has {' and '.join(part.chosen)}" if part.chosen else "has none of these"
        yield finding(path, message, f"exactly one of {', '.join(part.exactly_one)}")


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


def given_faults(
    given: JsonValue,
    schema: Mapping[str, JsonValue],
    path: str,
    provided: Container[str] = (),
) -> Iterator[ErrorDetail]:
    """Check which members an object has, as far as that can be seen before it is made.

    Args:
        given: Template of the object.
        schema: What it must be.
        path: Where it stands.
        provided: Members that need not be given.
    """
    if schema.get("type") != "object" or (isinstance(given, str) and "{{" in given):
        return
    if given is not None and not isinstance(given, dict):
        yield finding(path, f"got {given!r}"[:200], "an object")
        return
    properties = schema.get("properties")
    known = list(properties) if isinstance(properties, dict) else []
    names = list(given or ())
    if schema.get("additionalProperties") is False:
        for name in names:
            yield from known_faults(name, known, "parameter", at(path, name))
    required = schema.get("required")
    for needed in required if isinstance(required, list) else []:
        # A schema that is none has errors elsewhere.
        if isinstance(needed, str) and needed not in names and needed not in provided:
            yield finding(at(path, needed), "is missing")
