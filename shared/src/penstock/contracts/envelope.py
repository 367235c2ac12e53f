"""The envelope: limits of every JSON value that enters the log, and the one check of them.

Readers on the way of a value (msgspec, pydantic, SQL, JavaScript) refuse different things. What
is within the envelope all of them read, so a value is checked where it is written and, since
others write to the bus as well, where it is read (ADR 0027).
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections.abc import Iterator
from datetime import datetime
from itertools import accumulate
from re import compile as pattern
from typing import Annotated, Final

import msgspec
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.json import Json
from penstock.contracts.structs import MalformedError

MAX_DEPTH: Final = 100
"""Arrays and objects around the innermost item of one value."""
MAX_FACT_DEPTH: Final = 128
"""The same for a fact, which wraps values; pydantic's JSON reader stops at 200."""
MAX_NUMBER: Final = int(sys.float_info.max)
"""Largest number, integers as well: what JavaScript and databases read as a double."""
YEARS: Final = range(2, 9999)
"""Times outside of these years may have no form in another zone."""

_DIGITS: Final = bytes(0x30 if 0x30 <= code <= 0x39 else 0x20 for code in range(256))
_LONG_NUMBER: Final = b"0" * len(str(MAX_NUMBER))
"""No integer with fewer digits is out of bounds."""
_NUMBERS: Final = f"numbers from {-sys.float_info.max:.2g} to {sys.float_info.max:.2g}"
_NO_STRUCTURE: Final = bytes(code for code in range(256) if code not in b'[]{}"')
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_STRING: Final = pattern(rb'"[^"]*"')


class EnvelopeError(MalformedError):
    """A value is outside of the envelope; names the place and what is allowed."""

    def __init__(self, path: str, message: str, allowed: str) -> None:
        """Take a finding's three parts; an empty path is the value itself."""
        super().__init__(f"{message} - at `{path or '$'}`")
        self.finding = finding(path, message, allowed)

    def rejected(self, code: str, *, at: str = "") -> RejectedError:
        """Return the error of a request; ``at`` is the place of the value in it."""
        path = self.finding.path
        inner = path if not at or not path or path.startswith("[") else f".{path}"
        place = finding(at + inner, self.finding.message, self.finding.allowed)
        return RejectedError(
            code, f"{place.path or 'the value'}: {place.message}", details=(place,)
        )


def within(text: bytes, depth: int) -> bool:
    """Return whether JSON text is nested at most ``depth`` deep and its numbers may be in bounds.

    A cheap test: False means that `search` has to look at the value.
    """
    if text.count(b"[") + text.count(b"{") > depth and depth_of(text) > depth:
        return False
    return _LONG_NUMBER not in text.translate(_DIGITS)


def depth_of(text: bytes) -> int:
    """Return how deep valid JSON text is nested, in linear time and without recursion."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = text.translate(None, _NO_STRUCTURE).replace(b'""', b"")
    if b'"' in structure:
        structure = _STRING.sub(b"", structure)
    return max(accumulate(array("b", structure.translate(_STEPS))), default=0)


def search(value: object, depth: int = MAX_DEPTH, *, nul: bool = True) -> None:
    """Look at a value item by item.

    Args:
        value: Plain values of JSON, in lists and dictionaries.
        depth: How deep it may be nested.
        nul: Whether its text may contain U+0000.

    Raises:
        EnvelopeError: The first item that is outside of the envelope.
    """
    # Iterators on a stack instead of recursion, since the value may be nested too deeply for that.
    path: list[str] = []
    stack = [iter([("", value)])]
    while stack:
        for part, item in stack[-1]:
            place = "".join([*path, part]).removeprefix(".")
            _require_scalar(item, place, nul=nul)
            if isinstance(item, dict | list | tuple):
                # The outermost iterator is none of the value.
                if len(stack) > depth:
                    raise EnvelopeError(
                        _short(place), f"is nested more than {depth} deep", f"{depth} levels"
                    )
                path.append(part)
                stack.append(_members(item, place, nul=nul))
                break
        else:
            stack.pop()
            if path:
                path.pop()


def _members(
    item: dict[object, object] | list[object] | tuple[object, ...], place: str, *, nul: bool
) -> Iterator[tuple[str, object]]:
    if not isinstance(item, dict):
        return ((f"[{index}]", inner) for index, inner in enumerate(item))
    for name in item:
        _require_scalar(name, place, nul=nul)
    return ((f".{name}", inner) for name, inner in item.items())


def _require_scalar(item: object, place: str, *, nul: bool) -> None:
    if isinstance(item, str):
        if not nul and "\0" in item:
            raise EnvelopeError(place.replace("\0", ""), "contains U+0000", "text without it")
        if not item.isascii() and any("\ud800" <= char <= "\udfff" for char in item):
            place = place.encode("utf-8", "replace").decode()
            raise EnvelopeError(place, "contains half of a surrogate pair", "text that is Unicode")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise EnvelopeError(place, "is not a finite number", _NUMBERS)
    elif isinstance(item, int) and not -MAX_NUMBER <= item <= MAX_NUMBER:
        raise EnvelopeError(place, "is a number out of range", _NUMBERS)


def _short(place: str) -> str:
    return place if len(place) <= 120 else f"{place[:60]}...{place[-57:]}"


def check_value(value: Json, depth: int = MAX_DEPTH, *, nul: bool = True) -> None:
    """Check a value that a program made, such as a template's result; arguments as for `search`.

    Raises:
        EnvelopeError: It is outside of the envelope, or no JSON.
    """
    if value is None or isinstance(value, bool):
        return
    try:
        text = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        search(value, depth, nul=nul)
        raise EnvelopeError("", f"has no JSON form: {error}", "JSON") from error
    # msgspec writes NaN and infinity as null.
    if b"null" in text or not within(text, depth) or (not nul and b"\\u0000" in text):
        search(value, depth, nul=nul)


def check_text(text: bytes, depth: int = MAX_DEPTH) -> None:
    """Check JSON text that came from outside; whether it is JSON at all its reader has to say.

    Raises:
        EnvelopeError: A value in it is outside of the envelope, or a ``NaN`` or infinity.
    """
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        readable = False
    else:
        readable = True
    if readable and within(text, depth):
        return
    if not readable and _too_deep(text, depth):
        raise EnvelopeError("", f"is nested more than {depth} deep", f"{depth} levels")
    try:
        value = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return
    search(value, depth)


def _too_deep(text: bytes, depth: int) -> bool:
    return depth_of(text) > max(depth, 500)


def _integer(text: str) -> int:
    # Python refuses to read some thousands of digits.
    return int(text) if len(text) < 1000 else MAX_NUMBER + 1


def require_time(at: datetime) -> datetime:
    """Return a time that can be converted to any zone.

    Raises:
        ValueError: It is at an edge of the calendar.
    """
    if at.year not in YEARS:
        raise ValueError(f"the year must be between {YEARS[0]} and {YEARS[-1]}")
    return at


def _require_no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains U+0000, which databases do not store")
    return text


_NUMBER: Final = pattern(r"\s*[+-]?[0-9.]+(e[+-]?[0-9]+)?\s*")


def _refuse_numbers(value: object) -> object:
    """Refuse what pydantic reads as seconds since 1970, such as `0.5` in a query."""
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise ValueError("a number is no point in time: 2026-11-20T12:00:00Z is one")
    return value


StorableText = Annotated[str, AfterValidator(_require_no_nul)]
"""Text that columns of databases can hold."""
MAX_INT32: Final = 2**31 - 1
MAX_INT64: Final = 2**63 - 1
VersionNumber = Annotated[int, Field(ge=1, le=MAX_INT32)]
"""A version of a definition, for which databases have four bytes."""
Revision = Annotated[int, Field(ge=0, le=MAX_INT32)]
"""A revision of a document, for which databases have four bytes."""
StreamSequence = Annotated[int, Field(ge=1, le=MAX_INT64)]
"""The place of a message in a stream, for which databases have eight bytes."""
BoundedTime = Annotated[
    AwareDatetime, BeforeValidator(_refuse_numbers), AfterValidator(require_time)
]
"""A point in time with its offset that can be converted to any zone; no number of seconds."""
