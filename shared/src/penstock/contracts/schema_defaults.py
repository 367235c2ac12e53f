"""The defaults of a JSON Schema, filled into a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from penstock.contracts.json import Json, JsonObject
from penstock.contracts.schema_work import at_pointer

MAX_DEFAULTS: Final = 100_000
"""Of one value. A schema of some lines may ask for any number of them."""
_NESTED_DEFAULTS: Final = 32
_NONE: Final = object()


class UnusableSchemaError(Exception):
    """A schema that no value can be checked against; the text says why."""


class Defaults:
    """Fills in one value, by a schema whose keywords have their right types."""

    def __init__(self, whole: Any) -> None:
        """Begin with a schema; references lead into it."""
        self._whole = whole
        self._left = MAX_DEFAULTS

    def fill(self, schema: Any, value: Json, nested: int) -> Json:
        """Return a value with defaults; it lies in so many defaults itself."""
        if not isinstance(value, dict | list):
            return value
        return self._apply(schema, value, nested, set())

    def _apply(self, schema: Any, value: Json, nested: int, seen: set[int]) -> Json:
        """Apply each schema once to a value, however many references lead to it."""
        if not isinstance(schema, Mapping) or id(schema) in seen:
            return value
        seen.add(id(schema))
        for one in (self._target(schema), *schema.get("allOf", ())):
            value = self._apply(one, value, nested, seen)
        if isinstance(value, dict):
            return self._object(schema, value, nested)
        if isinstance(value, list):
            prefix, items = schema.get("prefixItems", ()), schema.get("items")
            return [
                self.fill(prefix[index] if index < len(prefix) else items, item, nested)
                for index, item in enumerate(value)
            ]
        return value

    def _object(self, schema: Any, value: JsonObject, nested: int) -> JsonObject:
        members = schema.get("properties", {})
        filled: JsonObject = {}
        for name, member in members.items():
            if name in value:
                filled[name] = self.fill(member, value[name], nested)
            elif (default := self._default(member)) is not _NONE:
                self._left -= 1
                if nested >= _NESTED_DEFAULTS or self._left < 0:
                    raise UnusableSchemaError(f"its defaults have no end: {name[:80]!r}")
                filled[name] = self.fill(member, default, nested + 1)
        others = schema.get("additionalProperties")
        if isinstance(others, Mapping) and "patternProperties" not in schema:
            for name in value.keys() - members.keys():
                filled[name] = self.fill(others, value[name], nested)
        return {**value, **filled} if filled else value

    def _default(self, schema: Any) -> Any:
        """Return the default of a member, or that of the schema which it refers to."""
        for _ in range(_NESTED_DEFAULTS):
            if not isinstance(schema, Mapping):
                break
            if "default" in schema:
                return schema["default"]
            schema = self._target(schema)
        return _NONE

    def _target(self, schema: Any) -> Any:
        """Return the schema behind a reference by path; ``None`` if there is none."""
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return None
        return at_pointer(self._whole, reference.partition("#")[2])
