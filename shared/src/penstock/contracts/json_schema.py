"""JSON Schemas (2020-12) that users write, and values that are checked against them.

One library checks schemas when they are stored and values at each start and call. Its patterns take
linear time, so that no schema stops a process; a reference leads into its own schema only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import structs

from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.json import Json
from penstock.contracts.schema_defaults import Defaults, UnusableSchemaError
from penstock.contracts.schema_work import MAX_SPREAD, SchemaWork, at_pointer, larger

if TYPE_CHECKING:
    from jsonschema_rs import Draft202012Validator, ValidationError

MAX_FINDINGS: Final = 20
MAX_CHECKS: Final = 2_000_000
"""Of one value, by subschemas: about a second."""
_MAX_LISTED: Final = 5_000
"""Parts of a value above which the first error stands for all: each takes 50 us and more."""
_MAX_REPEATED: Final = 200
"""Most checks of one part of a value where errors are collected, each with those inside it."""
_MESSAGE: Final = 300
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_PATTERNS: Final = (
    "a regular expression of ECMA-262 without lookaround, back references, [], [^], \\0 and "
    "repeats above 1,000"
)
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


class Place(NamedTuple):
    """One subschema, and its path."""

    schema: Mapping[str, Json]
    path: str


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
            _checker(json.dumps(schema, sort_keys=True))
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
    validator, work = _checker(json.dumps(schema, sort_keys=True))
    if larger(value, MAX_CHECKS // work.most) and work.exceeds(value, MAX_CHECKS):
        return [finding(path, f"takes more than {MAX_CHECKS} checks by its schema", "less data")]
    try:
        if validator.is_valid(value):
            return []
        if work.repeats(value, _MAX_REPEATED):
            message = "does not fit its schema, which has too many alternatives to name the place"
            return [finding(path, message)]
        found = [_finding(error, path) for error in _errors(validator, value)]
    except (ValueError, RecursionError) as error:  # half a surrogate, or nested too deeply
        return [finding(path, f"not JSON: {error}"[:_MESSAGE])]
    return sorted(found, key=lambda detail: detail.path)[:MAX_FINDINGS]


def _errors(validator: Draft202012Validator, value: Json) -> Iterable[ValidationError]:
    """Return the errors of a value, of a large one the first."""
    from jsonschema_rs import ValidationError  # noqa: PLC0415 - see `_compile`

    if not larger(value, _MAX_LISTED):
        return validator.iter_errors(value)
    try:
        validator.validate(value)
    except ValidationError as error:
        return (error,)
    return ()


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
    _checker(text)  # keywords have the right types from here on
    return Defaults(schema).fill(schema, value, 0)


class _Checker(NamedTuple):
    validator: Draft202012Validator
    work: SchemaWork


@lru_cache(maxsize=1024)
def _checker(text: str) -> _Checker:
    schema = json.loads(text)
    validator, work = _compile(schema), SchemaWork(schema)
    if work.spread > MAX_SPREAD:
        raise UnusableSchemaError(f"it asks for more than {MAX_SPREAD} checks of one value")
    return _Checker(validator, work)


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
    if "$id" in schema and schema is not whole:
        yield finding(_join(path, "$id"), "stands within another schema", "$id of the whole")
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
    return isinstance(at_pointer(whole, fragment), Mapping | bool)


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
