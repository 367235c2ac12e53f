"""Conversions: functions of expressions that make a value of one kind from another."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, Final

from penstock.expressions.overloads import Table, overloads
from penstock.expressions.tree import TypeName
from penstock.expressions.values import (
    Evaluation,
    checked,
    failed,
    kind_of,
    seconds_of,
    text_of,
    truncated,
)

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def text(_: Evaluation, value: Any) -> str:
    """Return a number, a boolean, a time or a duration as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return text_of(value)
    if isinstance(value, timedelta):
        return f"{seconds_of(value)}s"
    return str(checked(value))


def decoded(of: Evaluation, value: bytes) -> str:
    """Return the text that bytes are in UTF-8.

    Raises:
        RejectedError: They are none.
    """
    of.spend_text(len(value))
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise failed("these bytes are not UTF-8") from error


def encoded(of: Evaluation, value: str) -> bytes:
    """Return a text in UTF-8.

    Raises:
        RejectedError: It has half a surrogate pair.
    """
    of.spend_text(len(value))
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise failed("this text cannot be written as UTF-8") from error


_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _integer(_: Evaluation, value: Any) -> int:
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(seconds=1)
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            raise failed(f"{value[:50]!r} is no integer")
        return int(checked(int(value)))
    return truncated(value)


def _unsigned(of: Evaluation, value: Any) -> int:
    number = _integer(of, value)
    if number < 0:
        raise failed(f"{number} is below zero")
    return number


def _fraction(of: Evaluation, value: Any) -> float:
    if isinstance(value, str):
        of.spend_text(len(value))
        if not _NUMBER.fullmatch(value):
            raise failed(f"{value[:50]!r} is no number")
    return float(checked(float(value)))


def _truth(_: Evaluation, value: str) -> bool:
    if value in ("1", "t", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "false", "FALSE", "False"):
        return False
    raise failed(f"{value[:50]!r} is neither true nor false")


_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6}(?P<finer>[0-9]*))?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _timestamp(_: Evaluation, value: str) -> datetime:
    try:
        if found := _RFC3339.fullmatch(value):
            _require_microseconds(int(found["finer"] or 0) == 0, value)
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise failed(f"{value[:50]!r} is no time such as 2026-01-31T12:00:00Z")


def _moment(_: Evaluation, value: Any) -> datetime:
    return EPOCH + timedelta(seconds=value)


_DURATION: Final = re.compile(
    r"([-+]?)((?:[0-9]{1,18}(?:\.[0-9]{0,18})?(?:h|ms|m|s|us|ns)){1,20}|0)"
)
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?)(h|ms|m|s|us|ns)")
_MICROSECONDS: Final = {
    "h": Fraction(3_600_000_000),
    "m": Fraction(60_000_000),
    "s": Fraction(1_000_000),
    "ms": Fraction(1000),
    "us": Fraction(1),
    "ns": Fraction(1, 1000),
}


def _duration(of: Evaluation, value: str) -> timedelta:
    of.spend_text(len(value))
    found = _DURATION.fullmatch(value)
    if found is None:
        raise failed(f"{value[:50]!r} is no duration such as 1h30m, 90s or 250ms")
    length = sum(
        (
            Fraction(number) * _MICROSECONDS[unit]
            for number, unit in _DURATION_PART.findall(found[2])
        ),
        Fraction(0),
    )
    _require_microseconds(length.denominator == 1, value)
    return timedelta(microseconds=int(-length if found[1] == "-" else length))


def _require_microseconds(whole: bool, value: str) -> None:
    if not whole:
        raise failed(f"{value[:50]!r} has parts of a microsecond, which times do not have here")


_TYPE_NAMES: Final = {"null": "null_type", "type": "type"}


def _type(_: Evaluation, value: Any) -> TypeName:
    kind = kind_of(value)
    if kind == "number":
        kind = "int" if isinstance(value, int) else "double"
    return TypeName(_TYPE_NAMES.get(kind, kind))


def _same(_: Evaluation, value: Any) -> Any:
    return value


CONVERSIONS: Final[Table] = {
    "type": overloads(("any", "type", _type)),
    "dyn": overloads(("any", "any", _same)),
    "string": overloads(
        ("string", "string", _same),
        ("bytes", "string", decoded),
        *((kind, "string", text) for kind in ("number", "bool", "timestamp", "duration")),
    ),
    "bytes": overloads(("string", "bytes", encoded), ("bytes", "bytes", _same)),
    "int": overloads(*((kind, "number", _integer) for kind in ("number", "string", "timestamp"))),
    "uint": overloads(*((kind, "number", _unsigned) for kind in ("number", "string"))),
    "double": overloads(*((kind, "number", _fraction) for kind in ("number", "string"))),
    "bool": overloads(("bool", "bool", _same), ("string", "bool", _truth)),
    "timestamp": overloads(
        ("string", "timestamp", _timestamp),
        ("number", "timestamp", _moment),
        ("timestamp", "timestamp", _same),
    ),
    "duration": overloads(("string", "duration", _duration), ("duration", "duration", _same)),
}
