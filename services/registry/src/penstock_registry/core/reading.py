"""Reading: texts and JSON become documents, or every fault of their form with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from penstock.contracts.envelope import EnvelopeError, check_value
from penstock.contracts.errors import ErrorDetail, RejectedError, finding
from penstock.contracts.json import JsonObject
from penstock.contracts.rpc import DocumentKind
from penstock_registry.core.documents import (
    BY_WRITTEN,
    ENDPOINT,
    MODELS,
    Document,
    show_endpoint,
)
from penstock_registry.core.parts import GeneratedSchema
from penstock_registry.core.places import at, invalid_document, show_location
from penstock_registry.core.yaml_text import MAX_DOCUMENTS, YamlReader


def parse_document(
    raw: JsonValue, *, path: str = "", expected: DocumentKind | None = None
) -> Document:
    """Read one document.

    Args:
        raw: The document as JSON.
        path: Where it stands among others, as a prefix of all places in errors.
        expected: The kind that it must be, where only one will do.

    Raises:
        RejectedError: ``invalid_document`` with every fault of its form.
    """
    if not isinstance(raw, dict):
        raise invalid_document([finding(path, "a document must be an object")])
    try:
        check_value(raw, nul=False)
    except EnvelopeError as error:
        raise error.rejected("invalid_document", at=path) from error
    written = raw.get("kind")
    kind = BY_WRITTEN.get(written) if isinstance(written, str) else None
    if kind is None or (expected is not None and kind is not expected):
        allowed = sorted(BY_WRITTEN) if expected is None else [expected.value.capitalize()]
        message = f"got {written!r}" if "kind" in raw else "is missing"
        detail = finding(at(path, "kind"), message, ", ".join(allowed))
        raise invalid_document([detail])
    model = MODELS[kind]
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        schema = model.model_json_schema(by_alias=True)
        raise invalid_document(_detail(found, schema, path) for found in _found(error)) from error


@dataclass(frozen=True, slots=True)
class Placed:
    """A document as it was given: its place among others, as written, and as read."""

    path: str
    raw: JsonObject
    document: Document


@dataclass(frozen=True, slots=True)
class Parsed:
    """The result of reading many documents: the readable ones, and the errors."""

    placed: list[Placed]
    faults: list[ErrorDetail]
    unreadable: frozenset[str]
    """Names of documents that could not be read, so that they are not reported as unknown."""


def parse_documents(raw: Iterable[JsonValue]) -> Parsed:
    """Read many documents; a text among them is YAML and may hold several."""
    placed: list[Placed] = []
    faults: list[ErrorDetail] = []
    unreadable: set[str] = set()
    reader, read = YamlReader(), 0
    for index, entry in enumerate(raw):
        path = f"documents[{index}]"
        try:
            parts = reader.read(entry, path=path) if isinstance(entry, str) else [entry]
        except RejectedError as error:
            faults.extend(error.details)
            parts = []
        read += max(1, len(parts))
        if read > MAX_DOCUMENTS:
            many = finding("documents", f"more than {MAX_DOCUMENTS}", f"at most {MAX_DOCUMENTS}")
            return Parsed([], [many], frozenset())
        for number, part in enumerate(parts):
            inner = f"{path}[{number}]" if isinstance(entry, str) else path
            try:
                placed.append(place_document(part, path=inner))
            except RejectedError as error:
                faults.extend(error.details)
                unreadable.add(_name_in(part))
    seen: set[tuple[str, str]] = set()
    for one in placed:
        key = (one.document.kind, one.document.metadata.name)
        if key in seen:
            place = at(one.path, "metadata.name")
            faults.append(finding(place, f"{key[1]!r} is defined twice"))
        seen.add(key)
    return Parsed(placed, faults, frozenset(unreadable))


def _name_in(raw: JsonValue) -> str:
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


def place_document(
    raw: JsonValue, *, path: str = "", expected: DocumentKind | None = None
) -> Placed:
    """Read one document and keep it as it was written; see `parse_document`.

    Raises:
        RejectedError: ``invalid_document``.
    """
    document = parse_document(raw, path=path, expected=expected)
    return Placed(path, raw if isinstance(raw, dict) else {}, document)


def parse_endpoint(url: str, *, path: str) -> str:
    """Return a URL of HTTP or HTTPS as documents carry it.

    Raises:
        RejectedError: ``invalid_document`` if it is none.
    """
    try:
        return show_endpoint(ENDPOINT.validate_python(url))
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise invalid_document([finding(path, message, "http:// or https:// URL")]) from error


def merge_patch(document: JsonValue, patch: JsonValue) -> JsonValue:
    """Return ``document`` changed by a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


_LIMITS: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_LENGTHS: Final = {
    "min_length": "at least {} long",
    "max_length": "at most {} long",
}


def _found(error: ValidationError) -> list[ErrorDetails]:
    """Return the faults, without lists that are short only of items which are faults themselves."""
    found = error.errors(include_url=False)
    inner = {one["loc"][:depth] for one in found for depth in range(len(one["loc"]))}
    return [one for one in found if one["type"] != "too_short" or one["loc"] not in inner]


def _detail(found: ErrorDetails, schema: GeneratedSchema, prefix: str) -> ErrorDetail:
    context: Mapping[str, Any] = found.get("ctx", {})
    location = found["loc"]
    allowed: str | None = None
    match found["type"]:
        case "extra_forbidden":
            message = f"there is no field {location[-1]!r} here"
            allowed = ", ".join(_fields(schema, location[:-1])) or None
        case "literal_error" | "enum":
            message = f"got {_shown(found['input'])}"
            allowed = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        case "missing":
            message = "is missing"
        case "too_short":
            message = f"has {context['actual_length']} entries"
            allowed = f"at least {context['min_length']}"
        case "string_pattern_mismatch":
            message = f"got {_shown(found['input'])}"
            allowed = str(context["pattern"])
        case _:
            message = f"{found['msg']}, got {_shown(found['input'])}"
            limits = [f"{sign} {context[key]:g}" for key, sign in _LIMITS.items() if key in context]
            limits += [
                text.format(context[key]) for key, text in _LENGTHS.items() if key in context
            ]
            allowed = context.get("allowed") or ", ".join(limits) or None
    # The last part of a key's own error is pydantic's marker, not a place.
    parts = [part for part in location if part != "[key]"]
    return finding(at(prefix, show_location(parts)), message, allowed)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fields(schema: GeneratedSchema, location: Iterable[str | int]) -> list[str]:
    """Return the names of the fields that a place in a document can have, from its JSON Schema."""
    definitions = schema.get("$defs", {})

    def resolve(node: GeneratedSchema) -> GeneratedSchema:
        for _ in range(10):
            if "$ref" in node:
                node = definitions[node["$ref"].rsplit("/", 1)[1]]
            elif "anyOf" in node:
                node = next((part for part in node["anyOf"] if part.get("type") != "null"), {})
            else:
                break
        return node

    node = resolve(schema)
    for part in location:
        if isinstance(part, int):
            node = resolve(node.get("items", {}))
        else:
            inner = node.get("properties", {}).get(part) or node.get("additionalProperties")
            node = resolve(inner) if isinstance(inner, dict) else {}
    return sorted(node.get("properties", {}))
