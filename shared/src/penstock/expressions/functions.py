"""The functions of expressions: one table of what each takes and gives, for run and check alike.

A function is called as ``f(x, y)`` or ``x.f(y)``. The table speaks of kinds of values; arguments
of wrong kinds never reach a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil, floor
from typing import Any, Final

from penstock.expressions.patterns import matches
from penstock.expressions.tree import TypeName
from penstock.expressions.values import (
    Evaluation,
    article,
    checked,
    contains,
    failed,
    kind_of,
    seconds_of,
    text_of,
    truncated,
    whole,
)


@dataclass(frozen=True, slots=True)
class Overload:
    """What a function takes (kinds, or ``any``), the kind that it gives, and how."""

    takes: tuple[str, ...]
    gives: str
    call: Callable[..., Any]


FUNCTIONS: Final[dict[str, tuple[Overload, ...]]] = {}


def _function(name: str, *overloads: tuple[str, str, Callable[..., Any]]) -> None:
    FUNCTIONS[name] = tuple(
        Overload(tuple(takes.split()), gives, call) for takes, gives, call in overloads
    )


def arity(name: str) -> tuple[int, int] | None:
    """Return how many arguments a function takes, least and most; none if there is no such."""
    overloads = FUNCTIONS.get(name)
    if overloads is None:
        return None
    counts = [len(overload.takes) for overload in overloads]
    return min(counts), max(counts)


def fitting(name: str, kinds: tuple[str, ...]) -> list[Overload]:
    """List the overloads for arguments of these kinds; ``any`` fits whatever is wanted."""
    return [
        overload
        for overload in FUNCTIONS[name]
        if len(overload.takes) == len(kinds)
        and all(
            wanted in ("any", kind) or kind == "any"
            for wanted, kind in zip(overload.takes, kinds, strict=True)
        )
    ]


def no_overload(name: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    """Say why a function does not take such arguments, and what it takes."""
    given = ", ".join(article(kind) for kind in kinds)
    takes = "; ".join(f"{name}({', '.join(overload.takes)})" for overload in FUNCTIONS[name])
    return f"{name}() does not take {given}", takes


def call(of: Evaluation, name: str, arguments: tuple[Any, ...]) -> Any:
    """Call a function.

    Raises:
        RejectedError: It does not take such arguments, or fails.
    """
    kinds = tuple(kind_of(argument) for argument in arguments)
    found = fitting(name, kinds)
    if not found:
        raise failed(*no_overload(name, kinds))
    return found[0].call(of, *arguments)


# Conversions.


def _text(_: Evaluation, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return text_of(value)
    if isinstance(value, timedelta):
        return f"{seconds_of(value)}s"
    return str(checked(value))


def _decoded(of: Evaluation, value: bytes) -> str:
    of.spend_text(len(value))
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise failed("these bytes are not UTF-8") from error


def _encoded(of: Evaluation, value: str) -> bytes:
    of.spend_text(len(value))
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise failed("this text cannot be written as UTF-8") from error


_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _integer(_: Evaluation, value: Any) -> int:
    if isinstance(value, datetime):
        return int(value.timestamp())
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
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _timestamp(_: Evaluation, value: str) -> datetime:
    try:
        if _RFC3339.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise failed(f"{value[:50]!r} is no time such as 2026-01-31T12:00:00Z")


def _moment(_: Evaluation, value: Any) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=value)


_DURATION: Final = re.compile(r"([-+]?)((?:[0-9]+(?:\.[0-9]*)?(?:h|ms|m|s|us|ns))+|0)")
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?)(h|ms|m|s|us|ns)")
_SECONDS: Final = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def _duration(of: Evaluation, value: str) -> timedelta:
    of.spend_text(len(value))
    found = _DURATION.fullmatch(value)
    if found is None:
        raise failed(f"{value[:50]!r} is no duration such as 1h30m, 90s or 250ms")
    seconds = sum(
        float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(found[2])
    )
    return timedelta(seconds=-seconds if found[1] == "-" else seconds)


_TYPE_NAMES: Final = {"null": "null_type", "type": "type"}


def _type(_: Evaluation, value: Any) -> TypeName:
    kind = kind_of(value)
    if kind == "number":
        kind = "int" if isinstance(value, int) else "double"
    return TypeName(_TYPE_NAMES.get(kind, kind))


def _same(_: Evaluation, value: Any) -> Any:
    return value


_function("type", ("any", "type", _type))
_function("dyn", ("any", "any", _same))
_function(
    "string",
    ("string", "string", _same),
    ("bytes", "string", _decoded),
    *((kind, "string", _text) for kind in ("number", "bool", "timestamp", "duration")),
)
_function("bytes", ("string", "bytes", _encoded), ("bytes", "bytes", _same))
_function("int", *((kind, "number", _integer) for kind in ("number", "string", "timestamp")))
_function("uint", *((kind, "number", _unsigned) for kind in ("number", "string")))
_function("double", *((kind, "number", _fraction) for kind in ("number", "string")))
_function("bool", ("bool", "bool", _same), ("string", "bool", _truth))
_function(
    "timestamp",
    ("string", "timestamp", _timestamp),
    ("number", "timestamp", _moment),
    ("timestamp", "timestamp", _same),
)
_function("duration", ("string", "duration", _duration), ("duration", "duration", _same))


# Parts of times and durations.

_PARTS: Final[Mapping[str, Callable[[datetime], int]]] = {
    "getFullYear": lambda time: time.year,
    "getMonth": lambda time: time.month - 1,
    "getDate": lambda time: time.day,
    "getDayOfMonth": lambda time: time.day - 1,
    "getDayOfWeek": lambda time: time.isoweekday() % 7,
    "getDayOfYear": lambda time: time.timetuple().tm_yday - 1,
    "getHours": lambda time: time.hour,
    "getMinutes": lambda time: time.minute,
    "getSeconds": lambda time: time.second,
    "getMilliseconds": lambda time: time.microsecond // 1000,
}
_LENGTHS: Final = {
    "getHours": timedelta(hours=1),
    "getMinutes": timedelta(minutes=1),
    "getSeconds": timedelta(seconds=1),
    "getMilliseconds": timedelta(milliseconds=1),
}


def _part_of_time(part: Callable[[datetime], int]) -> Callable[..., int]:
    return lambda _, time: part(time.astimezone(UTC))


def _count_of(unit: timedelta) -> Callable[..., int]:
    return lambda _, length: truncated(length / unit)


for _name, _part in _PARTS.items():
    _of_time = ("timestamp", "number", _part_of_time(_part))
    if _name in _LENGTHS:
        _function(_name, _of_time, ("duration", "number", _count_of(_LENGTHS[_name])))
    else:
        _function(_name, _of_time)


# Text.


def _paid(act: Callable[..., Any]) -> Callable[..., Any]:
    def paying(of: Evaluation, text: str, *rest: Any) -> Any:
        of.spend_text(len(text))
        return act(text, *rest)

    return paying


_UPPER: Final = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}
_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _split(of: Evaluation, text: str, separator: str) -> list[str]:
    of.spend(len(text) + 1)
    return text.split(separator) if separator else list(text)


def _join(of: Evaluation, items: list[Any], separator: str = "") -> str:
    of.spend(len(items))
    for item in items:
        if not isinstance(item, str):
            kind = kind_of(item)
            raise failed(
                f"join() takes strings, and there is {article(kind)}; use .map(x, string(x))"
            )
    of.spend_text(sum(map(len, items)) + len(separator) * len(items))
    return separator.join(items)


def _replace(of: Evaluation, text: str, old: str, new: str) -> str:
    of.spend_text(len(text))
    of.spend_text(text.count(old) * len(new))
    return text.replace(old, new)


def _substring(of: Evaluation, text: str, start: Any, end: Any = None) -> str:
    of.spend_text(len(text))
    first, last = whole(start), len(text) if end is None else whole(end)
    if not 0 <= first <= last <= len(text):
        raise failed(f"substring({first}, {last}) of a text of {len(text)} characters")
    return text[first:last]


_function("startsWith", ("string string", "bool", _paid(str.startswith)))
_function("endsWith", ("string string", "bool", _paid(str.endswith)))
_function("matches", ("string string", "bool", matches))
_function("contains", ("string string", "bool", contains), ("list any", "bool", contains))
_function("lowerAscii", ("string", "string", _paid(lambda text: text.translate(_LOWER))))
_function("upperAscii", ("string", "string", _paid(lambda text: text.translate(_UPPER))))
_function("trim", ("string", "string", _paid(str.strip)))
_function("split", ("string string", "list", _split))
_function("join", ("list", "string", _join), ("list string", "string", _join))
_function("replace", ("string string string", "string", _replace))
_function("indexOf", ("string string", "number", _paid(str.find)))
_function(
    "substring",
    ("string number", "string", _substring),
    ("string number number", "string", _substring),
)


# Lists.


def _flatten(of: Evaluation, items: list[Any]) -> list[Any]:
    found: list[Any] = []
    of.spend(len(items))
    for item in items:
        inner = item if isinstance(item, list) else [item]
        of.spend(len(inner))
        found += inner
    return found


def _key(of: Evaluation, value: Any) -> Any:
    of.spend(1)
    kind = kind_of(value)
    if kind == "list":
        return kind, tuple(_key(of, item) for item in value)
    if kind == "map":
        return kind, frozenset((name, _key(of, item)) for name, item in value.items())
    return kind, value


def _distinct(of: Evaluation, items: list[Any]) -> list[Any]:
    return list({_key(of, item): item for item in reversed(items)}.values())[::-1]


def _comparable(of: Evaluation, items: list[Any], function: str) -> list[Any]:
    of.spend(2 * len(items))
    kinds = {kind_of(item) for item in items}
    if len(kinds) > 1 or not kinds <= {"number", "string", "timestamp", "duration"}:
        known = ", ".join(sorted(kinds))
        raise failed(f"{function}() takes values of one kind that can be ordered, not {known}")
    return items


def _sort(of: Evaluation, items: list[Any]) -> list[Any]:
    of.spend(8 * len(items))
    return sorted(_comparable(of, items, "sort"))


def _extreme(name: str, choose: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def extreme(of: Evaluation, *given: Any) -> Any:
        items = given[0] if len(given) == 1 else list(given)
        if not items:
            raise failed(f"{name}() of an empty list")
        return choose(_comparable(of, items, name))

    return extreme


def _sum(of: Evaluation, items: list[Any]) -> Any:
    of.spend(len(items))
    total: Any = 0
    for item in items:
        if kind_of(item) != "number":
            raise failed(f"sum() takes numbers, and there is {article(kind_of(item))}")
        total = checked(total + item)
    return total


def _slice(of: Evaluation, items: list[Any], start: Any, end: Any) -> list[Any]:
    first, last = whole(start), whole(end)
    if not 0 <= first <= last <= len(items):
        raise failed(f"slice({first}, {last}) of a list of {len(items)}")
    of.spend(last - first)
    return items[first:last]


def _end_of(name: str, index: int) -> Callable[..., Any]:
    def end(_: Evaluation, items: list[Any]) -> Any:
        if not items:
            raise failed(f"{name}() of an empty list")
        return items[index]

    return end


def _range(of: Evaluation, count: Any) -> list[int]:
    size = whole(count)
    if size < 0:
        raise failed(f"{size} is below zero")
    of.spend(size)
    return list(range(size))


def _reverse(of: Evaluation, items: list[Any]) -> list[Any]:
    of.spend(len(items))
    return items[::-1]


_function(
    "size", *((kind, "number", lambda _, x: len(x)) for kind in ("string", "list", "map", "bytes"))
)
_function("flatten", ("list", "list", _flatten))
_function("distinct", ("list", "list", _distinct))
_function("sort", ("list", "list", _sort))
_function("reverse", ("list", "list", _reverse))
_function("slice", ("list number number", "list", _slice))
_function("first", ("list", "any", _end_of("first", 0)))
_function("last", ("list", "any", _end_of("last", -1)))
_function("sum", ("list", "number", _sum))
_function("lists.range", ("number", "list", _range))
for _name, _choose in (("min", min), ("max", max), ("math.least", min), ("math.greatest", max)):
    _function(
        _name,
        ("list", "any", _extreme(_name, _choose)),
        ("number number", "number", _extreme(_name, _choose)),
    )


# Numbers.


def _round(_: Evaluation, value: Any) -> int:
    away = floor(abs(value) + 0.5) if isinstance(value, float) else abs(value)
    return int(checked(away if value >= 0 else -away))


_function("math.abs", ("number", "number", lambda _, x: checked(abs(x))))
_function("math.ceil", ("number", "number", lambda _, x: checked(ceil(x))))
_function("math.floor", ("number", "number", lambda _, x: checked(floor(x))))
_function("math.round", ("number", "number", _round))
_function("math.trunc", ("number", "number", lambda _, x: truncated(x)))
