"""Examples of what a JSON Schema allows, for checks of expressions before there is data.

A sample says no more than the schema does: an open part is ``UNKNOWN``, and only the kinds
of values count, not the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


class Unknown:
    """A value of which nothing is known; there is one, ``UNKNOWN``."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Show it as it is spelt."""
        return "UNKNOWN"


UNKNOWN: Final = Unknown()

Sample = object
"""JSON with ``UNKNOWN`` in it, at any depth, the top included."""

_OF_TYPE: Final[dict[str, object]] = {
    "string": "",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "null": None,
}
_MAX_DEPTH: Final = 32


def sample_of(schema: object, depth: int = 0) -> Sample:
    """Return an example of what a JSON Schema allows.

    Members that may be missing are in the sample; a type that is one of several is unknown, and
    so is whatever a reference or a schema of an unexpected form stands for.

    Args:
        schema: A JSON Schema of 2020-12, or anything, which then gives ``UNKNOWN``.
        depth: How deep in the sample it will stand.
    """
    if not isinstance(schema, Mapping) or "$ref" in schema or depth > _MAX_DEPTH:
        return UNKNOWN
    if schema.get("nullable") is True:
        return UNKNOWN
    kinds = schema.get("type")
    kind = kinds[0] if isinstance(kinds, list) and len(kinds) == 1 else kinds
    if kind == "object":
        properties = schema.get("properties")
        members = properties if isinstance(properties, Mapping) else {}
        return {str(name): sample_of(member, depth + 1) for name, member in members.items()}
    if kind == "array":
        uniform = isinstance(schema.get("items"), Mapping) and "prefixItems" not in schema
        return [sample_of(schema["items"], depth + 1) if uniform else UNKNOWN]
    if isinstance(kind, str):
        return _OF_TYPE.get(kind, UNKNOWN)
    return _constant(schema)


def _constant(schema: Mapping[object, object]) -> Sample:
    if "type" in schema:
        return UNKNOWN
    values = schema.get("enum")
    if "const" in schema:
        values = [schema["const"]]
    if not isinstance(values, list) or not values:
        return UNKNOWN
    first = type(values[0])
    scalar = first in (str, bool, int, float)
    return values[0] if scalar and all(type(value) is first for value in values) else UNKNOWN
