"""Cron expressions: their ticks on the clock of a time zone, and what is wrong with one.

The library computes on clocks without a zone, and forwards only: its own search backwards, and its
search through the changes of a zone, can loop for ever. Pure.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final, NamedTuple

from cronsim import CronSim, CronSimError

MAX_LENGTH: Final = 200
"""Characters of an expression."""
FORMS: Final = (
    "minute hour day month weekday, with seconds before them if need be; or @hourly, @daily, "
    "@midnight, @weekly, @monthly, @yearly, @annually"
)
HORIZON: Final = timedelta(days=36_525)
"""A search for ticks ends so long after its start."""

_NICKNAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MONTHS: Final = (
    *("JAN", "FEB", "MAR", "APR", "MAY", "JUN"),
    *("JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
)
_SOMETIME: Final = datetime(2000, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MINUTE: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)
_HALF_DAY: Final = timedelta(hours=12)
_LARGEST_SHIFT: Final = timedelta(hours=26)
_ONE_VALUE: Final = re.compile(r"(?<![^,\s])(\w+)-\1/\d+(?![^,\s])")


class CronFault(NamedTuple):
    """The error of an expression."""

    message: str
    allowed: str


class _Field(NamedTuple):
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()
    more: str = ""

    @property
    def allowed(self) -> str:
        names = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return f"{self.least} to {self.most}{names}{self.more}; *, lists, ranges, steps"

    def number(self, text: str) -> int | None:
        if text in self.names:
            return self.names.index(text) + self.least
        number = int(text) if text.isdecimal() and text.isascii() else -1
        return number if self.least <= number <= self.most else None

    def shown(self, number: int, like: str) -> str:
        return self.names[number - self.least] if like in self.names else str(number)


_FIELDS: Final = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31, more=", L the last, LW the last working day"),
    _Field("month", 1, 12, _MONTHS),
    _Field("weekday", 0, 7, _DAYS, ", MON#2 the second, 5L the last"),
)


def cron_fault(expression: str) -> CronFault | None:
    """Return the error of an expression, ``None`` if it has ticks."""
    if len(expression) > MAX_LENGTH:
        return CronFault(f"longer than {MAX_LENGTH} characters", FORMS)
    stripped = expression.strip()
    if stripped.startswith("@") and stripped.lower() not in _NICKNAMES:
        if stripped.lower().startswith("@every"):
            length = stripped[len("@every") :].strip() or "1h"
            return CronFault(f"there is no {stripped!r}", f"`every: {length}` instead of `cron`")
        return CronFault(f"there is no {stripped!r}", FORMS)
    parts = _fields(expression).upper().split()
    if len(parts) not in (5, 6):
        return CronFault(f"it has {len(parts)} fields, not 5 or 6", FORMS)
    for field, part in zip(_FIELDS[-len(parts) :], parts, strict=True):
        if (fault := _field_fault(field, part)) is not None:
            return fault
    try:
        found = next(ticks(expression, UTC, _SOMETIME), None)
    except CronSimError:
        found = None  # a day that no month of it has
    return None if found is not None else CronFault("it never comes", "a day that its months have")


def ticks(expression: str, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    """Yield the ticks later than an instant, in order, in UTC, up to the horizon.

    Where a clock is put forward, a time of day that is left out comes at the first instant after
    the gap. Where it is put back, a time of day that comes twice counts the first time. Only
    expressions whose minute or hour begins with ``*`` follow the elapsed time instead.

    Args:
        expression: It has been checked.
        zone: The zone whose clock counts.
        after: Any instant.
    """
    fields = _fields(expression)
    minute, hour = fields.split()[-5:-3]
    paced = minute.startswith("*") or hour.startswith("*")
    found = _paced(fields, zone, after) if paced else _at_times_of_day(fields, zone, after)
    for tick in found:
        if tick - after > HORIZON:
            return
        yield tick


def latest_ticks(
    expression: str, zone: tzinfo, after: datetime, until: datetime, limit: int
) -> list[datetime]:
    """Return the latest ticks later than ``after`` and up to ``until``, oldest first.

    The time that this takes grows with the number of ticks returned, not with the span.
    """
    span = timedelta(hours=1)
    while True:
        begin = max(after, until - span) if until - after > span else after
        found: deque[datetime] = deque(maxlen=limit)
        for tick in ticks(expression, zone, begin):
            if tick > until:
                break
            found.append(tick)
        if len(found) == limit or begin == after:
            return list(found)
        span *= 4


def _fields(expression: str) -> str:
    # The library takes the single value of `3-3/2` for the beginning of `3/2`.
    fields = _NICKNAMES.get(expression.strip().lower(), expression)
    return _ONE_VALUE.sub(r"\1", fields)


def _field_fault(field: _Field, part: str) -> CronFault | None:
    """Return the error of one field of an expression."""
    for term in part.split(","):
        if term == "?":
            return CronFault(f"{field.name}: there is no '?'", f"`*`; {field.allowed}")
        first, dash, last = term.partition("/")[0].partition("-")
        if not dash:
            continue
        low, high = field.number(first), field.number(last)
        if low is not None and high is not None and high < low:
            most = field.most - (field.name == "weekday")
            upper = first if low == most else f"{first}-{field.shown(most, first)}"
            lower = last if high == field.least else f"{field.shown(field.least, last)}-{last}"
            return CronFault(f"{field.name}: the range {term!r} descends", f"`{upper},{lower}`")
    probe = ["*"] * len(_FIELDS)
    probe[_FIELDS.index(field)] = part
    try:
        CronSim(" ".join(probe), _naive(_SOMETIME, UTC))
    except (CronSimError, AssertionError):
        return CronFault(f"{field.name}: {part[:40]!r} is not valid", field.allowed)
    return None


def _walls(fields: str, begin: datetime) -> Iterator[datetime]:
    """Yield the times from ``begin`` on that a clock without a zone shows at ticks."""
    try:
        yield from CronSim(fields, begin - _SECOND)
    except (OverflowError, ValueError):
        return  # beyond the year 9999


def _paced(fields: str, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    """Yield every instant at which the clock shows a matching time."""
    begin: datetime | None = after.astimezone(UTC).replace(microsecond=0) + _SECOND
    while begin is not None:
        offset, checked, change = _offset(begin, zone), begin, None
        for wall in _walls(fields, _naive(begin, zone)):
            tick = wall.replace(tzinfo=UTC) - offset
            if tick - begin > HORIZON:
                return
            change = _next_change(zone, checked, tick)
            if change is not None:
                break
            yield tick
            checked = tick
        begin = change


def _at_times_of_day(fields: str, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    """Yield one instant for each matching time of each day."""
    last = after
    for wall in _walls(fields, _naive(after, zone).replace(microsecond=0) - _margin(zone, after)):
        tick = _instant(wall, zone)
        if tick > last:
            yield tick
            last = tick


def _instant(wall: datetime, zone: tzinfo) -> datetime:
    """Return when a clock shows a time (first), or the end of the gap that the time falls into."""
    while True:
        instant = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
        if _naive(instant, zone) == wall:
            return instant
        wall = wall.replace(second=0) + _MINUTE


def _margin(zone: tzinfo, instant: datetime) -> timedelta:
    """Return how far a clock may have been put forward or back around an instant."""
    before, after = (_offset(instant + shift, zone) for shift in (-_DAY, _DAY))
    return timedelta() if before == after else _LARGEST_SHIFT


def _next_change(zone: tzinfo, after: datetime, until: datetime) -> datetime | None:
    """Return the first instant of another offset, later than ``after`` and up to ``until``."""
    for year in range(after.year, until.year + 1):
        for change in _changes(zone, year):
            if after < change <= until:
                return change
    return None


@lru_cache(maxsize=2048)
def _changes(zone: tzinfo, year: int) -> tuple[datetime, ...]:
    """Return the instants of a year (UTC) at which a zone's offset changes, to the second."""
    found = []
    begin = datetime(year, 1, 1, tzinfo=UTC)
    end = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    while begin < end:
        step = min(begin + _HALF_DAY, end)
        if (offset := _offset(begin, zone)) != _offset(step, zone):
            low, high = begin, step
            while high - low > _SECOND:
                middle = (low + (high - low) / 2).replace(microsecond=0)
                low, high = (middle, high) if _offset(middle, zone) == offset else (low, middle)
            found.append(high)
        begin = step
    return tuple(found)


def _offset(instant: datetime, zone: tzinfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()


def _naive(instant: datetime, zone: tzinfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None)
