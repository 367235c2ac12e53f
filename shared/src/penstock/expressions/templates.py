"""Templates: ``{{ expression }}`` in any string of a JSON value.

A path, such as ``steps.search.output.items[0].title``, is looked up at once; anything else is an
expression (``docs/expressions.md``). A string that is one template and nothing else takes the
value itself, whatever its type; otherwise values are written into the text (strings as they are,
anything else as JSON).

Secrets are references. They come from the template alone and travel beside the rendered value, so
no text that was looked up can become one; the runner that needs the secret fills it in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pydantic import JsonValue

from penstock.contracts.envelope import EnvelopeError, check_value
from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.expressions import evaluator
from penstock.expressions.evaluator import Path
from penstock.expressions.secrets import SecretReference, masked
from penstock.expressions.syntax import LITERALS, MAX_CHARACTERS, TOKEN
from penstock.expressions.values import CHARACTERS_OF_A_UNIT, charge

_HEAD: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)")
_PART: Final = re.compile(
    r"""\.([A-Za-z_][A-Za-z0-9_]*) | \[\s*(\d+)\s*\]
    | \[\s*"([^"\\]*)"\s*\] | \[\s*'([^'\\]*)'\s*\]""",
    re.VERBOSE,
)


@lru_cache(maxsize=4096)
def parse_path(expression: str) -> Path:
    """Take apart a path, such as the text between ``{{`` and ``}}``.

    Raises:
        RejectedError: ``invalid_template`` if it is not a path.
    """
    path = _path(expression)
    if path is None:
        raise RejectedError(
            "invalid_template",
            f"{{{{{expression}}}}} is not a path such as input.city or steps.a.output.items[0]",
        )
    return path


def _path(expression: str) -> Path | None:
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
        return None
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class _Expression:
    text: str


@dataclass(frozen=True, slots=True)
class _Secret:
    name: str


_Piece = str | Path | _Expression | _Secret


@lru_cache(maxsize=4096)
def _pieces(text: str) -> tuple[_Piece, ...]:
    """Split a string into literal text and what stands between ``{{`` and ``}}``."""
    return tuple(_piece(part) if inside else part for part, inside in _split(text)) or (text,)


def _end(text: str, position: int) -> int:
    """Find the ``}}`` that ends a template: none within a string or a map of the expression."""
    first = text.find("}}", position)
    if first < 0:
        return -1
    depth = 0
    last = position + MAX_CHARACTERS
    while position < len(text) and position <= last:
        if depth == 0 and text.startswith("}}", position):
            return position
        found = TOKEN.match(text, position)
        if found is None:
            position += 1
            continue
        depth += {"{": 1, "}": -1}.get(found.group(), 0)
        position = found.end()
    return first


def _piece(text: str) -> _Piece:
    path = _path(text)
    if path is None or (len(path) == 1 and path[0] in LITERALS):
        try:
            evaluator.tree_of(text.strip())
        except RejectedError as error:
            raise RejectedError(
                "invalid_template", f"{{{{{text}}}}}: {error.message}", details=error.details
            ) from error
        return _Expression(text.strip())
    if path[0] != "secrets":
        return path
    if len(path) != 2 or not isinstance(path[1], str) or not path[1]:
        raise RejectedError("invalid_template", f"{{{{{text}}}}}: write {{{{ secrets.NAME }}}}")
    return _Secret(path[1])


def look_up(path: Path, scope: Mapping[str, JsonValue]) -> JsonValue:
    """Return what stands at a path.

    Raises:
        RejectedError: ``template_unresolved``: there is nothing, with what there is instead.
    """
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
            f"{text} has no value by itself; name something in it, such as {text}.NAME",
            details=(ErrorDetail(path=text, message="has no value by itself"),),
        )
    return value


def show_path(path: Path) -> str:
    """Write a path as it would stand in a template."""
    text = str(path[0])
    for part in path[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text


def render(template: JsonValue, scope: Mapping[str, JsonValue]) -> JsonValue:
    """Return ``template`` with every ``{{ expression }}`` in its strings replaced.

    Raises:
        RejectedError: ``invalid_template``, also for a secret, which has no place here;
            ``template_unresolved``: a path leads nowhere; ``expression_failed``;
            ``invalid_value``: the result is outside of the envelope.
    """
    return _checked(_filled(template, scope))


def _checked(value: JsonValue) -> JsonValue:
    try:
        check_value(value)
    except EnvelopeError as error:
        raise error.rejected("invalid_value") from error
    return value


def _filled(template: JsonValue, scope: Mapping[str, JsonValue]) -> JsonValue:
    if isinstance(template, str):
        if "{{" not in template:
            return template
        pieces = _pieces(template)
        if len(pieces) == 1:
            return _value(pieces[0], scope)
        return "".join(_as_text(_value(piece, scope)) for piece in pieces)
    if isinstance(template, dict):
        return {key: _filled(value, scope) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, scope) for value in template]
    return template


def _value(piece: _Piece, scope: Mapping[str, JsonValue]) -> JsonValue:
    match piece:
        case str():
            return piece
        case _Expression(text):
            return evaluator.evaluate(text, scope)
        case _Secret(name):
            message = f"secrets.{name}: secrets cannot be used here"
            raise RejectedError("invalid_template", message)
        case _:
            return look_up(piece, scope)


def _as_text(value: JsonValue) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    charge(len(text) // CHARACTERS_OF_A_UNIT)
    return text


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered template, and where secrets belong into it."""

    value: JsonValue
    """The value; each string with a secret holds ``[secret]`` in the secret's place."""
    secrets: dict[str, tuple[str | SecretReference, ...]]
    """By JSON pointer (RFC 6901) the pieces that make up such a string."""


def render_with_secrets(template: JsonValue, scope: Mapping[str, JsonValue]) -> Rendered:
    """Return ``template`` rendered, with ``{{ secrets.NAME }}`` as references beside it.

    Raises:
        RejectedError: As ``render``; a secret within an expression is an ``invalid_template``.
    """
    secrets: dict[str, tuple[str | SecretReference, ...]] = {}
    return Rendered(_checked(_render_around(template, scope, "", secrets)), secrets)


def _render_around(
    template: JsonValue,
    scope: Mapping[str, JsonValue],
    pointer: str,
    secrets: dict[str, tuple[str | SecretReference, ...]],
) -> JsonValue:
    if isinstance(template, dict):
        return {
            key: _render_around(value, scope, f"{pointer}/{_escaped(key)}", secrets)
            for key, value in template.items()
        }
    if isinstance(template, list):
        return [
            _render_around(value, scope, f"{pointer}/{index}", secrets)
            for index, value in enumerate(template)
        ]
    if not isinstance(template, str) or "{{" not in template:
        return template
    pieces = _pieces(template)
    if not any(isinstance(piece, _Secret) for piece in pieces):
        return _filled(template, scope)
    secrets[pointer] = tuple(
        {"secret": piece.name} if isinstance(piece, _Secret) else _as_text(_value(piece, scope))
        for piece in pieces
    )
    return masked(secrets[pointer])


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def references(template: JsonValue, at: str = "") -> Iterator[tuple[str, Path]]:
    """Yield every path that ``template`` reads, with its place, for checks at compile time.

    A secret is the path ``("secrets", NAME)``.

    Raises:
        RejectedError: ``invalid_template``, with the place in its details.
    """
    for place, piece in _placed(template, at):
        match piece:
            case str():
                pass
            case _Expression(text):
                for path in evaluator.references(text):
                    yield place, path
            case _Secret(name):
                yield place, ("secrets", name)
            case _:
                yield place, piece


def expressions_of(template: JsonValue, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield every expression of ``template`` that is more than a path, with its place.

    Raises:
        RejectedError: ``invalid_template``, with the place in its details.
    """
    for place, piece in _placed(template, at):
        if isinstance(piece, _Expression):
            yield place, piece.text


def _placed(template: JsonValue, at: str) -> Iterator[tuple[str, _Piece]]:
    if isinstance(template, str):
        try:
            pieces = _pieces(template)
        except RejectedError as error:
            allowed = error.details[0].allowed if error.details else None
            raise RejectedError(
                error.code,
                error.message,
                details=(ErrorDetail(path=at, message=error.message, allowed=allowed),),
            ) from error
        for piece in pieces:
            yield at, piece
    elif isinstance(template, dict):
        for key, value in template.items():
            yield from _placed(value, f"{at}.{key}" if at else key)
    elif isinstance(template, list):
        for index, value in enumerate(template):
            yield from _placed(value, f"{at}[{index}]")


def split(text: str) -> list[tuple[str, bool]]:
    """Return the parts of a text: literal ones, and (``True``) what stands in a template."""
    return [(part.strip() if inside else part, inside) for part, inside in _split(text)]


def _split(text: str) -> Iterator[tuple[str, bool]]:
    position = 0
    while (start := text.find("{{", position)) >= 0 and (end := _end(text, start + 2)) >= 0:
        if start > position:
            yield text[position:start], False
        yield text[start + 2 : end], True
        position = end + 2
    if position < len(text):
        yield text[position:], False


def whole_expression(text: str) -> str | None:
    """Return what stands in a text that is one template and nothing else, unchecked."""
    stripped = text.strip()
    if not stripped.startswith("{{") or _end(stripped, 2) != len(stripped) - 2:
        return None
    return stripped[2:-2].strip()
