"""Times: functions of expressions for the parts of times and durations."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from penstock.expressions.overloads import Table, overloads
from penstock.expressions.values import Evaluation, failed

_UNITS_OF_A_ZONE: Final = 100
_OFFSET: Final = re.compile(r"([+-]?)([0-9]{2}):([0-9]{2})")
_ZONE: Final = re.compile(r"[A-Z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*")
_MICROSECOND: Final = timedelta(microseconds=1)

_PARTS: Final[dict[str, Callable[[datetime], int]]] = {
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
_LENGTHS: Final[dict[str, Callable[[timedelta], int]]] = {
    "getHours": lambda length: _units(length, 3_600_000_000),
    "getMinutes": lambda length: _units(length, 60_000_000),
    "getSeconds": lambda length: _units(length, 1_000_000),
    # The portion below a second, as of a time; the others are totals.
    "getMilliseconds": lambda length: _units(length, 1000) - 1000 * _units(length, 1_000_000),
}


def _units(length: timedelta, microseconds: int) -> int:
    """Return how many whole units a duration has, counted towards zero."""
    whole = abs(length) // _MICROSECOND // microseconds
    return -whole if length < timedelta() else whole


def zone_of(name: str) -> tzinfo:
    """Return a time zone by its name or offset.

    Raises:
        RejectedError: There is none.
    """
    found = _zone(name)
    if found is None:
        allowed = "an IANA name such as Europe/Berlin, or an offset such as +01:00"
        raise failed(f"there is no time zone {name[:50]!r}", allowed)
    return found


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo | None:
    if found := _OFFSET.fullmatch(name):
        hours, minutes = int(found[2]), int(found[3])
        offset = timedelta(hours=hours, minutes=minutes)
        if hours > 23 or minutes > 59:
            return None
        return timezone(-offset if found[1] == "-" else offset)
    if not _ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (LookupError, OSError, ValueError):  # no such file, a folder, not a zone
        return None


def _of_time(part: Callable[[datetime], int]) -> Callable[..., int]:
    def get(of: Evaluation, time: datetime, zone: str | None = None) -> int:
        if zone is None:
            return part(time.astimezone(UTC))
        of.spend(_UNITS_OF_A_ZONE)
        return part(time.astimezone(zone_of(zone)))

    return get


def _of_length(part: Callable[[timedelta], int]) -> Callable[..., int]:
    return lambda _, length: part(length)


TIMES: Final[Table] = {
    name: overloads(
        ("timestamp", "number", _of_time(part)),
        ("timestamp string", "number", _of_time(part)),
        *(("duration", "number", _of_length(_LENGTHS[name])) for _ in range(name in _LENGTHS)),
    )
    for name, part in _PARTS.items()
}
