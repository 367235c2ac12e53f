"""Faults: errors that any part of a document can have, worded once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.json_schema import schema_faults

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
