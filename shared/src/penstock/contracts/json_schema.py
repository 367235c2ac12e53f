"""JSON Schemas (2020-12) that users write, and values that are checked against them.

One library checks schemas when they are stored and values at each start and call. Its patterns take
linear time, so that no schema stops a process; a reference leads into its own schema only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import structs

from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.json import Json, JsonObject

if TYPE_CHECKING:
    from jsonschema_rs import Draft202012Validator, ValidationError

MAX_FINDINGS: Final = 20
MAX_DEFAULTS: Final = 100_000
"""Of one value. A schema of some lines may ask for any number of them."""
_NESTED_DEFAULTS: Final = 32
_MESSAGE: Final = 300
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_PATTERNS: Final = "a regular expression without lookaround and back references"
_SIMPLE_TYPES: Final = "array, boolean, integer, null, number, object, string"
_OF_MANY: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_LIST: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_OF_ONE: Final = (
    *("items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
_INSTEAD: Final = {
    "dependencies": "dependentRequired or dependentSchemas",
    "additionalItems": "prefixItems with items",
    "nullable": '"null" as one of the types',
}
"""Keywords of other dialects, which 2020-12 would ignore in silence."""
_NONE: Final = object()


class Place(NamedTuple):
    """One subschema, and its path."""

    schema: Mapping[str, Json]
    path: str


class UnusableSchemaError(Exception):
    """A schema that no value can be checked against; the text says why."""


def schema_faults(schema: Mapping[str, Json], path: str) -> Iterator[ErrorDetail]:
    """Yield what keeps a JSON object from being a JSON Schema that Penstock can use.

    Args:
        schema: The object.
        path: Its place in a document.
    """
    found: dict[tuple[str, str], ErrorDetail] = {}
    for error in _meta().iter_errors(schema):
        detail = _finding(error, path, "not JSON Schema: ")
        if error.kind.name == "anyOf" and error.instance_path[-1:] == ["type"]:
            detail = structs.replace(detail, allowed=_SIMPLE_TYPES)
        found.setdefault((detail.path, detail.message), detail)
    try:
        if not found:
            for place in _subschemas(schema, path):
                for detail in _place_faults(schema, place):
                    found[detail.path, detail.message] = detail
        if not found:
            _compile(schema)
            with_defaults(dict(schema), {})
    except UnusableSchemaError as error:
        found[path, ""] = finding(path, f"not JSON Schema: {error}")
    except RecursionError:
        found[path, ""] = finding(path, "is nested too deeply")
    yield from sorted(found.values(), key=lambda detail: detail.path)


def value_faults(schema: Json, value: Json, path: str = "") -> list[ErrorDetail]:
    """Return at most ``MAX_FINDINGS`` errors of a value, sorted by path.

    The first call imports the library, which takes a moment.

    Args:
        schema: JSON Schema; schemas that were not checked by ``schema_faults`` may be unusable.
        value: The value.
        path: The place of the value.

    Raises:
        UnusableSchemaError: The schema is none, or a reference leads out of it.
    """
    validator = _validator(json.dumps(schema, sort_keys=True))
    try:
        found = [_finding(error, path) for error in validator.iter_errors(value)]
    except (ValueError, RecursionError) as error:  # half a surrogate, or nested too deeply
        return [finding(path, f"not JSON: {error}"[:_MESSAGE])]
    return sorted(found, key=lambda detail: detail.path)[:MAX_FINDINGS]


def with_defaults(schema: Json, value: Json) -> Json:
    """Return a value with the defaults of its schema, in objects at any depth.

    Defaults come from ``properties``, also within ``items``, ``prefixItems``,
    ``additionalProperties``, ``allOf`` and ``$ref``; those of alternatives (``anyOf``, ``oneOf``,
    ``if``, ...) are not filled in. The value itself remains as it is.

    Raises:
        UnusableSchemaError: The schema is none, or its defaults have no end or are more than
            ``MAX_DEFAULTS``.
    """
    text = json.dumps(schema, sort_keys=True)
    if '"default"' not in text:
        return value
    _validator(text)  # keywords have the right types from here on
    return _Defaults(schema).fill(schema, value, 0)


class _Defaults:
    """Fills in one value, by a schema whose keywords have their right types."""

    def __init__(self, whole: Any) -> None:
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
        return _at(self._whole, reference.partition("#")[2])


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Draft202012Validator:
    return _compile(json.loads(schema))


def _compile(schema: Any) -> Draft202012Validator:
    from jsonschema_rs import (  # noqa: PLC0415 - large, and not all need it
        Draft202012Validator,
        RegexOptions,
        ValidationError,
    )

    try:
        return Draft202012Validator(schema, pattern_options=RegexOptions(), retriever=_refused)
    except ValidationError as error:
        raise UnusableSchemaError(error.message[:_MESSAGE]) from error
    except (ValueError, RecursionError) as error:
        raise UnusableSchemaError(str(error)[:_MESSAGE]) from error


@lru_cache(maxsize=1)
def _meta() -> Draft202012Validator:
    from jsonschema_rs import Draft202012Validator, RegexOptions  # noqa: PLC0415 - see `_compile`

    options = RegexOptions()
    return Draft202012Validator({"$ref": _DIALECT}, pattern_options=options, validate_formats=True)


def _refused(uri: str) -> Json:
    raise ValueError(f"{uri} is not in the schema")


def _subschemas(schema: object, path: str) -> Iterator[Place]:
    """Yield a schema and all that it holds; names and values are no schemas."""
    if not isinstance(schema, Mapping):
        return
    yield Place(schema, path)
    for key, value in schema.items():
        inner = _join(path, key)
        if key in _OF_ONE:
            yield from _subschemas(value, inner)
        elif key in _OF_LIST and isinstance(value, list):
            for index, one in enumerate(value):
                yield from _subschemas(one, _join(inner, index))
        elif key in _OF_MANY and isinstance(value, Mapping):
            for name, one in value.items():
                yield from _subschemas(one, _join(inner, name))


def _place_faults(whole: Mapping[str, Json], place: Place) -> Iterator[ErrorDetail]:
    schema, path = place
    dialect = schema.get("$schema")
    if isinstance(dialect, str) and dialect.rstrip("#") != _DIALECT:
        yield finding(_join(path, "$schema"), f"is {dialect[:80]!r}", _DIALECT)
    for keyword, instead in _INSTEAD.items():
        if keyword in schema:
            yield finding(_join(path, keyword), "is no keyword of JSON Schema 2020-12", instead)
    patterns = {_join(path, "pattern"): schema.get("pattern")}
    of_names = schema.get("patternProperties")
    if isinstance(of_names, Mapping):
        patterns |= {_join(path, f"patternProperties.{name}"): name for name in of_names}
    for where, pattern in patterns.items():
        if isinstance(pattern, str) and not _is_pattern(pattern):
            yield finding(where, f"{pattern[:80]!r} is not a usable pattern", _PATTERNS)
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return
    identity = whole.get("$id")
    own = isinstance(identity, str) and reference.partition("#")[0] == identity.rstrip("#")
    if not own and not reference.startswith("#"):
        message = f"refers to {reference[:80]!r}, which is not in it"
        yield finding(_join(path, "$ref"), message, "#/...")
    elif not _leads_somewhere(whole, reference.partition("#")[2]):
        message = f"refers to {reference[:80]!r}, which is not in it"
        yield finding(_join(path, "$ref"), message, _definitions(whole))


def _is_pattern(pattern: str) -> bool:
    try:
        _compile({"pattern": pattern})
    except UnusableSchemaError:
        return False
    return True


def has_defaults(schema: Mapping[str, Json]) -> bool:
    """Return whether a schema has a default anywhere."""
    return any("default" in place.schema for place in _subschemas(schema, ""))


def _leads_somewhere(whole: object, fragment: str) -> bool:
    """Return whether a JSON pointer finds a schema; other forms are left to the library."""
    if not fragment.startswith("/") or "%" in fragment:
        return True
    return isinstance(_at(whole, fragment), Mapping | bool)


def _at(whole: object, pointer: str) -> object:
    """Return the part of a schema at a JSON pointer; ``None`` if there is none."""
    found = whole
    if pointer and not pointer.startswith("/"):
        return None
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def _definitions(whole: Mapping[str, Json]) -> str:
    definitions = whole.get("$defs")
    names = sorted(definitions)[:10] if isinstance(definitions, Mapping) else []
    return ", ".join(f"#/$defs/{name}" for name in names) or "#/$defs/NAME, with NAME in $defs"


def _finding(error: ValidationError, path: str, prefix: str = "") -> ErrorDetail:
    kind, value = error.kind.name, getattr(error.kind, "value", None)
    allowed = None
    if kind in ("enum", "type"):
        allowed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    elif kind in ("minimum", "maximum", "pattern", "const", "format"):
        allowed = f"{kind}: {value}"
    for part in error.instance_path:
        path = _join(path, part)
    return finding(path, (prefix + error.message)[:_MESSAGE], allowed)


def _join(path: str, part: str | int) -> str:
    if isinstance(part, int):
        return f"{path}[{part}]"
    return f"{path}.{part}" if path else part
