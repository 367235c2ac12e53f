"""Templates: ``{{ path }}`` in any string of a JSON value, never evaluated as code.

A path is dotted names and ``[n]`` or ``["key"]`` subscripts over the scope, such as
``steps.search.output.items[0].title``; this is the path subset of CEL. A string that is one
template and nothing else takes the value itself, whatever its type; otherwise values are
written into the text (strings as they are, anything else as JSON).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError

Path = tuple[str | int, ...]

_TEMPLATE: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_HEAD: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)")
_PART: Final = re.compile(
    r"""\.([A-Za-z_][A-Za-z0-9_]*) | \[\s*(\d+)\s*\]
    | \[\s*"([^"\\]*)"\s*\] | \[\s*'([^'\\]*)'\s*\]""",
    re.VERBOSE,
)


@lru_cache(maxsize=4096)
def parse_path(expression: str) -> Path:
    """Take apart the text between ``{{`` and ``}}``.

    Raises:
        RejectedError: ``invalid_template`` if it is not a path.
    """
    head = _HEAD.match(expression)
    parts: list[str | int] = []
    position = 0
    if head is not None:
        parts.append(head.group(1))
        position = head.end()
        while (part := _PART.match(expression, position)) is not None:
            name, index, double, single = part.groups()
            parts.append(int(index) if index is not None else (name or double or single or ""))
            position = part.end()
    if not parts or expression[position:].strip():
        raise RejectedError(
            "invalid_template",
            f"{{{{{expression}}}}} is not a path such as input.city or steps.a.output.items[0]",
        )
    return tuple(parts)


@lru_cache(maxsize=4096)
def _pieces(text: str) -> tuple[str | Path, ...]:
    """Split a string into literal text and paths."""
    pieces: list[str | Path] = []
    position = 0
    for found in _TEMPLATE.finditer(text):
        if found.start() > position:
            pieces.append(text[position : found.start()])
        pieces.append(parse_path(found.group(1)))
        position = found.end()
    if position < len(text) or not pieces:
        pieces.append(text[position:])
    return tuple(pieces)


def _lookup(path: Path, scope: Mapping[str, JsonValue]) -> JsonValue:
    value: JsonValue | Mapping[str, JsonValue] = scope
    for depth, part in enumerate(path):
        found = False
        if isinstance(part, str) and isinstance(value, Mapping):
            found = part in value
            value = value[part] if found else value
        elif isinstance(part, int) and isinstance(value, list):
            found = part < len(value)
            value = value[part] if found else value
        if not found:
            text = show_path(path)
            known = ", ".join(sorted(value)[:20]) if isinstance(value, Mapping) else None
            raise RejectedError(
                "template_unresolved",
                f"{text}: there is no {show_path(path[: depth + 1])}",
                details=(ErrorDetail(path=text, message="not found", allowed=known),),
            )
    if isinstance(value, Mapping) and not isinstance(value, dict):
        # Looked up when asked for, so not a value: what it holds depends on when one asks.
        text = show_path(path)
        raise RejectedError(
            "template_unresolved",
            f"{text} has no value of its own; name something in it, such as {text}.NAME",
            details=(ErrorDetail(path=text, message="has no value of its own"),),
        )
    return value


def show_path(path: Path) -> str:
    """Write a path as it would stand in a template."""
    text = str(path[0])
    for part in path[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text


def render(template: JsonValue, scope: Mapping[str, JsonValue]) -> JsonValue:
    """Return ``template`` with every ``{{ path }}`` in its strings replaced.

    Raises:
        RejectedError: ``invalid_template`` or ``template_unresolved``.
    """
    if isinstance(template, str):
        if "{{" not in template:
            return template
        pieces = _pieces(template)
        if len(pieces) == 1:
            only = pieces[0]
            return only if isinstance(only, str) else _lookup(only, scope)
        return "".join(
            piece if isinstance(piece, str) else _as_text(_lookup(piece, scope)) for piece in pieces
        )
    if isinstance(template, dict):
        return {key: render(value, scope) for key, value in template.items()}
    if isinstance(template, list):
        return [render(value, scope) for value in template]
    return template


def _as_text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def references(template: JsonValue, at: str = "") -> Iterator[tuple[str, Path]]:
    """Yield every path in ``template`` with the place where it stands, for checks at compile time.

    Raises:
        RejectedError: ``invalid_template``, with the place in its details.
    """
    if isinstance(template, str):
        try:
            pieces = _pieces(template)
        except RejectedError as error:
            raise RejectedError(
                error.code,
                error.message,
                details=(ErrorDetail(path=at, message=error.message),),
            ) from error
        for piece in pieces:
            if not isinstance(piece, str):
                yield at, piece
    elif isinstance(template, dict):
        for key, value in template.items():
            yield from references(value, f"{at}.{key}" if at else key)
    elif isinstance(template, list):
        for index, value in enumerate(template):
            yield from references(value, f"{at}[{index}]")
